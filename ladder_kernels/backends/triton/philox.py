"""Philox4x32-10 normals of a tile: the numbers of `ladder_kernels.noise`, four to a counter."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.math import cos_sin_of_turns, log, maximum, sqrt


@triton.jit
def _multiply(a, MULTIPLIER: tl.constexpr):
    """High and low word of a 32 x 32 bit product: one wide multiplication instead of two."""
    product = a.to(tl.uint64) * MULTIPLIER
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox4x32(group, seed):
    """The four words of counter (group lo, group hi, 0, 0), group and seed int64."""
    key0, key1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1 = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _radius_and_turns(word1, word2, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    u1 = word1.to(COMPUTE) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (word + 1/2) / 2^32
    u2 = word2.to(COMPUTE) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    # Not below 0: next to u1 = 1 the approximate logarithm may be positive.
    return sqrt(maximum(-2.0 * log(u1, FAST), 0.0), FAST), u2


@triton.jit
def _box_muller(word1, word2, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    radius, turns = _radius_and_turns(word1, word2, COMPUTE, FAST)
    cos, sin = cos_sin_of_turns(turns, FAST)
    return radius * cos, radius * sin


@triton.jit
def _four_normals(group, seed, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    """The normals of a counter (rows, groups) as (rows, groups, 2, 2): joined on new trailing dims, so that the four
    stay in one thread."""
    w0, w1, w2, w3 = philox4x32(group, seed)
    n0, n1 = _box_muller(w0, w1, COMPUTE, FAST)
    n2, n3 = _box_muller(w2, w3, COMPUTE, FAST)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3))


@triton.jit
def normal_tile(
    seed,
    row_start,
    first_column,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Normals (rows, COLUMNS) of the elements row_start (rows, 1; int64) + first_column + column.

    ALIGNED: every row starts at a multiple of four, so that four columns share a counter. Otherwise each element
    makes its own counter's words and keeps one lane. A thread gets VECTOR columns, 4 or 8: as many as it loads.
    """
    if ALIGNED:
        element = row_start + first_column + VECTOR * tl.arange(0, COLUMNS // VECTOR)[None, :]
        normals = _four_normals(element >> 2, seed, COMPUTE, FAST)
        if VECTOR == 8:
            more = _four_normals((element >> 2) + 1, seed, COMPUTE, FAST)
            normals = tl.permute(tl.join(normals, more), (0, 1, 4, 2, 3))
        return tl.reshape(normals, [row_start.shape[0], COLUMNS])
    else:
        element = row_start + first_column + tl.arange(0, COLUMNS)[None, :]
        w0, w1, w2, w3 = philox4x32(element >> 2, seed)
        lane = element & 3
        radius, turns = _radius_and_turns(tl.where(lane < 2, w0, w2), tl.where(lane < 2, w1, w3), COMPUTE, FAST)
        cos, sin = cos_sin_of_turns(turns, FAST)
        return radius * tl.where(lane & 1 == 0, cos, sin)
