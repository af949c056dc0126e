"""The forward kernel: z, and partial sums of everything else, in one pass."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import clamp, draw_latent, gaussian, over_std, variance_ratio
from ladder_kernels.backends.triton.math import maximum
from ladder_kernels.backends.triton.tile import inside, load_halves, load_source, pointers, widened


@triton.jit
def forward_kernel(
    q,
    p,
    source,
    z,
    kl_elementwise,
    partials,
    q_strides,
    p_strides,
    source_strides,
    space,
    sizes,  # batch, rows, columns
    window,
    temperature,
    steps,
    column_blocks,
    row_blocks,
    DRAW: tl.constexpr,
    KL: tl.constexpr,
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
    """One program: a sample, a block of columns, `steps` tiles of rows. Grid: column blocks x row blocks x batch.

    `partials`, all in the compute dtype: log q and max, with a KL also kl and restricted kl, each (batch, row_blocks *
    column_blocks); then with a KL its column sums (row_blocks, batch, columns) and row sums (column_blocks, batch,
    rows). Sums hold 2 KL, and log q without its constants: the reduction finishes them.
    """
    batch, rows, columns = widened(sizes[0], True), widened(sizes[1], WIDE), widened(sizes[2], WIDE)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    sample = (program // (column_blocks * row_blocks)).to(tl.int64)
    channels = columns if CHANNELS_LAST else rows
    first_column = widened(column_block, WIDE) * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]

    blocks = row_blocks * column_blocks
    scalars = partials + sample * blocks + (row_block * column_blocks + column_block)
    column_sums = partials + 4 * batch * blocks
    row_sums = column_sums + row_blocks * batch * columns + (column_block * batch + sample) * rows
    kl_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    log_q_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS // 4], COMPUTE)
    largest = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], float("-inf"), COMPUTE)
    restricted = tl.zeros([BLOCK_ROWS], COMPUTE)
    seed = tl.load(source) if DRAW == "seed" else 0

    for step in range(steps):
        flat_row = widened(row_block * steps + step, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row = flat_row[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        latent_row = (sample * rows + row) * columns

        q_tile = pointers(q, sample, row, column, q_strides, space, CHANNELS_LAST)
        q_mean, q_raw = load_halves(q_tile, channels * q_strides[1], mask, COMPUTE)
        q_logvar = clamp(q_raw, LOGVAR_MAX)
        q_std, q_inverse, q_rest, q_log_var, _ = gaussian(q_logvar, STABLE, FAST)
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
        eps, sampled = draw_latent(q_mean, q_std, q_inverse, q_rest, drawn_from, temperature, DRAW, STABLE)
        if z is not None:
            tl.store(z + (latent_row + column), sampled.to(z.dtype.element_ty), mask=mask)
        minus_two_log_q = eps * eps + q_log_var

        if KL != "none":
            kl_mean = q_mean if KL == "analytic" else sampled
            if p is not None:
                p_tile = pointers(p, sample, row, column, p_strides, space, CHANNELS_LAST)
                p_mean, p_raw = load_halves(p_tile, channels * p_strides[1], mask, COMPUTE)
                p_logvar = clamp(p_raw, LOGVAR_MAX)
                _, p_inverse, p_rest, p_log_var, _ = gaussian(p_logvar, STABLE, FAST)
                residual = over_std(kl_mean - p_mean, p_inverse, p_rest, STABLE)
            else:
                p_logvar = tl.zeros_like(q_mean)
                p_inverse = tl.full([1, 1], 1.0, COMPUTE)
                p_rest = p_inverse
                p_log_var = p_logvar
                residual = kl_mean
            if KL == "analytic":
                _, excess = variance_ratio(q_std, q_logvar, p_inverse, p_logvar, STABLE, FAST)
                two_kl = residual * residual + excess
            else:
                two_kl = residual * residual + (p_log_var - minus_two_log_q)
            if MASKED:
                two_kl = tl.where(mask, two_kl, 0.0)
            if kl_elementwise is not None:
                tl.store(kl_elementwise + (latent_row + column), 0.5 * two_kl, mask=mask)
            kl_sum += two_kl
            over_columns = tl.sum(two_kl, 1)
            tl.store(row_sums + flat_row, over_columns, mask=flat_row < rows)
            if window is not None and CHANNELS_LAST:
                restricted += tl.where(inside(flat_row, window), over_columns, 0.0)

        if MASKED:
            minus_two_log_q = tl.where(mask, minus_two_log_q, 0.0)
            q_logvar = tl.where(mask, q_logvar, float("-inf"))
        # Four columns of a thread at once: a quarter of the registers, and it needs no column of its own.
        log_q_sum += tl.sum(tl.reshape(minus_two_log_q, [BLOCK_ROWS, BLOCK_COLUMNS // 4, 4]), 2)
        largest = maximum(largest, q_logvar)

    tl.store(scalars, tl.sum(log_q_sum))
    tl.store(scalars + batch * blocks, nan_max(largest))
    if KL != "none":
        over_rows = tl.sum(kl_sum, 0)
        flat_column = first_column + tl.arange(0, BLOCK_COLUMNS)
        column_sums += (row_block * batch + sample) * columns
        tl.store(column_sums + flat_column, over_rows, mask=flat_column < columns)
        if window is not None and not CHANNELS_LAST:
            over_window = tl.sum(tl.where(inside(flat_column, window), over_rows, 0.0))
        else:
            over_window = tl.sum(restricted)
        tl.store(scalars + 2 * batch * blocks, tl.sum(over_rows))
        tl.store(scalars + 3 * batch * blocks, over_window)


@triton.jit
def nan_max(x):
    """Largest element of a tile; NaN if there is one."""
    has_nan = tl.max((x != x).to(tl.int32)) > 0
    return tl.where(has_nan, float("nan"), tl.max(x))
