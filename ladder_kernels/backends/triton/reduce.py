"""The second forward kernel: adds the partial sums in a fixed order and finishes them."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import gaussian
from ladder_kernels.backends.triton.forward import nan_max
from ladder_kernels.backends.triton.math import HALF_LOG_TWO_PI, maximum
from ladder_kernels.backends.triton.partials import locate
from ladder_kernels.backends.triton.tile import widened


@triton.jit
def reduce_kernel(
    partials,  # `partials.Partials`
    column_sums,
    row_sums,
    samplewise,
    restricted,
    logprob_q,
    logvar_max,
    layout,  # Layout, the forward kernel's
    variance,  # Variance
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Grid: samples, one program for the maximum, and with a KL blocks of column sums and blocks of row sums."""
    sizes, row_blocks, column_blocks = layout.sizes, layout.row_blocks, layout.column_blocks
    batch, rows, columns = widened(sizes[0], True), widened(sizes[1], True), widened(sizes[2], True)
    partial = locate(partials, layout)
    program = tl.program_id(0).to(tl.int64)
    blocks = row_blocks * column_blocks
    if program < batch:
        first = program * blocks
        minus_two_log_q = _total(partial.minus_two_log_q + first, blocks, BLOCK, COMPUTE)
        tl.store(logprob_q + program, -0.5 * minus_two_log_q - (rows * columns).to(COMPUTE) * HALF_LOG_TWO_PI)
        if samplewise is not None:
            tl.store(samplewise + program, 0.5 * _total(partial.two_kl + first, blocks, BLOCK, COMPUTE))
        if restricted is not None:
            tl.store(restricted + program, 0.5 * _total(partial.restricted + first, blocks, BLOCK, COMPUTE))
    elif program == batch:
        largest_raw = tl.full([BLOCK], float("-inf"), COMPUTE)
        for start in range(0, batch * blocks, BLOCK):
            index = start + tl.arange(0, BLOCK)
            values = tl.load(partial.largest_raw + index, mask=index < batch * blocks, other=float("-inf"))
            largest_raw = maximum(largest_raw, values)
        # The map is monotone, so that its largest value is that of the largest raw one.
        raw = tl.full([1, 1], 0.0, COMPUTE) + nan_max(largest_raw)
        tl.store(logvar_max + tl.zeros([1, 1], tl.int32), gaussian(raw, raw, variance, False).log_var)
    elif samplewise is not None:
        column_programs = tl.cdiv(batch * columns, BLOCK)
        program -= batch + 1
        if program < column_programs:
            _add_up(partial.over_rows, column_sums, program, batch * columns, row_blocks, BLOCK, COMPUTE)
        else:
            program -= column_programs
            _add_up(partial.over_columns, row_sums, program, batch * rows, column_blocks, BLOCK, COMPUTE)


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
