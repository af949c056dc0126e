"""The forward kernel: z, and partial sums of everything else, in one pass."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import (
    draw_latent,
    minus_two_log_density,
    standard_normal,
    twice_divergence,
)
from ladder_kernels.backends.triton.math import maximum
from ladder_kernels.backends.triton.partials import locate
from ladder_kernels.backends.triton.tile import (
    in_latent,
    inside,
    load_gaussian,
    load_seed,
    load_source,
    place_tile,
    store_latent,
    this_program,
    widened,
)


@triton.jit
def forward_kernel(
    q,  # Strided
    p,  # Strided or None
    source,  # Strided or None
    z,
    kl_elementwise,
    partials,  # `partials.Partials`
    layout,  # Layout
    window,
    temperature,
    variance,  # Variance
    mode,  # Mode
):
    """One program: a sample, a block of columns, tiles down the rows."""
    program = this_program(mode)
    batch, rows, columns = widened(layout.sizes[0], True), layout.sizes[1], layout.sizes[2]
    row_blocks, column_blocks = layout.row_blocks, layout.column_blocks
    partial = locate(partials, layout)
    row_sums = partial.over_columns + (program.column_block * batch + program.sample) * rows
    kl_sum = tl.zeros([mode.block_rows, mode.block_columns], mode.compute)
    # Four columns of a thread at once: a quarter of the registers, and it needs no column of its own. If rows start
    # anywhere, lanes have single columns.
    TOGETHER: tl.constexpr = 4 if mode.aligned else 1
    log_q_sum = tl.zeros([mode.block_rows, mode.block_columns // TOGETHER], mode.compute)
    largest_raw = tl.full([mode.block_rows, mode.block_columns], float("-inf"), mode.compute)
    restricted = tl.zeros([mode.block_rows], mode.compute)
    seed = load_seed(source, mode)

    for tile_index in range(layout.tiles):
        row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, program.sample, row_tile, program.column_block, mode)
        mask = in_latent(place) if mode.masked else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, mode)
        drawn_from = load_source(source, seed, place, layout.space, mask, mode)
        latent = draw_latent(of_q, drawn_from, temperature, mode)
        if z is not None:
            store_latent(z, latent.z, place, mask)
        minus_two_log_q = minus_two_log_density(latent.eps, of_q)
        raw = of_q.raw

        if mode.kl != "none":
            if p is not None:
                of_p = load_gaussian(p, place, layout.space, mask, variance, mode)
            else:
                of_p = standard_normal(mode.compute)
            two_kl = twice_divergence(of_q, of_p, latent, variance, mode)
            if mode.masked:
                two_kl = tl.where(mask, two_kl, 0.0)
            if kl_elementwise is not None:
                store_latent(kl_elementwise, 0.5 * two_kl, place, mask)
            kl_sum += two_kl
            over_columns = tl.sum(two_kl, 1) if mode.aligned else sum_of_rows(tl.trans(two_kl))
            flat_row = widened(row_tile, mode.wide) * mode.block_rows + tl.arange(0, mode.block_rows)
            tl.store(row_sums + flat_row, over_columns, mask=flat_row < rows)
            if window is not None and mode.channels_inner:
                restricted += tl.where(inside(flat_row, window), over_columns, 0.0)

        if mode.masked:
            minus_two_log_q = tl.where(mask, minus_two_log_q, 0.0)
            raw = tl.where(mask, raw, float("-inf"))
        log_q_sum += tl.sum(tl.reshape(minus_two_log_q, [mode.block_rows, mode.block_columns // TOGETHER, TOGETHER]), 2)
        largest_raw = maximum(largest_raw, raw)

    scalar = (program.sample * row_blocks + program.row_block) * column_blocks + program.column_block
    tl.store(partial.minus_two_log_q + scalar, tl.sum(log_q_sum))
    tl.store(partial.largest_raw + scalar, nan_max(largest_raw))
    if mode.kl != "none":
        over_rows = sum_of_rows(kl_sum) if mode.aligned else tl.sum(kl_sum, 0)
        flat_column = widened(program.column_block, mode.wide) * mode.block_columns + tl.arange(0, mode.block_columns)
        column_sums = partial.over_rows + (program.row_block * batch + program.sample) * columns
        tl.store(column_sums + flat_column, over_rows, mask=flat_column < columns)
        tl.store(partial.two_kl + scalar, tl.sum(over_rows))
        if window is not None:
            if not mode.channels_inner:
                restricted = tl.where(inside(flat_column, window), over_rows, 0.0)
            tl.store(partial.restricted + scalar, tl.sum(restricted))


@triton.jit
def sum_of_rows(x):
    """tl.sum(x, 0), half the rows onto the other half."""
    # `tl.sum` has the lanes of a warp write to one bank of shared memory: 72 wavefronts for 32 latents.
    for _ in tl.static_range(10):
        if x.shape[0] > 1:
            halves = tl.permute(tl.reshape(x, [2, x.shape[0] // 2, x.shape[1]]), (1, 2, 0))
            upper, lower = tl.split(halves)
            x = upper + lower
    return tl.reshape(x, [x.shape[1]])


@triton.jit
def nan_max(x):
    """Largest element of a tile; NaN if there is one."""
    return tl.reduce(x, None, maximum)
