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
    load_seed,
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
    mode,  # Mode
):
    """One program: a sample, a block of columns, tiles down the rows.

    With `shared_p`, a p of batch 1 that needs a gradient, the tiles are the samples of one block of rows instead (and
    the grid has no batch): p's gradient is summed over them in order.
    """
    program = this_program(mode)
    p_mean_sum = tl.zeros([mode.block_rows, mode.block_columns], mode.compute)
    p_raw_sum = tl.zeros([mode.block_rows, mode.block_columns], mode.compute)
    seed = load_seed(source, mode)

    for tile_index in range(layout.tiles):
        sample, row_tile = program.sample, program.row_block
        if mode.shared_p:
            sample += tile_index
        else:
            row_tile = program.row_block * layout.tiles + tile_index
        place = place_tile(layout, sample, row_tile, program.column_block, mode)
        mask = in_latent(place) if mode.masked else None
        of_q = load_gaussian(q, place, layout.space, mask, variance, mode)
        drawn_from = load_source(source, seed, place, layout.space, mask, mode)
        latent = draw_latent(of_q, drawn_from, temperature, mode)
        grad_z = None
        grad_kl = None
        grad_log_q = None
        if incoming.z is not None:
            grad_z = load_tile(dense_pointers(incoming.z, place), mask, mode)
        if incoming.log_q is not None:
            grad_log_q = _of_sample(incoming.log_q, sample, mode)
        of_p = standard_normal(mode.compute)
        if mode.kl != "none":
            grad_kl = _grad_kl(incoming, place, window, mask, mode)
            if p is not None:
                of_p = load_gaussian(p, place, layout.space, mask, variance, mode)

        grads = step_gradients(of_q, of_p, latent, grad_z, grad_kl, grad_log_q, variance, mode)
        if grad_q is not None:
            store_packed(grad_q, grads.q_mean, grads.q_raw, place, mask, mode)
        if grad_latent is not None:
            store_latent(grad_latent, grads.latent, place, mask)
        if mode.shared_p:
            p_mean_sum += grads.p_mean
            p_raw_sum += grads.p_raw
        elif grad_p is not None:
            store_packed(grad_p, grads.p_mean, grads.p_raw, place, mask, mode)

    if mode.shared_p:
        place = place_tile(layout, program.sample, program.row_block, program.column_block, mode)
        mask = in_latent(place) if mode.masked else None
        store_packed(grad_p, p_mean_sum, p_raw_sum, place, mask, mode)


@triton.jit
def _of_sample(grad, sample, mode):
    return tl.load(grad.data + sample * grad.strides[0]).to(mode.compute)


@triton.jit
def _grad_kl(incoming, place, window, mask, mode):
    """The gradient of the elementwise KL: that of every reduction, broadcast back."""
    grad = tl.zeros([1, 1], mode.compute)
    if incoming.samplewise is not None:
        grad += _of_sample(incoming.samplewise, place.sample, mode)
    if incoming.restricted is not None:
        weight = inside(place.row if mode.channels_inner else place.column, window).to(mode.compute)
        grad += weight * _of_sample(incoming.restricted, place.sample, mode)
    if incoming.over_rows is not None:
        column_mask = place.column < place.columns if mode.masked else None
        grad += load_tile(incoming.over_rows + place.sample * place.columns + place.column, column_mask, mode)
    if incoming.over_columns is not None:
        row_mask = place.row < place.rows if mode.masked else None
        grad += load_tile(incoming.over_columns + place.sample * place.rows + place.row, row_mask, mode)
    if incoming.elementwise is not None:
        grad += load_tile(dense_pointers(incoming.elementwise, place), mask, mode)
    return grad
