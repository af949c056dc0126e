"""A tile: where its elements lie, and what is read there.

Rows are the slow and columns the fast of channels and space, whichever is contiguous in q. NCHW: rows are channels,
columns are space. channels_last: the other way round. Space is collapsed to as few dims as the strides allow.
"""

import triton
import triton.language as tl

from ladder_kernels.backends.triton.noise import normal_tile


@triton.jit
def pointers(base, sample, row, column, strides, space, CHANNELS_LAST: tl.constexpr):
    """Pointers to a strided tensor: sample (int64), row (ROWS, 1), column (1, COLUMNS), both `widened`.

    `strides` are those of (batch, channel, *space); `space` the sizes of all but the first collapsed spatial dim.
    """
    channel = column if CHANNELS_LAST else row
    position = row if CHANNELS_LAST else column
    base += sample * strides[0]
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
def load_tile(tile, mask, COMPUTE: tl.constexpr):
    """In the compute dtype right after the load: arithmetic on bfloat16 is garbage in the interpreter."""
    if mask is None:
        return tl.load(tile).to(COMPUTE)
    else:
        return tl.load(tile, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def load_halves(tile, half, mask, COMPUTE: tl.constexpr):
    """Mean and raw log-variance, `half` elements apart."""
    return load_tile(tile, mask, COMPUTE), load_tile(tile + half, mask, COMPUTE)


@triton.jit
def store_halves(base, row, column, rows, columns, mean, logvar, mask, CHANNELS_LAST: tl.constexpr):
    """Stores both halves of one sample's packed parameters, dense in q's layout."""
    if CHANNELS_LAST:
        tile = base + (row * (2 * columns) + column)
        half = columns
    else:
        tile = base + (row * columns + column)
        half = rows * columns
    tl.store(tile, mean.to(base.dtype.element_ty), mask=mask)
    tl.store(tile + half, logvar.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_source(
    source,
    seed,
    strides,
    sample,
    row,
    first_column,
    latent_row,
    space,
    mask,
    COLUMNS: tl.constexpr,
    DRAW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    COMPUTE: tl.constexpr,
    FAST: tl.constexpr,
):
    """What z is drawn from: noise, given or of the seed, or the given latent; zero for the mode."""
    if DRAW == "mode":
        return tl.zeros([1, 1], COMPUTE)
    elif DRAW == "seed":
        return normal_tile(seed, latent_row, first_column, COLUMNS, ALIGNED, COMPUTE, FAST)
    else:
        column = first_column + tl.arange(0, COLUMNS)[None, :]
        return load_tile(pointers(source, sample, row, column, strides, space, CHANNELS_LAST), mask, COMPUTE)


@triton.jit
def widened(index, WIDE: tl.constexpr):
    """An index that offsets are computed from: where they need 64 bits, it has them before any product."""
    if WIDE:
        return index + tl.zeros([], tl.int64)
    else:
        return index


@triton.jit
def inside(position, window):
    """Whether a flat position of space lies in the restricted window: rows, columns, height and width of space."""
    row = (position // window[5]) % window[4]
    column = position % window[5]
    return (row >= window[0]) & (row < window[1]) & (column >= window[2]) & (column < window[3])
