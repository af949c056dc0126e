"""The formulas of the step on plain tensors, elementwise and differentiable.

The same five functions, in this order, are in `backends/triton/formulas.py` and `csrc/formulas.h`: `gaussian`,
`draw_latent`, `log_density`, `divergence`, `step_gradients`. Everything is written in terms of std and of ratios of
stds, so that no variance under- or overflows where its root does not, and without `clamp`, whose gradient at its bound
depends on torch's version.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ladder_kernels.variance import VarianceMap


class Gaussian(NamedTuple):
    """A diagonal Gaussian (B, C, *S), and what the chain rule needs of its map.

    std is exp(exponent) * rest: in maps without a floor it leaves the range of floats long before its parts do. A part
    that is None is not there: exponent 0, rest 1.
    """

    mean: Tensor
    std: Tensor
    log_var: Tensor
    exponent: Tensor | None
    """Exact up to one rounding of the raw parameter, so that ratios of stds take its difference."""
    rest: Tensor | None
    slope: tuple[Tensor | float, Tensor] | None
    """d log_var / d raw inside the clamp, as numerator and denominator: a forward pass need not divide. None: 1."""
    clamped: Tensor | None
    """Where the raw parameter lay outside of its clamp; None: nowhere."""

    def over_std(self, x: Tensor) -> Tensor:
        """x / std."""
        if self.exponent is None:
            return x if self.rest is None else x / self.std
        # In two parts, of which the second is 1 unless std leaves the range of floats. Neither is 0: 0 over it is 0.
        bound = self.exponent.new_full((), 0.98 * math.log(torch.finfo(x.dtype).max))
        inside = torch.maximum(torch.minimum(self.exponent, bound), -bound)
        beyond = torch.maximum(self.exponent - inside, -bound)
        divisor = torch.exp(inside) if self.rest is None else torch.exp(inside) * self.rest
        return x / divisor / torch.exp(beyond)

    def to_raw(self, grad_log_var: Tensor) -> Tensor:
        """The gradient of the raw parameter from that of log_var; 0 outside of the clamp."""
        grad = grad_log_var if self.slope is None else grad_log_var * (self.slope[0] / self.slope[1])
        return grad if self.clamped is None else torch.where(self.clamped, 0.0, grad)


def clamp(raw: Tensor, variance: VarianceMap) -> tuple[Tensor, Tensor | None]:
    """r' and where it differs from r; NaN stays NaN. The gradient passes inside the bounds and at them."""
    clamped = None
    for bound, is_outside in ((variance.raw_min, torch.lt), (variance.raw_max, torch.gt)):
        if bound is not None:
            outside = is_outside(raw, bound)
            raw = torch.where(outside, bound, raw)
            clamped = outside if clamped is None else clamped | outside
    return raw, clamped


def gaussian(mean: Tensor, raw: Tensor, variance: VarianceMap) -> Gaussian:
    """The Gaussian of raw parameters; the only place here that knows the kinds of `VarianceMap`."""
    raw, clamped = clamp(raw, variance)
    zero = raw.new_zeros(())
    # At 0 minimum and maximum pass half of the gradient each, together all of it.
    if variance.kind == "stable" and variance.floor == 0.0:
        below, square = torch.minimum(raw, zero), 1.0 + torch.maximum(raw, zero)
        exponent, rest = 0.5 * below, torch.sqrt(square)
        log_var = below + torch.log(square)
        return Gaussian(mean, torch.exp(exponent) * rest, log_var, exponent, rest, (1.0, square), clamped)
    if variance.kind == "stable":
        exponential = torch.exp(torch.minimum(raw, zero))
        var = exponential + torch.maximum(raw, zero) + variance.floor
        std = torch.sqrt(var)
        return Gaussian(mean, std, torch.log(var), None, std, (exponential, var), clamped)
    if variance.kind == "softplus":
        exponent, rest, sigmoid_over = _softplus(variance.beta * raw)
        rest = rest / variance.beta
        if variance.floor == 0.0:
            log_var = 2.0 * (exponent + torch.log(rest))
            slope: tuple[Tensor | float, Tensor] = (2.0, sigmoid_over * rest)
            return Gaussian(mean, torch.exp(exponent) * rest, log_var, exponent, rest, slope, clamped)
        exponential = torch.exp(exponent)
        std = exponential * rest + variance.floor
        slope = (2.0 * exponential, sigmoid_over * std)
        return Gaussian(mean, std, 2.0 * torch.log(std), None, std, slope, clamped)
    if variance.kind == "logstd":
        return Gaussian(mean, torch.exp(raw), raw + raw, raw, None, (2.0, raw.new_ones(())), clamped)
    assert variance.kind == "exp", f"no formula for the kind {variance.kind!r}"
    exponent = 0.5 * raw
    return Gaussian(mean, torch.exp(exponent), raw, exponent, None, None, clamped)


