"""The backward kernel: the packed gradients of q and p, and that of a given latent, in one pass."""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import clamp, gaussian, variance_ratio
from ladder_kernels.backends.triton.tile import draw, inside, load_halves, load_tile, pointers, store_halves


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
    ANALYTICAL: tl.constexpr,
    STABLE: tl.constexpr,
    LOGVAR_MAX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_KL: tl.constexpr,
    SHARED_P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """One program: a block of columns and `steps` tiles. Grid: column blocks x row blocks x batch.

    The tiles go down the rows of one sample. With SHARED_P, a p of batch 1 that needs a gradient, they are the
    samples of one block of rows instead (and the grid has no batch): p's gradient is summed over them in order.
    """
    rows, columns = sizes[1], sizes[2]
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    channels = columns if CHANNELS_LAST else rows
    first_column = column_block * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
    p_mean_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    p_logvar_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    seed = tl.load(source) if DRAW == "seed" else 0

    for step in range(steps):
        sample = (program // (column_blocks * row_blocks)).to(tl.int64)
        if SHARED_P:
            sample += step
            first_row = row_block * BLOCK_ROWS
        else:
            first_row = (row_block * steps + step) * BLOCK_ROWS
        flat_row = first_row + tl.arange(0, BLOCK_ROWS)
        row = flat_row.to(tl.int64)[:, None] if WIDE else flat_row[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        latent_row = (sample * rows + row) * columns

        q_tile = pointers(q, sample, row, column, q_strides, space, CHANNELS_LAST)
        q_mean, q_raw = load_halves(q_tile, channels * q_strides[1], mask, COMPUTE)
        q_logvar = clamp(q_raw, LOGVAR_MAX)
        q_std, q_inverse_std, _, q_slope = gaussian(q_logvar, STABLE, FAST)
        eps, sampled = draw(
            q_mean,
            q_std,
            q_inverse_std,
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
        to_z = tl.zeros_like(q_mean)
        if grad_z is not None:
            to_z += load_tile(grad_z + (latent_row + column), mask, COMPUTE)
        to_mean = tl.zeros_like(q_mean)
        to_two_log_var = tl.zeros_like(q_mean)
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
            if p is not None:
                p_tile = pointers(p, sample, row, column, p_strides, space, CHANNELS_LAST)
                p_mean, p_raw = load_halves(p_tile, channels * p_strides[1], mask, COMPUTE)
                p_logvar = clamp(p_raw, LOGVAR_MAX)
                _, p_inverse_std, _, p_slope = gaussian(p_logvar, STABLE, FAST)
                residual = ((q_mean if ANALYTICAL else sampled) - p_mean) * p_inverse_std
            else:
                p_logvar = tl.zeros_like(q_mean)
                p_inverse_std = tl.full([1, 1], 1.0, COMPUTE)
                residual = q_mean if ANALYTICAL else sampled
            pull = grad_kl * residual * p_inverse_std
            if ANALYTICAL:
                ratio, _ = variance_ratio(q_std, q_logvar, p_inverse_std, p_logvar, STABLE, FAST)
                to_mean += pull
                to_two_log_var += grad_kl * ratio
                p_two_log_var = -grad_kl * (ratio + residual * residual)
            else:
                to_z += pull
                grad_log_q += grad_kl
                p_two_log_var = grad_kl - grad_kl * residual * residual
            if grad_p is not None:
                p_grad_logvar = _grad_logvar(p_two_log_var, p_slope, p_raw, LOGVAR_MAX)
                if SHARED_P:
                    p_mean_sum -= pull
                    p_logvar_sum += p_grad_logvar
                else:
                    base = grad_p + sample * 2 * rows * columns
                    store_halves(base, row, column, rows, columns, -pull, p_grad_logvar, mask, CHANNELS_LAST)

        if DRAW == "latent":
            score = grad_log_q * eps * q_inverse_std
            to_mean += score
            to_z -= score
            to_two_log_var += grad_log_q * (eps * eps - 1.0)
            if grad_latent is not None:
                tl.store(grad_latent + (latent_row + column), to_z.to(grad_latent.dtype.element_ty), mask=mask)
        else:
            to_two_log_var -= grad_log_q
            # Not 0 * eps where nothing arrives: a NaN of the noise must not come back from a KL that ignores it.
            if grad_z is not None or (HAS_KL and not ANALYTICAL):
                to_mean += to_z
                to_two_log_var += to_z * eps * q_std
        if grad_q is not None:
            base = grad_q + sample * 2 * rows * columns
            q_grad_logvar = _grad_logvar(to_two_log_var, q_slope, q_raw, LOGVAR_MAX)
            store_halves(base, row, column, rows, columns, to_mean, q_grad_logvar, mask, CHANNELS_LAST)

    if SHARED_P:
        flat_row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row = flat_row.to(tl.int64)[:, None] if WIDE else flat_row[:, None]
        mask = (row < rows) & (column < columns) if MASKED else None
        store_halves(grad_p, row, column, rows, columns, p_mean_sum, p_logvar_sum, mask, CHANNELS_LAST)


@triton.jit
def _grad_logvar(two_log_var, slope, raw, LOGVAR_MAX: tl.constexpr):
    """From twice the gradient of the log variance to that of the raw log-variance; 0 above the clamp."""
    grad = 0.5 * two_log_var * slope
    if LOGVAR_MAX is not None:
        grad = tl.where(raw > LOGVAR_MAX, 0.0, grad)
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
