"""The formulas of the step on loaded values; `backends.torch.formulas` has the same five functions, with the reasons.

Tiles are (ROWS, COLUMNS) of the compute dtype, or broadcast to it. What is not used of a result costs nothing.
"""

import functools
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ladder_kernels.backends.triton.math import (
    exp,
    exp_of_minus_half,
    exp_with_subnormals,
    log,
    log1p_over,
    maximum,
    minimum,
    reciprocal,
    rsqrt,
    sqrt,
)
from ladder_kernels.variance import VarianceMap


class Variance(NamedTuple):
    """A `VarianceMap` as a kernel's argument: constants of the compilation, None where it has no bound.

    Triton 3.3 takes no tuple for a `tl.constexpr`, but it takes one of them.
    """

    kind: Any
    raw_min: Any
    raw_max: Any
    beta: Any
    floor: Any
    has_exponent: Any  # of `Gaussian`: which part of std is more than a constant
    has_rest: Any

    @staticmethod
    @functools.cache
    def of(variance: VarianceMap) -> "Variance":
        has_exponent = variance.floor == 0.0
        has_rest = variance.kind in ("stable", "softplus")
        values = (*variance.fields(), has_exponent, has_rest)
        return Variance(*(None if value is None else tl.constexpr(value) for value in values))


class Gaussian(NamedTuple):
    """std is exp(exponent) * rest: in maps without a floor it leaves the range of floats long before its parts do.

    A map that needs one of them only has 0 or 1 for the other one (`Variance.has_exponent` and `.has_rest`).
    """

    mean: Any
    std: Any
    exponent: Any
    rest: Any
    inverse_a: Any  # exp(-exponent) is inverse_a * inverse_b; neither is infinite: 0 / std is 0
    inverse_b: Any
    inverse_rest: Any  # 1 / rest
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
    zero = tl.zeros([1, 1], mean.dtype)
    one = tl.full([1, 1], 1.0, mean.dtype)
    if variance.kind == "stable" and variance.has_exponent:
        below = minimum(raw, 0.0)
        exponent = 0.5 * below
        square = one + maximum(raw, 0.0)
        rest = sqrt(square, FAST)
        inverse = rsqrt(square, FAST)
        near, far = _inverse(exponent, FAST)
        std = exp_with_subnormals(exponent, FAST) * rest
        log_var = below + log(square, FAST)
        return Gaussian(mean, std, exponent, rest, near, far, inverse, raw, log_var, inverse * inverse, clamped)
    elif variance.kind == "stable":
        exponential = exp(minimum(raw, 0.0), FAST)
        var = exponential + maximum(raw, 0.0) + variance.floor
        std = sqrt(var, FAST)
        inverse = rsqrt(var, FAST)
        slope = exponential * inverse * inverse
        return Gaussian(mean, std, zero, std, one, one, inverse, raw, log(var, FAST), slope, clamped)
    elif variance.kind == "softplus":
        exponent, exponential, rest, half_over = _softplus(raw * variance.beta, FAST)
        rest = rest * (1.0 / variance.beta)
        std = exponential * rest
        if variance.has_exponent:
            log_var = 2.0 * (exponent + log(rest, FAST))
            inverse_a, inverse_b = _inverse(exponent, FAST)
            slope = reciprocal(half_over * rest, FAST)
        else:
            std += variance.floor
            log_var = 2.0 * log(std, FAST)
            exponent, inverse_a, inverse_b, rest = zero, one, one, std
            slope = exponential * reciprocal(half_over * std, FAST)
        inverse_rest = reciprocal(rest, FAST)
        return Gaussian(mean, std, exponent, rest, inverse_a, inverse_b, inverse_rest, raw, log_var, slope, clamped)
    else:
        IS_LOG_STD: tl.constexpr = variance.kind == "logstd"
        tl.static_assert(IS_LOG_STD or variance.kind == "exp", "no formula for this kind")
        exponent = raw if IS_LOG_STD else 0.5 * raw
        log_var = raw + raw if IS_LOG_STD else raw
        slope = one + one if IS_LOG_STD else one
        inverse_a, inverse_b = _inverse(exponent, FAST)
        std = exp_with_subnormals(exponent, FAST)
        return Gaussian(mean, std, exponent, one, inverse_a, inverse_b, one, raw, log_var, slope, clamped)


