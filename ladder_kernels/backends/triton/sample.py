"""The sampling kernel: two reads, one write."""

import triton

from ladder_kernels.backends.triton.formulas import draw_latent
from ladder_kernels.backends.triton.tile import (
    in_latent,
    load_gaussian,
    load_seed,
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
    mode,  # Mode
):
    """One program: a sample, a block of columns, tiles down the rows."""
    program = this_program(mode)
    seed = load_seed(source, mode)

    for tile_index in range(layout.tiles):
        row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, program.sample, row_tile, program.column_block, mode)
        mask = in_latent(place) if mode.masked else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, mode)
        drawn_from = load_source(source, seed, place, layout.space, mask, mode)
        store_latent(z, draw_latent(of_q, drawn_from, temperature, mode).z, place, mask)
