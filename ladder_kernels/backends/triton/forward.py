"""The forward kernel: z, and partial sums of everything else, in one pass."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import divergence, draw_latent, log_density, standard_normal
from ladder_kernels.backends.triton.math import maximum
from ladder_kernels.backends.triton.partials import locate
from ladder_kernels.backends.triton.tile import (
    in_latent,
    inside,
    load_gaussian,
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
    DRAW: tl.constexpr,
    KL: tl.constexpr,
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
    batch, rows, columns = widened(layout.sizes[0], True), layout.sizes[1], layout.sizes[2]
    row_blocks, column_blocks = layout.row_blocks, layout.column_blocks
    partial = locate(partials, layout)
    row_sums = partial.over_columns + (program.column_block * batch + program.sample) * rows
    kl_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    # Four columns of a thread at once: a quarter of the registers, and it needs no column of its own. If rows start
    # anywhere, lanes have single columns.
    TOGETHER: tl.constexpr = 4 if ALIGNED else 1
    log_q_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS // TOGETHER], COMPUTE)
    largest_raw = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], float("-inf"), COMPUTE)
    restricted = tl.zeros([BLOCK_ROWS], COMPUTE)
    seed = tl.load(source.data) if DRAW == "seed" else 0

    for tile_index in range(layout.tiles):
        row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, program.sample, row_tile, program.column_block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS)
        mask = in_latent(place) if MASKED else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, CHANNELS_INNER, COMPUTE, FAST)
        drawn_from = load_source(
            source, seed, place, layout.space, mask, DRAW, CHANNELS_INNER, ALIGNED, VECTOR, COMPUTE, FAST
        )
        latent = draw_latent(of_q, drawn_from, temperature, DRAW)
        if z is not None:
            store_latent(z, latent.z, place, mask)
        minus_two_log_q = log_density(latent.eps, of_q)
        raw = of_q.raw

        if KL != "none":
            if p is not None:
                of_p = load_gaussian(p, place, layout.space, mask, variance, CHANNELS_INNER, COMPUTE, FAST)
            else:
                of_p = standard_normal(COMPUTE)
            two_kl = divergence(of_q, of_p, latent, variance, KL, FAST)
            if MASKED:
                two_kl = tl.where(mask, two_kl, 0.0)
            if kl_elementwise is not None:
                store_latent(kl_elementwise, 0.5 * two_kl, place, mask)
            kl_sum += two_kl
            over_columns = tl.sum(two_kl, 1) if ALIGNED else sum_of_rows(tl.trans(two_kl))
            flat_row = widened(row_tile, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            tl.store(row_sums + flat_row, over_columns, mask=flat_row < rows)
            if window is not None and CHANNELS_INNER:
                restricted += tl.where(inside(flat_row, window), over_columns, 0.0)

        if MASKED:
            minus_two_log_q = tl.where(mask, minus_two_log_q, 0.0)
            raw = tl.where(mask, raw, float("-inf"))
        log_q_sum += tl.sum(tl.reshape(minus_two_log_q, [BLOCK_ROWS, BLOCK_COLUMNS // TOGETHER, TOGETHER]), 2)
        largest_raw = maximum(largest_raw, raw)

    scalar = (program.sample * row_blocks + program.row_block) * column_blocks + program.column_block
    tl.store(partial.minus_two_log_q + scalar, tl.sum(log_q_sum))
    tl.store(partial.largest_raw + scalar, nan_max(largest_raw))
    if KL != "none":
        over_rows = sum_of_rows(kl_sum) if ALIGNED else tl.sum(kl_sum, 0)
        flat_column = widened(program.column_block, WIDE) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        column_sums = partial.over_rows + (program.row_block * batch + program.sample) * columns
        tl.store(column_sums + flat_column, over_rows, mask=flat_column < columns)
        tl.store(partial.two_kl + scalar, tl.sum(over_rows))
        if window is not None:
            if not CHANNELS_INNER:
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
