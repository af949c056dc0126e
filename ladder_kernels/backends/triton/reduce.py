"""The second forward kernel: adds the partial sums in a fixed order and finishes them."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import log_variance
from ladder_kernels.backends.triton.forward import nan_max
from ladder_kernels.backends.triton.math import maximum

HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)


@triton.jit
def reduce_kernel(
    partials,
    column_sums,
    row_sums,
    samplewise,
    restricted,
    logprob_q,
    qvar_max,
    sizes,  # batch, rows, columns
    column_blocks,
    row_blocks,
    STABLE: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Grid: blocks of column sums, blocks of row sums, samples, and one program for the maximum."""
    batch, rows, columns = sizes
    program = tl.program_id(0).to(tl.int64)
    column_programs = tl.cdiv(batch * columns, BLOCK)
    row_programs = tl.cdiv(batch * rows, BLOCK)
    row_partials = partials + row_blocks * batch * columns
    scalars = row_partials + column_blocks * batch * rows
    blocks = row_blocks * column_blocks

    if program < column_programs:
        _add_up(partials, column_sums, program, batch * columns, row_blocks, BLOCK, COMPUTE)
    elif program < column_programs + row_programs:
        _add_up(row_partials, row_sums, program - column_programs, batch * rows, column_blocks, BLOCK, COMPUTE)
    elif program < column_programs + row_programs + batch:
        sample = program - column_programs - row_programs
        kl = _total(scalars + sample * blocks, blocks, BLOCK, COMPUTE)
        tl.store(samplewise + sample, 0.5 * kl)
        if restricted is not None:
            inside = _total(scalars + (batch + sample) * blocks, blocks, BLOCK, COMPUTE)
            tl.store(restricted + sample, 0.5 * inside)
        minus_two_log_q = _total(scalars + (2 * batch + sample) * blocks, blocks, BLOCK, COMPUTE)
        count = (program * 0 + rows * columns).to(COMPUTE)
        tl.store(logprob_q + sample, -0.5 * minus_two_log_q - count * HALF_LOG_TWO_PI)
    else:
        largest = tl.full([BLOCK], float("-inf"), COMPUTE)
        for start in range(0, batch * blocks, BLOCK):
            index = start + tl.arange(0, BLOCK)
            values = tl.load(scalars + 3 * batch * blocks + index, mask=index < batch * blocks, other=float("-inf"))
            largest = maximum(largest, values)
        tl.store(qvar_max, log_variance(nan_max(largest), STABLE, False))


@triton.jit
def _add_up(partials, out, program, size, count, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """out[i] = 1/2 sum over k of partials[k, i]."""
    index = program * BLOCK + tl.arange(0, BLOCK)
    values = tl.zeros([BLOCK], COMPUTE)
    for _ in range(count):
        values += tl.load(partials + index, mask=index < size, other=0.0)
        partials += size
    tl.store(out + index, 0.5 * values, mask=index < size)


@triton.jit
def _total(values, count, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """The sum of `count` values."""
    result = tl.zeros([BLOCK], COMPUTE)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        result += tl.load(values + index, mask=index < count, other=0.0)
    return tl.sum(result)
