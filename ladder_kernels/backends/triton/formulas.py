"""The formulas of the step on loaded values; `backends.torch.formulas` has them in plain torch, with the reasons."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.math import exp, exp_with_subnormals, log, maximum, minimum, rsqrt, sqrt

VARIANCE_FLOOR = tl.constexpr(1e-6)


@triton.jit
def clamp(logvar, LOGVAR_MAX: tl.constexpr):
    if LOGVAR_MAX is None:
        return logvar
    else:
        return minimum(logvar, LOGVAR_MAX)


@triton.jit
def gaussian(logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    """std, 1 / std, log variance and d log variance / d logvar. What is not used costs nothing."""
    if STABLE:
        negative = exp(minimum(logvar, 0.0), FAST)
        var = negative + maximum(logvar, 0.0) + VARIANCE_FLOOR
        inverse_std = rsqrt(var, FAST)
        return sqrt(var, FAST), inverse_std, log(var, FAST), negative * inverse_std * inverse_std
    else:
        # Either may be subnormal where the other is not: neither is the reciprocal of the other, nor flushed to zero.
        std, inverse_std = exp_with_subnormals(0.5 * logvar, FAST), exp_with_subnormals(-0.5 * logvar, FAST)
        return std, inverse_std, logvar, tl.full([], 1.0, logvar.dtype)


@triton.jit
def log_variance(logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    _, _, log_var, _ = gaussian(logvar, STABLE, FAST)
    return log_var


@triton.jit
def _series(u, c2, c3, c4, c5, c6, c7, c8, c9):
    """u^2 (c2 + c3 u + ... + c9 u^7)."""
    return u * u * (c2 + u * (c3 + u * (c4 + u * (c5 + u * (c6 + u * (c7 + u * (c8 + u * c9)))))))


@triton.jit
def variance_ratio(q_std, q_logvar, p_inverse_std, p_logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    """vq / vp - 1, and that minus log(vq / vp) without cancellation where the ratio is near 1."""
    root = q_std * p_inverse_std
    ratio = root * root
    difference = q_logvar - p_logvar
    if FAST:
        # The approximate logarithm has an absolute error near 1: there a series takes over.
        if STABLE:
            minus_one = (root - 1.0) * (root + 1.0)
            log_ratio = log(ratio, FAST)
            is_near = tl.abs(minus_one) < 0.125
            near = _series(minus_one, 1 / 2, -1 / 3, 1 / 4, -1 / 5, 1 / 6, -1 / 7, 1 / 8, -1 / 9)
        else:
            log_ratio = difference
            is_near = tl.abs(difference) < 0.5
            near = _series(difference, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880)
            minus_one = tl.where(is_near, near + difference, ratio - 1.0)
        return minus_one, tl.where(is_near, near, minus_one - log_ratio)
    else:
        # The logarithm of the very same rounded ratio, so that both errors cancel; it underflows in the naive map.
        minus_one = ratio - 1.0
        log_ratio = log(ratio, FAST)
        if not STABLE:
            log_ratio = tl.where(tl.abs(difference) < 30.0, log_ratio, difference)
        return minus_one, minus_one - log_ratio
