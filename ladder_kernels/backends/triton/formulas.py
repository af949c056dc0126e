"""The formulas of the step on loaded values; `backends.torch.formulas` has the same five functions, with the reasons.

Tiles are (ROWS, COLUMNS) of the compute dtype, or broadcast to it. What is not used of a result costs nothing.
"""

import functools
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ladder_kernels.backends.triton.math import exp, exp_with_subnormals, log, maximum, minimum, rsqrt, sqrt
from ladder_kernels.variance import VarianceMap


class Variance(NamedTuple):
    """A `VarianceMap` as a kernel's argument: constants of the compilation, None where it has no bound.

    Triton 3.3 takes no tuple for a `tl.constexpr`, but it takes one of them.
    """

    kind: Any
    raw_min: Any
    raw_max: Any
    floor: Any

    @staticmethod
    @functools.cache
    def of(variance: VarianceMap) -> "Variance":
        values = (variance.kind, variance.raw_min, variance.raw_max, variance.floor)
        return Variance(*(None if value is None else tl.constexpr(value) for value in values))


class Gaussian(NamedTuple):
    mean: Any
    std: Any
    inverse: Any
    rest: Any  # 1 / std is inverse * rest: in the exp map it may lie far beyond the floats; else rest is 1
    raw: Any  # the raw parameter after the clamp
    log_var: Any
    slope: Any  # d log_var / d raw
    clamped: Any  # where the raw parameter lay outside of its bounds


class Latent(NamedTuple):
    eps: Any  # (z - mean) / std, temperature included
    z: Any


class StepGradients(NamedTuple):
    """With respect to the means, the raw parameters and a given latent; zero where nothing arrives."""

    q_mean: Any
    q_raw: Any
    p_mean: Any
    p_raw: Any
    latent: Any


@triton.jit
def _nowhere():
    """False (1, 1), by comparison: the interpreter of Triton 3.3 has no such constant. Compiled it is one."""
    return tl.zeros([1, 1], tl.int32) > 0


@triton.jit
def gaussian(mean, raw, variance, FAST: tl.constexpr):
    """The Gaussian of raw parameters."""
    clamped = _nowhere()
    # The bounds in the compute dtype: as plain constants they would be float32.
    if variance.raw_min is not None:
        raw_min = tl.full([], variance.raw_min, mean.dtype)
        clamped = clamped | (raw < raw_min)
        raw = maximum(raw, raw_min)
    if variance.raw_max is not None:
        raw_max = tl.full([], variance.raw_max, mean.dtype)
        clamped = clamped | (raw > raw_max)
        raw = minimum(raw, raw_max)
    one = tl.full([1, 1], 1.0, mean.dtype)
    if variance.kind == "stable":
        exponential = exp(minimum(raw, 0.0), FAST)
        var = exponential + maximum(raw, 0.0) + variance.floor
        inverse = rsqrt(var, FAST)
        slope = exponential * inverse * inverse
        return Gaussian(mean, sqrt(var, FAST), inverse, one, raw, log(var, FAST), slope, clamped)
    else:
        exponent = -0.5 * raw
        near = minimum(maximum(exponent, -87.0), 87.0)
        std = exp_with_subnormals(-exponent, FAST)
        return Gaussian(mean, std, exp(near, FAST), exp(exponent - near, FAST), raw, raw, one, clamped)


@triton.jit
def standard_normal(COMPUTE: tl.constexpr):
    """N(0, I)."""
    zero = tl.zeros([1, 1], COMPUTE)
    one = tl.full([1, 1], 1.0, COMPUTE)
    return Gaussian(zero, one, one, one, zero, zero, one, _nowhere())


@triton.jit
def over_std(x, gaussian):
    """x / std."""
    return x * gaussian.inverse * gaussian.rest


@triton.jit
def draw_latent(q, source, temperature, DRAW: tl.constexpr):
    """z of q: from noise, given, or the mean; `source` is the noise or the given z."""
    if DRAW == "mode":
        return Latent(tl.zeros_like(q.mean), q.mean)
    elif DRAW == "latent":
        return Latent(over_std(source - q.mean, q), source)
    else:
        eps = source
        if temperature is not None:
            # Two float32 summands: an argument is float32, and float64 needs more digits.
            eps = source * (tl.zeros([], q.mean.dtype) + temperature[0] + temperature[1])
        return Latent(eps, q.mean + q.std * eps)


@triton.jit
def log_density(eps, gaussian):
    """log N(z) without its -1/2 log 2 pi and times -2, from the standardised residual of z.

    The factor is left to the sums, here and in `divergence`: it would cost every element an instruction.
    """
    return eps * eps + gaussian.log_var


@triton.jit
def divergence(q, p, latent, variance, KL: tl.constexpr, FAST: tl.constexpr):
    """2 KL(q || p) of every element: vq/vp - 1 - log(vq/vp) + (qm - pm)^2/vp, or 2 (log q(z) - log p(z))."""
    residual = over_std((q.mean if KL == "analytic" else latent.z) - p.mean, p)
    if KL == "analytic":
        _, excess = variance_ratio(q, p, variance, FAST)
        return residual * residual + excess
    else:
        return residual * residual + (p.log_var - log_density(latent.eps, q))


