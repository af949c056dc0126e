"""The formulas of the step on plain tensors, elementwise and differentiable.

`logvar` is a raw log-variance after the clamp; `std` is the standard deviation it maps to. Everything is written in
terms of std and of ratios of stds, so that no variance under- or overflows where its root does not.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-6
"""Added to the stable variance; CAREamics' `var_eps`."""


def clamp_logvar(logvar: Tensor, logvar_max: float | None) -> Tensor:
    """min(logvar, logvar_max); NaN stays NaN."""
    return logvar if logvar_max is None else logvar.clamp(max=logvar_max)


def variance(logvar: Tensor, stable: bool, floor: float = VARIANCE_FLOOR) -> Tensor:
    """Stable: exp(l) for l <= 0, 1 + l above (once differentiable at 0), plus the floor. Naive: exp(l)."""
    if not stable:
        return torch.exp(logvar)
    return torch.exp(logvar.clamp(max=0)) + logvar.clamp(min=0) + floor


def log_variance(logvar: Tensor, stable: bool) -> Tensor:
    """log of `variance`; in the naive map the log-variance itself."""
    return torch.log(variance(logvar, stable)) if stable else logvar


def max_log_variance(logvar: Tensor, stable: bool) -> Tensor:
    """The largest log-variance (), detached; the map is monotone, so it is applied to the largest raw one.

    -inf where there is none; NaN propagates.
    """
    if logvar.numel() == 0:
        return logvar.new_full((), -math.inf)
    return log_variance(logvar.detach().max(), stable)


class Gaussian(NamedTuple):
    """A diagonal Gaussian: its mean, std, log-variance, and what the chain rule needs of them."""

    mean: Tensor
    logvar: Tensor
    std: Tensor
    log_var: Tensor

    @staticmethod
    def from_raw(mean: Tensor, raw_logvar: Tensor, logvar_max: float | None, stable: bool) -> "Gaussian":
        logvar = clamp_logvar(raw_logvar, logvar_max)
        if stable:
            var = variance(logvar, stable)
            return Gaussian(mean, logvar, torch.sqrt(var), torch.log(var))
        return Gaussian(mean, logvar, torch.exp(0.5 * logvar), logvar)

    @staticmethod
    def standard(like: Tensor) -> "Gaussian":
        """N(0, I) as scalars."""
        zero = like.new_zeros(())
        return Gaussian(zero, zero, zero + 1, zero)


def log_variance_slope(gaussian: Gaussian, stable: bool) -> Tensor | float:
    """d log(variance) / d logvar, in (0, 1]: exp(min(l, 0)) / v; 1 in the naive map."""
    return torch.exp(gaussian.logvar.clamp(max=0)) / gaussian.std.square() if stable else 1.0


class VarianceRatio(NamedTuple):
    """vq / vp - 1 and log(vq / vp), of one and the same rounded ratio: where it is near 1 their difference cancels."""

    minus_one: Tensor
    log: Tensor


def variance_ratio(q: Gaussian, p: Gaussian, stable: bool) -> VarianceRatio:
    ratio = (q.std / p.std).square()
    if stable:
        return VarianceRatio(ratio - 1, torch.log(ratio))
    # The naive ratio can underflow where its logarithm does not; expm1 multiplies the logarithm's error far from 0.
    log = q.logvar - p.logvar
    return VarianceRatio(torch.where(log.abs() < 0.5, torch.expm1(log), ratio - 1), log)


def kl_analytic(q: Gaussian, p: Gaussian, stable: bool) -> Tensor:
    """1/2 [vq/vp - 1 - log(vq/vp) + (qm - pm)^2/vp]."""
    ratio = variance_ratio(q, p, stable)
    return 0.5 * ((ratio.minus_one - ratio.log) + ((q.mean - p.mean) / p.std).square())


def log_density(eps_squared: Tensor | float, gaussian: Gaussian) -> Tensor:
    """log N(z) without its -1/2 log 2 pi, from the squared standardised residual of z."""
    return -0.5 * (eps_squared + gaussian.log_var)