@triton.jit
def _softplus(x, FAST: tl.constexpr):
    """log(1 + exp(x)) as exp(exponent) * rest: exponent, exp(exponent), rest, and half of exp(exponent) / sigmoid(x).

    Neither exponent nor rest leaves the range of floats: rest is between log 2 and 1 up to x = 0, and about x above.
    """
    below = x < 0.0
    tail = exp(-tl.abs(x), FAST)
    over_tail = log1p_over(tail, FAST)
    rest = tl.where(below, over_tail, x + tail * over_tail)
    return minimum(x, 0.0), tl.where(below, tail, 1.0), rest, 0.5 * tail + 0.5


@triton.jit
def _inverse(exponent, FAST: tl.constexpr):
    """exp(-exponent) as a product of two, for it lies beyond the range of floats where x / std does not."""
    BOUND: tl.constexpr = 700.0 if exponent.dtype == tl.float64 else 87.0
    if FAST:
        half = exp_of_minus_half(maximum(exponent, -2.0 * BOUND), FAST)
        return half, half
    else:
        # Halves would double the rounding of the exponential; this second factor is 1 but far from 0.
        near = minimum(maximum(-exponent, -BOUND), BOUND)
        return exp(near, FAST), exp(minimum(-exponent - near, BOUND), FAST)


@triton.jit
def standard_normal(COMPUTE: tl.constexpr):
    """N(0, I)."""
    zero = tl.zeros([1, 1], COMPUTE)
    one = tl.full([1, 1], 1.0, COMPUTE)
    return Gaussian(zero, one, zero, one, one, one, one, zero, zero, one, _nowhere())


@triton.jit
def over_std(x, gaussian):
    """x / std."""
    return x * gaussian.inverse_a * gaussian.inverse_b * gaussian.inverse_rest


@triton.jit
def draw_latent(q, source, temperature, mode):
    """z of q: from noise, given, or the mean; `source` is the noise or the given z."""
    if mode.draw == "mode":
        return Latent(tl.zeros_like(q.mean), q.mean)
    elif mode.draw == "latent":
        return Latent(over_std(source - q.mean, q), source)
    else:
        eps = source
        if temperature is not None:
            # Two float32 summands: an argument is float32, and float64 needs more digits.
            eps = source * (tl.zeros([], q.mean.dtype) + temperature[0] + temperature[1])
        return Latent(eps, q.mean + q.std * eps)


@triton.jit
def minus_two_log_density(eps, gaussian):
    """-2 log N(z) without its log 2 pi, from the standardised residual of z.

    The factor is left to the sums, here and in `twice_divergence`: it would cost every element an instruction.
    """
    return eps * eps + gaussian.log_var


@triton.jit
def twice_divergence(q, p, latent, variance, mode):
    """2 KL(q || p) of every element: vq/vp - 1 - log(vq/vp) + (qm - pm)^2/vp, or 2 (log q(z) - log p(z))."""
    residual = over_std((q.mean if mode.kl == "analytic" else latent.z) - p.mean, p)
    if mode.kl == "analytic":
        _, excess = variance_ratio(q, p, variance, mode.fast)
        return residual * residual + excess
    else:
        return residual * residual + (p.log_var - minus_two_log_density(latent.eps, q))


@triton.jit
def _exp_excess(x):
    """exp(x) - 1 - x for |x| < 1/2: a minimax polynomial, relative error 5.3e-8."""
    return (
        x * x * (0.5 + x * (0.16666666 + x * (0.04166580 + x * (0.008333452 + x * (0.0013981997 + x * 1.987563e-4)))))
    )