@triton.jit
def _series(u, c2, c3, c4, c5, c6, c7, c8, c9):
    """u^2 (c2 + c3 u + ... + c9 u^7)."""
    return u * u * (c2 + u * (c3 + u * (c4 + u * (c5 + u * (c6 + u * (c7 + u * (c8 + u * c9)))))))


@triton.jit
def variance_ratio(q, p, variance, FAST: tl.constexpr):
    """vq / vp - 1, and that minus log(vq / vp) without cancellation where the ratio is near 1.

    It asks for the kind: in the exp map log_var is exact, and ratios of stds leave the range of floats; in the stable
    one log_var is rounded, and the ratio of stds keeps what the difference of two log_var cancels.
    """
    if FAST:
        # The approximate logarithm has an absolute error near 1: there a series takes over.
        if variance.kind == "stable":
            root = q.std * p.inverse
            minus_one = (root - 1.0) * (root + 1.0)
            log_ratio = 2.0 * log(root, FAST)  # the square would underflow
            is_near = tl.abs(minus_one) < 0.125
            near = _series(minus_one, 1 / 2, -1 / 3, 1 / 4, -1 / 5, 1 / 6, -1 / 7, 1 / 8, -1 / 9)
        else:
            log_ratio = q.log_var - p.log_var
            is_near = tl.abs(log_ratio) < 0.5
            near = _series(log_ratio, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880)
            minus_one = tl.where(is_near, near + log_ratio, exp(log_ratio, FAST) - 1.0)
        return minus_one, tl.where(is_near, near, minus_one - log_ratio)
    else:
        # The logarithm of the very same rounded ratio, so that both errors cancel; it underflows in the exp map.
        if variance.kind == "stable":
            root = q.std * p.inverse
            ratio = root * root
            log_ratio = log(ratio, FAST)
        else:
            difference = q.log_var - p.log_var
            ratio = exp(difference, FAST)
            log_ratio = tl.where(tl.abs(difference) < 30.0, log(ratio, FAST), difference)
        return ratio - 1.0, (ratio - 1.0) - log_ratio


@triton.jit
def _to_raw(grad_log_var, gaussian):
    """The gradient of the raw parameter from that of log_var; 0 outside of the bounds."""
    return tl.where(gaussian.clamped, 0.0, grad_log_var * gaussian.slope)


@triton.jit
def step_gradients(
    q, p, latent, grad_z, grad_kl, grad_log_q, variance, DRAW: tl.constexpr, KL: tl.constexpr, FAST: tl.constexpr
):
    """From the gradients that arrive at z, at the elementwise KL (None if and only if KL is "none") and at log q(z).

    None where nothing arrives: that term does not exist, for 0 times an infinity would be NaN. DRAW and KL are what
    gradients flow through: "mode" where none flows through eps, "none" where no KL was used.
    """
    zero = tl.zeros_like(q.mean)
    to_z = zero
    to_mean = zero
    to_log_var = zero
    to_log_q = tl.zeros([1, 1], q.mean.dtype)
    p_mean = zero
    p_raw = zero
    if grad_z is not None:
        to_z += grad_z
    if grad_log_q is not None:
        to_log_q += grad_log_q
    if KL != "none":
        # Halved first, so that no product overflows where the result does not.
        half_kl = 0.5 * grad_kl
        residual = over_std((q.mean if KL == "analytic" else latent.z) - p.mean, p)
        pull = over_std(grad_kl * residual, p)
        p_mean = -pull
        half_square = half_kl * residual * residual
        if KL == "analytic":
            minus_one, _ = variance_ratio(q, p, variance, FAST)
            to_mean += pull
            to_log_var += half_kl * minus_one
            p_raw = _to_raw(-half_kl * minus_one - half_square, p)
        else:
            to_z += pull
            to_log_q += grad_kl
            p_raw = _to_raw(half_kl - half_square, p)

    HAS_Z: tl.constexpr = grad_z is not None or KL == "monte_carlo"
    HAS_LOG_Q: tl.constexpr = grad_log_q is not None or KL == "monte_carlo"
    if DRAW == "latent":
        # z is an input: log q depends on it, on the mean and on the std through eps = (z - mean) / std.
        score = over_std(to_log_q * latent.eps, q)
        to_mean += score
        to_z -= score
        to_log_var += 0.5 * to_log_q * (latent.eps * latent.eps - 1.0)
    else:
        # z = mean + std eps: eps is a constant, so log q depends on the std alone.
        if HAS_Z:
            to_mean += to_z
        if HAS_LOG_Q:
            to_log_var -= 0.5 * to_log_q
        if DRAW != "mode":
            to_log_var += 0.5 * to_z * (latent.eps * q.std)
    q_raw = zero
    # Triton 3.3 has no `a or b or c`.
    if (KL != "none" or HAS_LOG_Q) or DRAW != "mode":
        q_raw = _to_raw(to_log_var, q)
    return StepGradients(to_mean, q_raw, p_mean, p_raw, to_z)
