"""The formulas of the step on loaded values; `backends.torch.formulas` has them in plain torch, with the reasons."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.math import exp, exp_with_subnormals, log, maximum, minimum, rsqrt, sqrt

VARIANCE_FLOOR = tl.constexpr(1e-6)


@triton.jit
def bound(LOGVAR_MAX: tl.constexpr, like):
    """The clamp's bound in the compute dtype: a plain constant would be float32."""
    return tl.full([], LOGVAR_MAX, like.dtype)


@triton.jit
def clamp(logvar, LOGVAR_MAX: tl.constexpr):
    if LOGVAR_MAX is None:
        return logvar
    else:
        return minimum(logvar, bound(LOGVAR_MAX, logvar))


@triton.jit
def gaussian(logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    """std, two factors of 1 / std, log variance and d log variance / d logvar. What is not used costs nothing.

    The second factor is 1 wherever 1 / std is a float; in the naive map it may lie far beyond.
    """
    if STABLE:
        negative = exp(minimum(logvar, 0.0), FAST)
        var = negative + maximum(logvar, 0.0) + VARIANCE_FLOOR
        inverse_std = rsqrt(var, FAST)
        one = tl.full([], 1.0, logvar.dtype)
        return sqrt(var, FAST), inverse_std, one, log(var, FAST), negative * inverse_std * inverse_std
    else:
        exponent = -0.5 * logvar
        near = minimum(maximum(exponent, -87.0), 87.0)
        one = tl.full([], 1.0, logvar.dtype)
        return exp_with_subnormals(-exponent, FAST), exp(near, FAST), exp(exponent - near, FAST), logvar, one


@triton.jit
def over_std(x, inverse, rest, STABLE: tl.constexpr):
    """x / std."""
    if STABLE:
        return x * inverse
    else:
        return x * inverse * rest


@triton.jit
def draw_latent(mean, std, inverse, rest, source, temperature, DRAW: tl.constexpr, STABLE: tl.constexpr):
    """The standardised residual eps = (z - mean) / std, temperature included, and z."""
    if DRAW == "mode":
        return tl.zeros_like(mean), mean
    elif DRAW == "latent":
        return over_std(source - mean, inverse, rest, STABLE), source
    else:
        eps = source
        if temperature is not None:
            # Two float32 summands: an argument is float32, and float64 needs more digits.
            eps = source * (tl.zeros([], mean.dtype) + temperature[0] + temperature[1])
        return eps, mean + std * eps


@triton.jit
def log_variance(logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    _, _, _, log_var, _ = gaussian(logvar, STABLE, FAST)
    return log_var


@triton.jit
def _series(u, c2, c3, c4, c5, c6, c7, c8, c9):
    """u^2 (c2 + c3 u + ... + c9 u^7)."""
    return u * u * (c2 + u * (c3 + u * (c4 + u * (c5 + u * (c6 + u * (c7 + u * (c8 + u * c9)))))))


@triton.jit
def variance_ratio(q_std, q_logvar, p_inverse, p_logvar, STABLE: tl.constexpr, FAST: tl.constexpr):
    """vq / vp - 1, and that minus log(vq / vp) without cancellation where the ratio is near 1."""
    if FAST:
        # The approximate logarithm has an absolute error near 1: there a series takes over.
        if STABLE:
            root = q_std * p_inverse
            minus_one = (root - 1.0) * (root + 1.0)
            log_ratio = 2.0 * log(root, FAST)  # the square would underflow
            is_near = tl.abs(minus_one) < 0.125
            near = _series(minus_one, 1 / 2, -1 / 3, 1 / 4, -1 / 5, 1 / 6, -1 / 7, 1 / 8, -1 / 9)
        else:
            log_ratio = q_logvar - p_logvar
            is_near = tl.abs(log_ratio) < 0.5
            near = _series(log_ratio, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880)
            minus_one = tl.where(is_near, near + log_ratio, exp(log_ratio, FAST) - 1.0)
        return minus_one, tl.where(is_near, near, minus_one - log_ratio)
    else:
        # The logarithm of the very same rounded ratio, so that both errors cancel; it underflows in the naive map.
        if STABLE:
            root = q_std * p_inverse
            ratio = root * root
            log_ratio = log(ratio, FAST)
        else:
            difference = q_logvar - p_logvar
            ratio = exp(difference, FAST)
            log_ratio = tl.where(tl.abs(difference) < 30.0, log(ratio, FAST), difference)
        return ratio - 1.0, (ratio - 1.0) - log_ratio