def _softplus(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log(1 + exp(x)) as exp(exponent) * rest, and exp(exponent) / sigmoid(x); neither leaves the range of floats.

    `rest` is between log 2 and 1 up to x = 0, and about x above.
    """
    zero = x.new_zeros(())
    far = x < -_SOFTPLUS_IS_EXACT
    # The branch that `where` leaves gets a harmless value: 0 times an infinite derivative would be NaN.
    near = torch.where(far, zero, x)
    rest = softplus(near, threshold=_SOFTPLUS_IS_EXACT) * torch.exp(-torch.minimum(near, zero))
    return torch.minimum(x, zero), torch.where(far, 1.0, rest), 1.0 + torch.exp(-x.abs())


# Beyond it log(1 + exp(x)) is x, or exp(x), to every digit of float64.
_SOFTPLUS_IS_EXACT = 40.0


def standard_normal(like: Tensor) -> Gaussian:
    """N(0, I) as scalars, of the dtype and device of `like`."""
    zero = like.new_zeros(())
    return Gaussian(zero, zero + 1, zero, None, None, None, None)


class Latent(NamedTuple):
    """A latent and its standardised residual eps = (z - mean) / std, the temperature included."""

    eps: Tensor
    z: Tensor


def draw_latent(q: Gaussian, draw: str, source: Tensor | None, temperature: float) -> Latent:
    """z of q: from noise, given, or the mean; `source` is the noise (also of a seed) or the given z."""
    if draw == "mode" or source is None:
        # A copy: z must not be a view of the parameters.
        return Latent(q.mean.new_zeros(()), q.mean.clone())
    if draw == "latent":
        return Latent(q.over_std(source - q.mean), source)
    eps = source if temperature == 1.0 else source * temperature
    return Latent(eps, q.mean + q.std * eps)


def log_density(eps: Tensor, gaussian: Gaussian) -> Tensor:
    """log N(z) without its -1/2 log 2 pi, from the standardised residual of z."""
    return -0.5 * (eps * eps + gaussian.log_var)


def divergence(q: Gaussian, p: Gaussian, latent: Latent, analytic: bool) -> Tensor:
    """KL(q || p) of every element: 1/2 [vq/vp - 1 - log(vq/vp) + (qm - pm)^2/vp], or log q(z) - log p(z)."""
    residual = p.over_std((q.mean if analytic else latent.z) - p.mean)
    if not analytic:
        return log_density(latent.eps, q) - log_density(residual, p)
    ratio = _variance_ratio(q, p)
    return 0.5 * ((ratio.minus_one - ratio.log) + residual.square())


class _VarianceRatio(NamedTuple):
    """vq / vp - 1 and log(vq / vp), of one and the same rounded ratio: where it is near 1 their difference cancels."""

    minus_one: Tensor
    log: Tensor


def _variance_ratio(q: Gaussian, p: Gaussian) -> _VarianceRatio:
    half_log = _minus(q.exponent, p.exponent)
    rest = _over(q.rest, p.rest)
    if half_log is None:
        ratio = q.std.square() if rest is None else rest.square()
        return _VarianceRatio(ratio - 1, torch.log(ratio))
    if rest is None:
        # The ratio can underflow where its logarithm does not; expm1 multiplies the logarithm's error far from 0.
        log = 2.0 * half_log
        near = log.abs() < 0.5
        return _VarianceRatio(torch.where(near, torch.expm1(torch.where(near, log, 0.0)), torch.exp(log) - 1), log)
    ratio = (torch.exp(half_log) * rest).square()
    near = (ratio - 1).abs() < 0.5
    log = torch.where(near, torch.log(torch.where(near, ratio, 1.0)), 2.0 * (half_log + torch.log(rest)))
    return _VarianceRatio(ratio - 1, log)


def _minus(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x if y is None else -y if x is None else x - y


def _over(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x if y is None else y.reciprocal() if x is None else x / y


class IncomingGradients(NamedTuple):
    """Gradients that arrive at z, at the elementwise KL and at log q(z), broadcastable to (B, C, *S).

    None where nothing arrives: that term does not exist, for 0 times an infinity would be NaN.
    """

    z: Tensor | None
    kl: Tensor | None
    log_q: Tensor | None


class StepGradients(NamedTuple):
    """With respect to the means, the raw parameters and a given latent; None where nothing arrives."""

    q_mean: Tensor | None
    q_raw: Tensor | None
    p_mean: Tensor | None
    p_raw: Tensor | None
    latent: Tensor | None


def step_gradients(
    q: Gaussian, p: Gaussian, latent: Latent, draw: str, analytic: bool, incoming: IncomingGradients
) -> StepGradients:
    """By hand, with grad raw = slope * grad log_var, so that nothing divides by a variance.

    The gradient of a KL is halved first, so that no product overflows where the result does not.
    """
    to_z, to_log_q = incoming.z, incoming.log_q
    to_mean = to_q_log_var = p_mean = p_raw = None
    if incoming.kl is not None:
        half_kl = 0.5 * incoming.kl
        residual = p.over_std((q.mean if analytic else latent.z) - p.mean)
        pull = p.over_std(incoming.kl * residual)
        p_mean = -pull
        if analytic:
            to_mean = pull
            to_q_log_var = half_kl * _variance_ratio(q, p).minus_one
            p_raw = p.to_raw(-to_q_log_var - half_kl * residual * residual)
        else:
            to_z = _add(to_z, pull)
            to_log_q = _add(to_log_q, incoming.kl)
            p_raw = p.to_raw(half_kl - half_kl * residual * residual)

    if draw == "latent":
        # z is an input: log q depends on it, on the mean and on the std through eps = (z - mean) / std.
        if to_log_q is not None:
            score = q.over_std(to_log_q * latent.eps)
            to_mean = _add(to_mean, score)
            to_z = _add(to_z, -score)
            to_q_log_var = _add(to_q_log_var, 0.5 * to_log_q * (latent.eps * latent.eps - 1))
    else:
        # z = mean + std eps: eps is a constant, so log q depends on the std alone.
        if to_z is not None:
            to_mean = _add(to_mean, to_z)
            if draw != "mode":
                to_q_log_var = _add(to_q_log_var, 0.5 * to_z * (latent.eps * q.std))
        if to_log_q is not None:
            to_q_log_var = _add(to_q_log_var, -0.5 * to_log_q)
    q_raw = None if to_q_log_var is None else q.to_raw(to_q_log_var)
    return StepGradients(to_mean, q_raw, p_mean, p_raw, to_z if draw == "latent" else None)


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term
