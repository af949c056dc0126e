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
    first_axis: Any  # of the grid: which of column blocks, row blocks and batch it is


class Program(NamedTuple):
    """Which part is this program's."""

    sample: Any  # int64
    row_block: Any
    column_block: Any


class Place(NamedTuple):
    """Where a tile lies. Numbers that offsets are computed from have 64 bits where those need it (WIDE)."""

    sample: Any  # int64
    row: Any  # (ROWS, 1)
    column: Any  # (1, COLUMNS)
    first_column: Any
    rows: Any  # of the whole latent
    columns: Any
    start: Any  # int64: where the sample begins in a dense latent


@triton.jit
def this_program(layout):
    """Grid: column blocks x row blocks x batch, `first_axis` of them in the first's place. One dim would have to be
    divided, at the cost of seven instructions a latent where a program has one tile."""
    FIRST: tl.constexpr = layout.first_axis
    column_block = tl.program_id(FIRST)
    row_block = tl.program_id(0 if FIRST == 1 else 1)
    sample = tl.program_id(0 if FIRST == 2 else 2)
    return Program(sample.to(tl.int64), row_block, column_block)


@triton.jit
def place_tile(
    layout,
    sample,
    row_tile,
    column_block,
    WIDE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """`row_tile` counts tiles down the rows."""
    rows, columns = widened(layout.sizes[1], WIDE), widened(layout.sizes[2], WIDE)
    row = (widened(row_tile, WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    first_column = widened(column_block, WIDE) * BLOCK_COLUMNS
    column = first_column + tl.arange(0, BLOCK_COLUMNS)[None, :]
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
def _pointers(tensor, place, space, CHANNELS_INNER: tl.constexpr):
    """Pointers (ROWS, COLUMNS) into a `Strided`."""
    strides = tensor.strides
    channel = place.column if CHANNELS_INNER else place.row
    position = place.row if CHANNELS_INNER else place.column
    base = tensor.data + place.sample * strides[0]
    if len(strides) == 3:
        return base + (channel * strides[1] + position * strides[2])
    elif len(strides) == 4:
        inner = (position // space[0]) * strides[2] + (position % space[0]) * strides[3]
        return base + (channel * strides[1] + inner)
    else:
        plane = position // space[1]
        inner = (plane // space[0]) * strides[2] + (plane % space[0]) * strides[3]
        return base + (channel * strides[1] + inner + (position % space[1]) * strides[4])


@triton.jit
def dense_pointers(base, place):
    """Pointers (ROWS, COLUMNS) into a dense latent in q's layout."""
    return base + place.start + (place.row * place.columns + place.column)


@triton.jit
def load_tile(pointers, mask, COMPUTE: tl.constexpr):
    """In the compute dtype right after the load: arithmetic on bfloat16 is garbage in the interpreter."""
    if mask is None:
        return tl.load(pointers).to(COMPUTE)
    else:
        return tl.load(pointers, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def load_gaussian(
    packed,
    place,
    space,
    mask,
    variance,
    CHANNELS_INNER: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """The Gaussian of packed parameters, a `Strided` of twice the channels: means, then raw parameters."""
    pointers = _pointers(packed, place, space, CHANNELS_INNER)
    half = (place.columns if CHANNELS_INNER else place.rows) * packed.strides[1]
    mean = load_tile(pointers, mask, COMPUTE)
    return gaussian(mean, load_tile(pointers + half, mask, COMPUTE), variance, FAST)


@triton.jit
def load_source(
    source,
    seed,
    place,
    space,
    mask,
    DRAW: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
    VECTOR: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """What z is drawn from: noise, given or of the seed, or the given latent; zero for the mode."""
    if DRAW == "mode":
        return tl.zeros([1, 1], COMPUTE)
    elif DRAW == "seed":
        row_start = place.row * place.columns + place.first_column
        return normal_tile(seed, place.start, row_start, place.column.shape[1], ALIGNED, VECTOR, COMPUTE, FAST)
    else:
        return load_tile(_pointers(source, place, space, CHANNELS_INNER), mask, COMPUTE)


@triton.jit
def store_latent(base, value, place, mask):
    """Into a dense latent in q's layout."""
    tl.store(dense_pointers(base, place), value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def store_packed(base, mean, raw, place, mask, CHANNELS_INNER: tl.constexpr):
    """Both halves of packed parameters, dense in q's layout."""
    rows, columns = place.rows, place.columns
    base += place.sample * 2 * rows * columns
    if CHANNELS_INNER:
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
