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
def _box_muller(word1, word2, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    u1 = word1.to(COMPUTE) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # (word + 1/2) / 2^32
    u2 = word2.to(COMPUTE) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    # Not below 0: next to u1 = 1 the approximate logarithm may be positive.
    radius = sqrt(maximum(-2.0 * log(u1, FAST), 0.0), FAST)
    cos, sin = cos_sin_of_turns(u2, FAST)
    return radius * cos, radius * sin


@triton.jit
def _joined(n0, n1, n2, n3):
    """Four (rows, groups) as (rows, groups, 2, 2): on new trailing dims, so that they stay in one thread."""
    return tl.join(tl.join(n0, n2), tl.join(n1, n3))


@triton.jit
def _four_normals(group, seed, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    """The four normals of a counter."""
    w0, w1, w2, w3 = philox4x32(group, seed)
    n0, n1 = _box_muller(w0, w1, COMPUTE, FAST)
    n2, n3 = _box_muller(w2, w3, COMPUTE, FAST)
    return n0, n1, n2, n3


@triton.jit
def _eight_normals(element, seed, COMPUTE: tl.constexpr, FAST: tl.constexpr):
    """Those of eight elements (rows, octets), the first of which need not be a counter's first: as they lie in three
    counters, five pairs of words have them."""
    v0, v1, v2, v3 = philox4x32(element >> 2, seed)
    w0, w1, w2, w3 = philox4x32((element >> 2) + 1, seed)
    x0, x1, x2, x3 = philox4x32((element >> 2) + 2, seed)
    late = (element & 2) != 0
    n0, n1 = _box_muller(tl.where(late, v2, v0), tl.where(late, v3, v1), COMPUTE, FAST)
    n2, n3 = _box_muller(tl.where(late, w0, v2), tl.where(late, w1, v3), COMPUTE, FAST)
    n4, n5 = _box_muller(tl.where(late, w2, w0), tl.where(late, w3, w1), COMPUTE, FAST)
    n6, n7 = _box_muller(tl.where(late, x0, w2), tl.where(late, x1, w3), COMPUTE, FAST)
    n8, _ = _box_muller(tl.where(late, x2, x0), tl.where(late, x3, x1), COMPUTE, FAST)
    odd = (element & 1) != 0
    first = _joined(tl.where(odd, n1, n0), tl.where(odd, n2, n1), tl.where(odd, n3, n2), tl.where(odd, n4, n3))
    second = _joined(tl.where(odd, n5, n4), tl.where(odd, n6, n5), tl.where(odd, n7, n6), tl.where(odd, n8, n7))
    return first, second


@triton.jit
def normal_tile(seed, start, row_start, mode):
    """Normals of a tile, of the elements start (int64) + row_start (rows, 1) + column.

    Where rows start at multiples of four a thread gets as many columns as it loads, 4 or 8.
    """
    OCTETS: tl.constexpr = mode.block_columns // 8
    GROUPS: tl.constexpr = mode.block_columns // mode.vector
    if not mode.aligned:
        element = start + (row_start + 8 * tl.arange(0, OCTETS)[None, :])
        first, second = _eight_normals(element, seed, mode.compute, mode.fast)
        normals = tl.permute(tl.join(first, second), (0, 1, 4, 2, 3))
    else:
        group = (start + (row_start + mode.vector * tl.arange(0, GROUPS)[None, :])) >> 2
        n0, n1, n2, n3 = _four_normals(group, seed, mode.compute, mode.fast)
        normals = _joined(n0, n1, n2, n3)
        if mode.vector == 8:
            m0, m1, m2, m3 = _four_normals(group + 1, seed, mode.compute, mode.fast)
            normals = tl.permute(tl.join(normals, _joined(m0, m1, m2, m3)), (0, 1, 4, 2, 3))
    return tl.reshape(normals, [mode.block_rows, mode.block_columns])
