"""A tile: where its elements lie, and what is read and written there.

Rows are the slow and columns the fast of channels and space, whichever is contiguous in q. Channels are inner, as in
channels_last, if columns are channels and rows are positions of space; else the other way round. Space is collapsed to
as few dims as the strides allow. How large tiles are, `plan.py` says.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ladder_kernels.backends.triton.formulas import gaussian
from ladder_kernels.backends.triton.philox import normal_tile


class Strided(NamedTuple):
    """A tensor (batch, channel, *collapsed space) as a kernel's argument. A seed has no strides."""

    data: Any
    strides: Any


class Layout(NamedTuple):
    """How a kernel's work is laid out: one for all its programs."""

    sizes: Any  # batch, rows, columns
    space: Any  # sizes of all but the first collapsed spatial dim
    tiles: Any  # of a program
    row_blocks: Any
    column_blocks: Any


class Program(NamedTuple):
    """Which part is this program's."""

    sample: Any  # int64
    row_block: Any
    column_block: Any


class Place(NamedTuple):
    """Where a tile lies. Numbers that offsets are computed from have 64 bits where those need it (`Mode.wide`)."""

    sample: Any  # int64
    row: Any  # (ROWS, 1)
    column: Any  # (1, COLUMNS)
    first_column: Any
    rows: Any  # of the whole latent
    columns: Any
    start: Any  # int64: where the sample begins in a dense latent


@triton.jit
def this_program(mode):
    """Grid: column blocks x row blocks x samples, `first_axis` of them in the first's place. One dim would have to be
    divided, at the cost of seven instructions a latent where a program has one tile."""
    column_block = tl.program_id(mode.first_axis)
    row_block = tl.program_id(0 if mode.first_axis == 1 else 1)
    sample = tl.program_id(0 if mode.first_axis == 2 else 2)
    return Program(sample.to(tl.int64), row_block, column_block)


@triton.jit
def place_tile(layout, sample, row_tile, column_block, mode):
    """`row_tile` counts tiles down the rows."""
    rows, columns = widened(layout.sizes[1], mode.wide), widened(layout.sizes[2], mode.wide)
    row = (widened(row_tile, mode.wide) * mode.block_rows + tl.arange(0, mode.block_rows))[:, None]
    first_column = widened(column_block, mode.wide) * mode.block_columns
    column = first_column + tl.arange(0, mode.block_columns)[None, :]
    return Place(sample, row, column, first_column, rows, columns, sample * rows * columns)


@triton.jit
def in_latent(place):
    """Which elements of a tile lie in the latent (ROWS, COLUMNS)."""
    return (place.row < place.rows) & (place.column < place.columns)


@triton.jit
def widened(index, WIDE: tl.constexpr):
    """An index that offsets are computed from: where they need 64 bits, it has them before any product."""
    if WIDE:
        return index + tl.zeros([], tl.int64)
    else:
        return index


@triton.jit
def _pointers(tensor, place, space, mode):
    """Pointers (ROWS, COLUMNS) into a `Strided`."""
    strides = tensor.strides
    channel = place.column if mode.channels_inner else place.row
    position = place.row if mode.channels_inner else place.column
    base = tensor.data + place.sample * strides[0]
    return base + (channel * strides[1] + in_space(position, strides, space))


@triton.jit
def in_space(position, strides, space):
    """How far a flat position of space lies from the first, by the strides of a `Strided`."""
    if len(strides) == 3:
        return position * strides[2]
    elif len(strides) == 4:
        return (position // space[0]) * strides[2] + (position % space[0]) * strides[3]
    else:
        plane = position // space[1]
        inner = (plane // space[0]) * strides[2] + (plane % space[0]) * strides[3]
        return inner + (position % space[1]) * strides[4]


@triton.jit
def dense_pointers(base, place):
    """Pointers (ROWS, COLUMNS) into a dense latent in q's layout."""
    return base + place.start + (place.row * place.columns + place.column)


@triton.jit
def load_tile(pointers, mask, mode):
    """In the compute dtype right after the load: arithmetic on bfloat16 is garbage in the interpreter."""
    if mask is None:
        return tl.load(pointers).to(mode.compute)
    else:
        return tl.load(pointers, mask=mask, other=0.0).to(mode.compute)


@triton.jit
def load_gaussian(packed, place, space, mask, variance, mode):
    """The Gaussian of packed parameters, a `Strided` of twice the channels: means, then raw parameters."""
    pointers = _pointers(packed, place, space, mode)
    half = (place.columns if mode.channels_inner else place.rows) * packed.strides[1]
    mean = load_tile(pointers, mask, mode)
    return gaussian(mean, load_tile(pointers + half, mask, mode), variance, mode.fast)


@triton.jit
def load_seed(source, mode):
    """The seed, of which Philox makes the source; 0 where it does not."""
    if mode.draw != "seed":
        return 0
    elif mode.aligned:
        return tl.load(source.data)
    else:
        # Triton keeps the layout of a loaded tile through all that comes of it. That of a lone number it chooses anew
        # at every join of normals, by way of shared memory: 12 instructions a latent.
        return tl.load(source.data + tl.zeros([mode.block_rows, mode.block_columns // 8], tl.int32))


@triton.jit
def load_source(source, seed, place, space, mask, mode):
    """What z is drawn from: noise, given or of the seed, or the given latent; zero for the mode."""
    if mode.draw == "mode":
        return tl.zeros([1, 1], mode.compute)
    elif mode.draw == "seed":
        return normal_tile(seed, place.start, place.row * place.columns + place.first_column, mode)
    else:
        return load_tile(_pointers(source, place, space, mode), mask, mode)


@triton.jit
def store_latent(base, value, place, mask):
    """Into a dense latent in q's layout."""
    tl.store(dense_pointers(base, place), value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def store_packed(base, mean, raw, place, mask, mode):
    """Both halves of packed parameters, dense in q's layout."""
    rows, columns = place.rows, place.columns
    base += place.sample * 2 * rows * columns
    if mode.channels_inner:
        pointers = base + (place.row * (2 * columns) + place.column)
        half = columns
    else:
        pointers = base + (place.row * columns + place.column)
        half = rows * columns
    tl.store(pointers, mean.to(base.dtype.element_ty), mask=mask)
    tl.store(pointers + half, raw.to(base.dtype.element_ty), mask=mask)


@triton.jit
def inside(position, window):
    """Whether a flat position of space lies in the restricted window: rows, columns, height and width of space."""
    row = (position // window[5]) % window[4]
    column = position % window[5]
    return (row >= window[0]) & (row < window[1]) & (column >= window[2]) & (column < window[3])
