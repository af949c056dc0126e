"""The sampling kernel: two reads, one write."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import clamp, draw_latent, gaussian
from ladder_kernels.backends.triton.tile import load_halves, load_source, pointers, widened


@triton.jit
def sample_kernel(
    q,
    source,
    z,
    q_strides,
    source_strides,
    space,
    sizes,  # batch, rows, columns
    temperature,
    steps,
    column_blocks,
    row_blocks,
    DRAW: tl.constexpr,
    STABLE: tl.constexpr,
    LOGVAR_MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """One program: a sample, a block of columns, `steps` tiles of rows. Grid: column blocks x row blocks x batch."""
    rows, columns = widened(sizes[1], WIDE), widened(sizes[2], WIDE)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    sample = (program // (column_blocks * row_blocks)).to(tl.int64)
    channels = columns if CHANNELS_LAST else rows
    first_column = widened(column_block, WIDE) * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    seed = tl.load(source) if DRAW == "seed" else 0

    for step in range(steps):
        row = (widened(row_block * steps + step, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        latent_row = (sample * rows + row) * columns
        tile = pointers(q, sample, row, column, q_strides, space, CHANNELS_LAST)
        mean, raw = load_halves(tile, channels * q_strides[1], mask, COMPUTE)
        std, inverse, rest, _, _ = gaussian(clamp(raw, LOGVAR_MAX), STABLE, FAST)
        drawn_from = load_source(
            source,
            seed,
            source_strides,
            sample,
            row,
            first_column,
            latent_row,
            space,
            mask,
            BLOCK_COLUMNS,
            DRAW,
            CHANNELS_LAST,
            ALIGNED,
            COMPUTE,
            FAST,
        )
        _, sampled = draw_latent(mean, std, inverse, rest, drawn_from, temperature, DRAW, STABLE)
        tl.store(z + (latent_row + column), sampled.to(z.dtype.element_ty), mask=mask)
