"""The mixture likelihood in plain PyTorch: its formula, differentiable by autograd, and its gradient by hand.

The contract of `ladder_kernels.likelihood` with the backends that have it. A component after the other, so that a
compiler makes one loop of it; nothing is written in place, as in the step.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ladder_kernels.backends.step import HALF_LOG_TWO_PI, compute_dtype
from ladder_kernels.geometry import dense, is_channels_last

CONSTANTS = ("min_signal", "max_signal", "min_sigma", "tolerance", "mean", "std")
"""The rows of a table of constants (6, C)."""


class Component(NamedTuple):
    """One Gaussian of every pixel (B, C, *S)."""

    share: Tensor
    """Its mixing weight times `Mixture.shares`, which is their sum."""
    offset: Tensor
    """Of its mean from the signal."""
    var: Tensor
    inverse_std: Tensor
    eps: Tensor
    """The standardised residual of x."""
    density: Tensor
    """That of x, times its mixing weight, and as `Mixture.densities`, which is their sum."""


class Mixture(NamedTuple):
    """The mixture of every pixel (B, C, *S)."""

    t: Tensor
    rows: list[tuple[Tensor, ...]]
    """The coefficients of t^0, t^1, ...: of n means, n variances, n logits."""
    components: list[Component]
    shares: Tensor
    densities: Tensor
    """With the tolerance; without the factors 1 / shares, 1 / sqrt(2 pi) and exp(largest)."""
    largest: Tensor


def forward(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor) -> Tensor:
    """The log-likelihood (B, C, *S) of x and signal (B, C, *S), weight (C, 3n, c) and `CONSTANTS` (6, C)."""
    of = mixture(x, signal, weight, constants)
    log_density = torch.log(of.densities / of.shares) + (of.largest - HALF_LOG_TWO_PI)
    return dense(log_density, is_channels_last(signal))


def backward(
    grad: Tensor,
    x: Tensor,
    signal: Tensor,
    weight: Tensor,
    constants: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """At x, signal and weight, where needed."""
    t, rows, components, shares, densities, _ = mixture(x, signal, weight, constants)
    min_signal, max_signal, min_sigma, _, _, std = _per_channel(constants, x, t.dtype)
    channels_last = is_channels_last(signal)
    arriving = grad.to(t.dtype) / densities
    responsible = [arriving * each.density for each in components]
    by_std = [r * each.inverse_std for r, each in zip(responsible, components, strict=True)]
    pulls = [each * of.eps for each, of in zip(by_std, components, strict=True)]
    to_x = -_sum(pulls)
    grad_x = grad_signal = grad_weight = None
    if needs[0]:
        grad_x = dense((to_x * std).to(x.dtype), channels_last)
    if needs[1] or needs[2]:
        to_share, all_responsible = to_x / shares, _sum(responsible) / shares
        to_means, to_vars, to_logits = [], [], []
        for r, each_by_std, pull, of in zip(responsible, by_std, pulls, components, strict=True):
            to_mean = of.share * to_share
            to_means.append(pull + to_mean)
            # 0 where the variance is `min_sigma`: by its sign, for a `where` takes ten times as long.
            free = -0.5 * torch.sign(of.var - min_sigma)
            to_vars.append(free * of.inverse_std * torch.addcmul(each_by_std, pull, of.eps, value=-1))
            to_logit = torch.addcmul(r, to_mean, of.offset)
            to_logits.append(torch.addcmul(to_logit, of.share, all_responsible, value=-1))
        to_rows = [*to_means, *to_vars, *to_logits]
        if needs[1]:
            slopes = (_slope(row, t) for row in rows)
            to_t = _sum([to_row * slope for to_row, slope in zip(to_rows, slopes, strict=True)])
            grad_signal = (to_t / (max_signal - min_signal) - to_x) * std
            grad_signal = dense(grad_signal.to(signal.dtype), channels_last)
        if needs[2]:
            grad_weight = _gradient_at_weight(to_rows, t, weight)
    return grad_x, grad_signal, grad_weight


def mixture(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor) -> Mixture:
    """The mixture at the signal, and its densities at x."""
    dtype = compute_dtype(x, signal)
    x, signal = x.to(dtype), signal.to(dtype)
    min_signal, max_signal, min_sigma, tolerance, mean, std = _per_channel(constants, x, dtype)
    t = signal * (std / (max_signal - min_signal)) + (mean - min_signal) / (max_signal - min_signal)
    # Of normalised values: their mean would cancel, and with it digits.
    from_signal = (x - signal) * std
    rows = _rows(weight.to(dtype), x.dim())
    offsets, variances, logits = _thirds([_horner(row, t) for row in rows])

    variances = [torch.clamp(each, min=min_sigma) for each in variances]
    inverse_stds = [torch.rsqrt(each) for each in variances]
    largest = functools.reduce(torch.maximum, logits).detach()
    logits = [each - largest for each in logits]
    each_share = [torch.exp(each) for each in logits]
    shares = _sum(each_share)
    centre = _sum([share * each for share, each in zip(each_share, offsets, strict=True)]) / shares
    offsets = [each - centre for each in offsets]
    eps = [(from_signal - offset) * each for offset, each in zip(offsets, inverse_stds, strict=True)]

    exponents = [torch.addcmul(logit, each, each, value=-0.5) for logit, each in zip(logits, eps, strict=True)]
    log_tolerance = torch.log(tolerance * math.sqrt(2 * math.pi)) + torch.log(shares)
    # Finite, so that where all are -inf so is their sum.
    largest = functools.reduce(torch.maximum, exponents, log_tolerance).detach().clamp(min=torch.finfo(dtype).min)
    each_density = [torch.exp(e - largest) * each for e, each in zip(exponents, inverse_stds, strict=True)]
    densities = _sum(each_density) + torch.exp(log_tolerance - largest)
    parts = zip(each_share, offsets, variances, inverse_stds, eps, each_density, strict=True)
    return Mixture(t, rows, [Component(*part) for part in parts], shares, densities, largest)


def _per_channel(constants: Tensor, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return constants.to(dtype).view(len(CONSTANTS), -1, *[1] * (like.dim() - 2)).unbind()


def _rows(weight: Tensor, dims: int) -> list[tuple[Tensor, ...]]:
    mean, log_var, logit = weight.chunk(3, dim=1)
    rows = torch.cat([mean, torch.exp(log_var), logit], dim=1).movedim(0, 2)
    # All at once: calls on small tensors are a tenth of the time of a batch of patches.
    coefficients = rows.reshape(-1, rows.shape[2], *[1] * (dims - 2)).unbind()
    return [coefficients[start : start + rows.shape[1]] for start in range(0, len(coefficients), rows.shape[1])]


def _thirds(values: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    n = len(values) // 3
    return values[:n], values[n : 2 * n], values[2 * n :]


def _sum(values: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)


def _horner(coefficients: Sequence[Tensor], t: Tensor) -> Tensor:
    """The polynomial at t, as W. G. Horner wrote it."""
    *rest, value = coefficients
    for each in reversed(rest):
        value = value * t + each
    return value


def _slope(coefficients: Sequence[Tensor], t: Tensor) -> Tensor:
    if len(coefficients) == 1:
        return torch.zeros_like(t)
    _, linear, *others = coefficients
    return _horner([linear, *(power * each for power, each in enumerate(others, 2))], t)


def _gradient_at_weight(to_rows: Sequence[Tensor], t: Tensor, weight: Tensor) -> Tensor:
    powers = [torch.ones_like(t)]
    for _ in range(1, weight.shape[2]):
        powers.append(powers[-1] * t)
    over = [0, *range(2, t.dim())]
    per_channel = [(to_row * power).sum(over) for to_row in to_rows for power in powers]
    mean, log_var, logit = torch.stack(per_channel, dim=1).view(weight.shape).chunk(3, dim=1)
    log_var = log_var * torch.exp(weight.to(t.dtype).chunk(3, dim=1)[1])
    return torch.cat([mean, log_var, logit], dim=1).to(weight.dtype)
