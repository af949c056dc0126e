"""The formulas of the step on plain tensors, elementwise and differentiable.

`logvar` is a raw log-variance after the clamp; `std` is the standard deviation it maps to. Everything is written in
terms of std and of ratios of stds, so that no variance under- or overflows where its root does not, and without
`clamp`, whose gradient at its bound depends on torch's version.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-6
"""Added to the stable variance; CAREamics' `var_eps`."""


def clamp_logvar(logvar: Tensor, logvar_max: float | None) -> Tensor:
    """min(logvar, logvar_max); NaN stays NaN. The gradient passes up to the bound and at it, and not above."""
    return logvar if logvar_max is None else torch.where(logvar > logvar_max, logvar_max, logvar)


def _exponential_part(logvar: Tensor) -> Tensor:
    """exp(min(l, 0)): of the stable variance, and v times its slope."""
    return torch.exp(torch.minimum(logvar, logvar.new_zeros(())))


def variance(logvar: Tensor, stable: bool, floor: float = VARIANCE_FLOOR) -> Tensor:
    """Stable: exp(l) for l <= 0, 1 + l above (once differentiable at 0), plus the floor. Naive: exp(l)."""
    if not stable:
        return torch.exp(logvar)
    # At 0 minimum and maximum pass half of the gradient each, together all of it.
    return _exponential_part(logvar) + torch.maximum(logvar, logvar.new_zeros(())) + floor


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
    root: Tensor | None
    """sqrt(std), in the naive map: std and its inverse leave the range of floats long before these roots do."""

    @staticmethod
    def from_raw(mean: Tensor, raw_logvar: Tensor, logvar_max: float | None, stable: bool) -> "Gaussian":
        logvar = clamp_logvar(raw_logvar, logvar_max)
        if stable:
            var = variance(logvar, stable)
            return Gaussian(mean, logvar, torch.sqrt(var), torch.log(var), None)
        root = torch.exp(0.25 * logvar)
        return Gaussian(mean, logvar, root * root, logvar, root)

    @staticmethod
    def standard(like: Tensor) -> "Gaussian":
        """N(0, I) as scalars."""
        zero = like.new_zeros(())
        return Gaussian(zero, zero, zero + 1, zero, zero + 1)

    def over_std(self, x: Tensor) -> Tensor:
        """x / std."""
        return x / self.std if self.root is None else x / self.root / self.root


def log_variance_slope(gaussian: Gaussian, stable: bool) -> Tensor | float:
    """d log(variance) / d logvar, in (0, 1]: exp(min(l, 0)) / v; 1 in the naive map."""
    return _exponential_part(gaussian.logvar) / gaussian.std.square() if stable else 1.0


class VarianceRatio(NamedTuple):
    """vq / vp - 1 and log(vq / vp), of one and the same rounded ratio: where it is near 1 their difference cancels."""

    minus_one: Tensor
    log: Tensor


def variance_ratio(q: Gaussian, p: Gaussian, stable: bool) -> VarianceRatio:
    if stable:
        ratio = (q.std / p.std).square()
        return VarianceRatio(ratio - 1, torch.log(ratio))
    # The naive ratio can underflow where its logarithm does not; expm1 multiplies the logarithm's error far from 0.
    log = q.logvar - p.logvar
    near = log.abs() < 0.5
    far = torch.exp(log) - 1
    return VarianceRatio(torch.where(near, torch.expm1(torch.where(near, log, 0.0)), far), log)


def kl_analytic(q: Gaussian, p: Gaussian, stable: bool) -> Tensor:
    """1/2 [vq/vp - 1 - log(vq/vp) + (qm - pm)^2/vp]."""
    ratio = variance_ratio(q, p, stable)
    return 0.5 * ((ratio.minus_one - ratio.log) + p.over_std(q.mean - p.mean).square())


def log_density(eps_squared: Tensor | float, gaussian: Gaussian) -> Tensor:
    """log N(z) without its -1/2 log 2 pi, from the squared standardised residual of z."""
    return -0.5 * (eps_squared + gaussian.log_var)
