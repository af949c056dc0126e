"""The sampling kernel of prediction: two reads, one write."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import clamp, gaussian
from ladder_kernels.backends.triton.tile import draw, load_halves, pointers


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
    rows, columns = sizes[1], sizes[2]
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    sample = (program // (column_blocks * row_blocks)).to(tl.int64)
    channels = columns if CHANNELS_LAST else rows
    first_column = column_block * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    seed = tl.load(source) if DRAW == "seed" else 0

    for step in range(steps):
        flat_row = (row_block * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row = flat_row.to(tl.int64)[:, None] if WIDE else flat_row[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        latent_row = (sample * rows + row) * columns
        tile = pointers(q, sample, row, column, q_strides, space, CHANNELS_LAST)
        mean, raw = load_halves(tile, channels * q_strides[1], mask, COMPUTE)
        std, inverse_std, _, _ = gaussian(clamp(raw, LOGVAR_MAX), STABLE, FAST)
        _, sampled = draw(
            mean,
            std,
            inverse_std,
            source,
            seed,
            source_strides,
            sample,
            row,
            first_column,
            latent_row,
            space,
            mask,
            temperature,
            DRAW,
            CHANNELS_LAST,
            ALIGNED,
            COMPUTE,
            FAST,
        )
        tl.store(z + (latent_row + column), sampled.to(z.dtype.element_ty), mask=mask)
