"""The sampling kernel: two reads, one write."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import draw_latent
from ladder_kernels.backends.triton.tile import (
    in_latent,
    load_gaussian,
    load_source,
    place_tile,
    store_latent,
    this_program,
)


@triton.jit
def sample_kernel(
    q,  # Strided
    source,  # Strided or None
    z,
    layout,  # Layout
    temperature,
    variance,  # Variance
    DRAW: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """One program: a sample, a block of columns, tiles down the rows."""
    program = this_program(layout)
    seed = tl.load(source.data) if DRAW == "seed" else 0

    for tile_index in range(layout.tiles):
        row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, program.sample, row_tile, program.column_block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS)
        mask = in_latent(place) if MASKED else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, CHANNELS_INNER, COMPUTE, FAST)
        drawn_from = load_source(
            source, seed, place, layout.space, mask, DRAW, CHANNELS_INNER, ALIGNED, VECTOR, COMPUTE, FAST
        )
        store_latent(z, draw_latent(of_q, drawn_from, temperature, DRAW).z, place, mask)
