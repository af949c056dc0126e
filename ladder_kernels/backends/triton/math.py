"""Elementary functions on loaded values: the GPU's approximate instructions, or Triton's own.

FAST takes single instructions of NVIDIA's special function unit through inline PTX (flush-to-zero where a subnormal
does not matter, so that no instruction is spent on it). Otherwise Triton's functions serve: the interpreter, float64
and other GPUs.

The errors beside the functions are those of the float32 arithmetic around the instruction, measured against float64
over the whole range with an exact instruction in its place; the instruction's own error comes on top.
"""

import triton
import triton.language as tl

from ladder_kernels.backends import step

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
TWO_PI = tl.constexpr(6.283185307179586)
HALF_LOG_TWO_PI = tl.constexpr(step.HALF_LOG_TWO_PI)


@triton.jit
def _approximate(instruction: tl.constexpr, x):
    return tl.inline_asm_elementwise(instruction, constraints="=f,f", args=[x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def exp(x, FAST: tl.constexpr):
    # Relative error 5.5e-8 for x >= -1, 8.5e-7 for x >= -14, 3.8e-6 for x >= -87, from the rounded product.
    # In the stable variance exp(x) + 1e-6 that leaves 7.6e-7 at most.
    if FAST:
        return _approximate("ex2.approx.ftz.f32 $0, $1;", x * LOG2_E)
    else:
        return tl.exp(x)


@triton.jit
def exp_of_minus_half(x, FAST: tl.constexpr):
    """exp(-x / 2) in one product."""
    if FAST:
        return _approximate("ex2.approx.ftz.f32 $0, $1;", x * (-0.5 * LOG2_E))
    else:
        return tl.exp(-0.5 * x)


@triton.jit
def exp_with_subnormals(x, FAST: tl.constexpr):
    # Relative error 3.8e-6 for |x| <= 88; for a subnormal result 6.7e-6 beside its own rounding.
    if FAST:
        return _approximate("ex2.approx.f32 $0, $1;", x * LOG2_E)
    else:
        return tl.exp(x)


@triton.jit
def log(x, FAST: tl.constexpr):
    # Relative error 1.1e-7 away from x = 1; 1.2e-6 absolute at the smallest variance, 1e-6.
    if FAST:
        return _approximate("lg2.approx.ftz.f32 $0, $1;", x) * LN_2
    else:
        return tl.log(x)


@triton.jit
def sqrt(x, FAST: tl.constexpr):
    if FAST:
        return _approximate("sqrt.approx.ftz.f32 $0, $1;", x)
    else:
        return tl.sqrt(x)


@triton.jit
def rsqrt(x, FAST: tl.constexpr):
    if FAST:
        return _approximate("rsqrt.approx.ftz.f32 $0, $1;", x)
    else:
        return 1.0 / tl.sqrt(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    if FAST:
        return _approximate("rcp.approx.ftz.f32 $0, $1;", x)
    else:
        return 1.0 / x


@triton.jit
def log1p_over(t, FAST: tl.constexpr):
    """log(1 + t) / t for t in [0, 1], 1 at t = 0."""
    if t.dtype == tl.float64:
        # The rounding of 1 + t hits numerator and denominator alike (W. Kahan).
        rounded = 1.0 + t
        return tl.where(rounded == 1.0, 1.0, log(rounded, FAST) / (rounded - 1.0))
    else:
        # A minimax polynomial. Relative error 5.3e-8, with the arithmetic 1.4e-7.
        c1, c2, c3, c4 = -0.49999648, 0.33321324, -0.24857163, 0.19153655
        c5, c6, c7, c8 = -0.13753802, 0.07920453, -0.030065788, 0.005364823
        return 1.0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * (c6 + t * (c7 + t * c8)))))))


@triton.jit
def cos_sin_of_turns(turns, FAST: tl.constexpr):
    """cos and sin of 2 pi turns, for turns in [0, 1]."""
    # Absolute error 3.7e-7, from the rounded angle.
    angle = turns * TWO_PI
    if FAST:
        return _approximate("cos.approx.ftz.f32 $0, $1;", angle), _approximate("sin.approx.ftz.f32 $0, $1;", angle)
    else:
        return tl.cos(angle), tl.sin(angle)


@triton.jit
def minimum(x, bound):
    """min(x, bound); NaN stays NaN."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(x, y):
    """max(x, y); NaN stays NaN."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
