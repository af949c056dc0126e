"""The backward kernel: the packed gradients of q and p, and that of a given latent, in one pass."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import draw_latent, standard_normal, step_gradients
from ladder_kernels.backends.triton.tile import (
    dense_pointers,
    in_latent,
    inside,
    load_gaussian,
    load_source,
    load_tile,
    place_tile,
    store_latent,
    store_packed,
    this_program,
)


class Incoming(NamedTuple):
    """The gradients that arrive; None where none does. Those of samples may be one number for all (stride 0)."""

    z: Any  # dense in q's layout
    samplewise: Any  # Strided
    restricted: Any  # Strided
    over_rows: Any  # (batch, columns)
    over_columns: Any  # (batch, rows)
    elementwise: Any  # dense in q's layout
    log_q: Any  # Strided


@triton.jit
def backward_kernel(
    q,  # Strided
    p,  # Strided or None
    source,  # Strided or None
    incoming,  # Incoming
    grad_q,
    grad_p,
    grad_latent,
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
    SHARED_P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """One program: a sample, a block of columns, tiles down the rows.

    With SHARED_P, a p of batch 1 that needs a gradient, the tiles are the samples of one block of rows instead (and
    the grid has no batch): p's gradient is summed over them in order.

    DRAW and KL are what gradients flow through: "mode" where none flows through eps, "none" where no KL was used.
    """
    program = this_program(layout)
    p_mean_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    p_raw_sum = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    seed = tl.load(source.data) if DRAW == "seed" else 0

    for tile_index in range(layout.tiles):
        sample, row_tile = program.sample, program.row_block
        if SHARED_P:
            sample += tile_index
        else:
            row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, sample, row_tile, program.column_block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS)
        mask = in_latent(place) if MASKED else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, CHANNELS_INNER, COMPUTE, FAST)
        drawn_from = load_source(
            source, seed, place, layout.space, mask, DRAW, CHANNELS_INNER, ALIGNED, VECTOR, COMPUTE, FAST
        )
        latent = draw_latent(of_q, drawn_from, temperature, DRAW)
        grad_z = None
        grad_kl = None
        grad_log_q = None
        if incoming.z is not None:
            grad_z = load_tile(dense_pointers(incoming.z, place), mask, COMPUTE)
        if incoming.log_q is not None:
            grad_log_q = _of_sample(incoming.log_q, sample, COMPUTE)
        of_p = standard_normal(COMPUTE)
        if KL != "none":
            grad_kl = _grad_kl(incoming, place, window, mask, CHANNELS_INNER, MASKED, COMPUTE)
            if p is not None:
                of_p = load_gaussian(p, place, layout.space, mask, variance, CHANNELS_INNER, COMPUTE, FAST)

        grads = step_gradients(of_q, of_p, latent, grad_z, grad_kl, grad_log_q, variance, DRAW, KL, FAST)
        if grad_q is not None:
            store_packed(grad_q, grads.q_mean, grads.q_raw, place, mask, CHANNELS_INNER)
        if grad_latent is not None:
            store_latent(grad_latent, grads.latent, place, mask)
        if SHARED_P:
            p_mean_sum += grads.p_mean
            p_raw_sum += grads.p_raw
        elif grad_p is not None:
            store_packed(grad_p, grads.p_mean, grads.p_raw, place, mask, CHANNELS_INNER)

    if SHARED_P:
        place = place_tile(
            layout, program.sample, program.row_block, program.column_block, WIDE, BLOCK_ROWS, BLOCK_COLUMNS
        )
        mask = in_latent(place) if MASKED else None
        store_packed(grad_p, p_mean_sum, p_raw_sum, place, mask, CHANNELS_INNER)


@triton.jit
def _of_sample(grad, sample, COMPUTE: tl.constexpr):
    return tl.load(grad.data + sample * grad.strides[0]).to(COMPUTE)


@triton.jit
def _grad_kl(incoming, place, window, mask, CHANNELS_INNER: tl.constexpr, MASKED: tl.constexpr, COMPUTE: tl.constexpr):
    """The gradient of the elementwise KL: that of every reduction, broadcast back."""
    grad = tl.zeros([1, 1], COMPUTE)
    if incoming.samplewise is not None:
        grad += _of_sample(incoming.samplewise, place.sample, COMPUTE)
    if incoming.restricted is not None:
        weight = inside(place.row if CHANNELS_INNER else place.column, window).to(COMPUTE)
        grad += weight * _of_sample(incoming.restricted, place.sample, COMPUTE)
    if incoming.over_rows is not None:
        column_mask = place.column < place.columns if MASKED else None
        grad += load_tile(incoming.over_rows + place.sample * place.columns + place.column, column_mask, COMPUTE)
    if incoming.over_columns is not None:
        row_mask = place.row < place.rows if MASKED else None
        grad += load_tile(incoming.over_columns + place.sample * place.rows + place.row, row_mask, COMPUTE)
    if incoming.elementwise is not None:
        grad += load_tile(dense_pointers(incoming.elementwise, place), mask, COMPUTE)
    return grad
