"""The backward kernel: the packed gradients of q and p, and that of a given latent, in one pass."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import bound, clamp, draw_latent, gaussian, over_std, variance_ratio
from ladder_kernels.backends.triton.tile import (
    inside,
    load_halves,
    load_source,
    load_tile,
    pointers,
    store_halves,
    widened,
)


@triton.jit
def backward_kernel(
    q,
    p,
    source,
    grad_z,
    grad_sums,  # of kl_samplewise, kl_restricted, over rows, over columns, logprob_q; None where absent
    grad_elementwise,
    grad_q,
    grad_p,
    grad_latent,
    q_strides,
    p_strides,
    source_strides,
    sum_strides,  # of the gradients of kl_samplewise, kl_restricted, logprob_q
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
    SHARED_P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """One program: a block of columns and `steps` tiles. Grid: column blocks x row blocks x batch.

    The tiles go down the rows of one sample. With SHARED_P, a p of batch 1 that needs a gradient, they are the
    samples of one block of rows instead (and the grid has no batch): p's gradient is summed over them in order.

    DRAW and KL are what gradients flow through: "mode" where none flows through eps, "none" where no KL was used.
    """
    HAS_KL: tl.constexpr = KL != "none"
    ANALYTIC: tl.constexpr = KL == "analytic"
    HAS_LOG_Q: tl.constexpr = grad_sums[4] is not None or KL == "monte_carlo"
    HAS_Z: tl.constexpr = grad_z is not None or KL == "monte_carlo"
    HAS_LOG_VAR: tl.constexpr = HAS_KL or HAS_LOG_Q or DRAW != "mode"
    rows, columns = widened(sizes[1], WIDE), widened(sizes[2], WIDE)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    channels = columns if CHANNELS_LAST else rows
    first_column = widened(column_block, WIDE) * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    p_mean_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    p_logvar_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    seed = tl.load(source) if DRAW == "seed" else 0

    for step in range(steps):
        sample = (program // (column_blocks * row_blocks)).to(tl.int64)
        if SHARED_P:
            sample += step
            row_tile = row_block
        else:
            row_tile = row_block * steps + step
        row = (widened(row_tile, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        latent_row = (sample * rows + row) * columns

        q_tile = pointers(q, sample, row, column, q_strides, space, CHANNELS_LAST)
        q_mean, q_raw = load_halves(q_tile, channels * q_strides[1], mask, COMPUTE)
        q_logvar = clamp(q_raw, LOGVAR_MAX)
        q_std, q_inverse, q_rest, _, q_slope = gaussian(q_logvar, STABLE, FAST)
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
        to_z = tl.zeros_like(q_mean)
        if grad_z is not None:
            to_z += load_tile(grad_z + (latent_row + column), mask, COMPUTE)
        to_mean = tl.zeros_like(q_mean)
        to_log_var = tl.zeros_like(q_mean)
        grad_log_q = tl.zeros([1, 1], COMPUTE)
        if grad_sums[4] is not None:
            grad_log_q += tl.load(grad_sums[4] + sample * sum_strides[2]).to(COMPUTE)

        if HAS_KL:
            grad_kl = _grad_kl(
                grad_sums,
                grad_elementwise,
                sum_strides,
                sample,
                row,
                column,
                rows,
                columns,
                latent_row,
                window,
                mask,
                CHANNELS_LAST,
                MASKED,
                COMPUTE,
            )
            # Halved first, so that no product overflows where the result does not.
            half_kl = 0.5 * grad_kl
            kl_mean = q_mean if ANALYTIC else sampled
            if p is not None:
                p_tile = pointers(p, sample, row, column, p_strides, space, CHANNELS_LAST)
                p_mean, p_raw = load_halves(p_tile, channels * p_strides[1], mask, COMPUTE)
                p_logvar = clamp(p_raw, LOGVAR_MAX)
                _, p_inverse, p_rest, _, p_slope = gaussian(p_logvar, STABLE, FAST)
                residual = over_std(kl_mean - p_mean, p_inverse, p_rest, STABLE)
            else:
                p_logvar = tl.zeros_like(q_mean)
                p_inverse = tl.full([1, 1], 1.0, COMPUTE)
                p_rest = p_inverse
                residual = kl_mean
            pull = over_std(grad_kl * residual, p_inverse, p_rest, STABLE)
            half_square = half_kl * residual * residual
            if ANALYTIC:
                ratio, _ = variance_ratio(q_std, q_logvar, p_inverse, p_logvar, STABLE, FAST)
                to_mean += pull
                to_log_var += half_kl * ratio
                p_log_var = -half_kl * ratio - half_square
            else:
                to_z += pull
                grad_log_q += grad_kl
                p_log_var = half_kl - half_square
            if grad_p is not None:
                p_grad_logvar = _grad_logvar(p_log_var, p_slope, p_raw, LOGVAR_MAX)
                if SHARED_P:
                    p_mean_sum -= pull
                    p_logvar_sum += p_grad_logvar
                else:
                    base = grad_p + sample * 2 * rows * columns
                    store_halves(base, row, column, rows, columns, -pull, p_grad_logvar, mask, CHANNELS_LAST)

        if DRAW == "latent":
            score = over_std(grad_log_q * eps, q_inverse, q_rest, STABLE)
            to_mean += score
            to_z -= score
            to_log_var += 0.5 * grad_log_q * (eps * eps - 1.0)
            if grad_latent is not None:
                tl.store(grad_latent + (latent_row + column), to_z.to(grad_latent.dtype.element_ty), mask=mask)
        else:
            if HAS_LOG_Q:
                to_log_var -= 0.5 * grad_log_q
            if HAS_Z:
                to_mean += to_z
            if DRAW != "mode":
                to_log_var += 0.5 * to_z * (eps * q_std)
        if grad_q is not None:
            base = grad_q + sample * 2 * rows * columns
            q_grad_logvar = tl.zeros_like(q_mean)
            if HAS_LOG_VAR:
                q_grad_logvar = _grad_logvar(to_log_var, q_slope, q_raw, LOGVAR_MAX)
            store_halves(base, row, column, rows, columns, to_mean, q_grad_logvar, mask, CHANNELS_LAST)

    if SHARED_P:
        row = (widened(row_block, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        store_halves(grad_p, row, column, rows, columns, p_mean_sum, p_logvar_sum, mask, CHANNELS_LAST)


@triton.jit
def _grad_logvar(log_var, slope, raw, LOGVAR_MAX: tl.constexpr):
    """From the gradient of the log variance to that of the raw log-variance; 0 above the clamp."""
    grad = log_var * slope
    if LOGVAR_MAX is not None:
        grad = tl.where(raw > bound(LOGVAR_MAX, raw), 0.0, grad)
    return grad


@triton.jit
def _grad_kl(
    grad_sums,
    grad_elementwise,
    sum_strides,
    sample,
    row,
    column,
    rows,
    columns,
    latent_row,
    window,
    mask,
    CHANNELS_LAST: tl.constexpr,
    MASKED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The gradient of the elementwise KL: that of every reduction, broadcast back."""
    samplewise, restricted, over_rows, over_columns, _ = grad_sums
    grad = tl.zeros([1, 1], COMPUTE)
    if samplewise is not None:
        grad += tl.load(samplewise + sample * sum_strides[0]).to(COMPUTE)
    if restricted is not None:
        weight = inside(row if CHANNELS_LAST else column, window).to(COMPUTE)
        grad += weight * tl.load(restricted + sample * sum_strides[1]).to(COMPUTE)
    if over_rows is not None:
        column_mask = column < columns if MASKED else None
        grad += load_tile(over_rows + sample * columns + column, column_mask, COMPUTE)
    if over_columns is not None:
        row_mask = row < rows if MASKED else None
        grad += load_tile(over_columns + sample * rows + row, row_mask, COMPUTE)
    if grad_elementwise is not None:
        grad += load_tile(grad_elementwise + (latent_row + column), mask, COMPUTE)
    return grad