@triton.jit
def _log_excess(u):
    """u - log(1 + u) for |u| < 1/8: a minimax polynomial, relative error 6.6e-8."""
    return u * u * (0.5 - u * (0.33333336 - u * (0.24998250 - u * (0.19998009 - u * (0.16963921 - u * 0.14572314)))))


@triton.jit
def variance_ratio(q, p, variance, FAST: tl.constexpr):
    """vq / vp - 1, and that minus log(vq / vp) without cancellation where the ratio is near 1.

    Without a rest log_var is exact, and ratios of stds leave the range of floats. With one log_var is rounded, and the
    ratio of stds keeps what the difference of two log_var cancels.
    """
    if not variance.has_rest:
        log_ratio = q.log_var - p.log_var
        if FAST:
            # The approximate logarithm has an absolute error near 1: there a polynomial takes over.
            is_near = tl.abs(log_ratio) < 0.5
            near = _exp_excess(log_ratio)
            minus_one = tl.where(is_near, near + log_ratio, exp(log_ratio, FAST) - 1.0)
            return minus_one, tl.where(is_near, near, minus_one - log_ratio)
        else:
            # The logarithm of the very same rounded ratio, so that both errors cancel; it can underflow.
            ratio = exp(log_ratio, FAST)
            log_ratio = tl.where(tl.abs(log_ratio) < 30.0, log(ratio, FAST), log_ratio)
            return ratio - 1.0, (ratio - 1.0) - log_ratio
    else:
        root = q.rest * p.inverse_rest
        far_log = log(root, FAST)  # the square would underflow
        if variance.has_exponent:
            difference = q.exponent - p.exponent
            root = root * exp(difference, FAST)
            far_log += difference
        if FAST:
            minus_one = (root - 1.0) * (root + 1.0)
            is_near = tl.abs(minus_one) < 0.125
            near = _log_excess(minus_one)
            return minus_one, tl.where(is_near, near, minus_one - 2.0 * far_log)
        else:
            ratio = root * root
            log_ratio = tl.where(tl.abs(ratio - 1.0) < 0.5, log(ratio, FAST), 2.0 * far_log)
            return ratio - 1.0, (ratio - 1.0) - log_ratio


@triton.jit
def _to_raw(grad_log_var, gaussian):
    """The gradient of the raw parameter from that of log_var; 0 outside of the bounds."""
    return tl.where(gaussian.clamped, 0.0, grad_log_var * gaussian.slope)


@triton.jit
def step_gradients(q, p, latent, grad_z, grad_kl, grad_log_q, variance, mode):
    """From the gradients that arrive at z, at the elementwise KL (None if and only if KL is "none") and at log q(z).

    None where nothing arrives: that term does not exist, for 0 times an infinity would be NaN.
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
    if mode.kl != "none":
        # Halved first, so that no product overflows where the result does not.
        half_kl = 0.5 * grad_kl
        residual = over_std((q.mean if mode.kl == "analytic" else latent.z) - p.mean, p)
        pull = over_std(grad_kl * residual, p)
        p_mean = -pull
        half_square = half_kl * residual * residual
        if mode.kl == "analytic":
            minus_one, _ = variance_ratio(q, p, variance, mode.fast)
            to_mean += pull
            to_log_var += half_kl * minus_one
            p_raw = _to_raw(-half_kl * minus_one - half_square, p)
        else:
            to_z += pull
            to_log_q += grad_kl
            p_raw = _to_raw(half_kl - half_square, p)

    HAS_Z: tl.constexpr = grad_z is not None or mode.kl == "monte_carlo"
    HAS_LOG_Q: tl.constexpr = grad_log_q is not None or mode.kl == "monte_carlo"
    if mode.draw == "latent":
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
        if mode.draw != "mode":
            to_log_var += 0.5 * to_z * (latent.eps * q.std)
    q_raw = zero
    # Triton 3.3 has no `a or b or c`.
    if (mode.kl != "none" or HAS_LOG_Q) or mode.draw != "mode":
        q_raw = _to_raw(to_log_var, q)
    return StepGradients(to_mean, q_raw, p_mean, p_raw, to_z)
