"""How a step is laid over the GPU: rows and columns, tiles, programs. Pure integers."""

from collections.abc import Sequence
from typing import NamedTuple

Strides = tuple[int, ...]

# The reasons are counts of what compiled kernels ask for (bench/NOTES.md, "What a Triton kernel asks of a GPU").
# Columns of a tile. 256 left twice the partial sums and read mixed layouts twice from L2; 64 and 32 spread what lies
# strided or misaligned over more lines of memory. At least 16, so that tiny latents still fill vectors.
MAX_COLUMNS, MIN_COLUMNS = 128, 16
# A narrower tile must leave so many fewer lanes idle: with few columns to a row, more of them are in each thread.
IDLE_LANES = 1.05
# Elements of a tile: eight a thread with 128 threads; more spills, fewer pays the tile's addresses more often.
TILE = 1024
ELEMENTS_PER_THREAD = 8
# One warp's: a batch-1 p's gradient walks the batch in turn, so parallelism must come from small tiles.
SHARED_TILE = 256
# A program takes several tiles only once there are enough programs to fill the largest GPU; its partial sums and
# its start are then shared by more elements. Fixed numbers, so that sums do not depend on the GPU. Fewer programs would
# issue less (forward pays 22 instructions a latent for a program's start and end, at one tile); whether they still hide
# the latency, only a GPU can tell.
FULL_GRID = 512
MAX_TILES_FORWARD, MAX_TILES_BACKWARD = 32, 8
# Of the second and third dim of a CUDA grid.
MAX_GRID = 65535


class Tiles(NamedTuple):
    """One kernel's share of the work: a grid of column blocks, row blocks and samples."""

    block_rows: int
    block_columns: int
    tiles: int
    row_blocks: int
    column_blocks: int
    samples: int
    masked: bool

    def warps(self, warp_size: int) -> int:
        """Warps of a program: eight elements a thread, whatever the GPU's warp."""
        return max(1, self.block_rows * self.block_columns // (ELEMENTS_PER_THREAD * warp_size))

    def first_axis(self) -> int:
        """Which of the grid's dims changes places with its first, the only one that may be long."""
        sizes = (self.column_blocks, self.row_blocks, self.samples)
        return 0 if max(sizes) <= MAX_GRID else sizes.index(max(sizes))

    def grid(self) -> tuple[int, int, int]:
        sizes, first = [self.column_blocks, self.row_blocks, self.samples], self.first_axis()
        sizes[0], sizes[first] = sizes[first], sizes[0]
        return sizes[0], sizes[1], sizes[2]


class Plan(NamedTuple):
    """What the kernels need to know of the shapes and strides. Strides are of (batch, channel, *collapsed space)."""

    sizes: tuple[int, int, int]  # batch, rows, columns
    channels_inner: bool
    space: tuple[int, ...]  # sizes of all but the first collapsed spatial dim
    q_strides: Strides
    p_strides: Strides | None
    source_strides: Strides | None
    aligned: bool  # rows of z start at multiples of four
    wide: bool  # offsets within a sample need 64 bits
    forward: Tiles
    backward: Tiles
    backward_shared: Tiles  # p of batch 1: the tiles of a program are the samples


def make_plan(
    shape: Sequence[int],
    q_strides: Strides,
    p_strides: Strides | None,
    source_strides: Strides | None,
    channels_last: bool,
) -> Plan:
    """The plan for latents of `shape` (batch, channels, *space) with these strides, p's batch stride 0 if shared.

    `channels_last` is the order of z, whatever the strides of the rest.
    """
    batch, channels, *space = shape
    positions = 1
    for size in space:
        positions *= size
    channels_inner = channels_last or positions == 1
    rows, columns = (positions, channels) if channels_inner else (channels, positions)
    given = [strides for strides in (q_strides, p_strides, source_strides) if strides is not None]
    collapsed, merged = collapse(space, given)
    strides = iter(merged)
    tile_columns = _tile_columns(columns)
    tile_rows = max(1, min(TILE // tile_columns, power_of_two(rows)))
    largest_offset = max(
        sum(abs(s) * n for s, n in zip(tensor[1:], (2 * channels, *space), strict=True)) for tensor in given
    )
    return Plan(
        sizes=(batch, rows, columns),
        channels_inner=channels_inner,
        space=tuple(collapsed[1:]),
        q_strides=next(strides),
        p_strides=next(strides) if p_strides is not None else None,
        source_strides=next(strides) if source_strides is not None else None,
        aligned=columns % 4 == 0,
        wide=max(largest_offset, 2 * rows * columns) >= 2**31,
        forward=_tiles(batch, rows, columns, tile_rows, tile_columns, MAX_TILES_FORWARD),
        backward=_tiles(batch, rows, columns, tile_rows, tile_columns, MAX_TILES_BACKWARD),
        backward_shared=_shared_tiles(batch, rows, columns, tile_columns),
    )


def _tiles(batch: int, rows: int, columns: int, tile_rows: int, tile_columns: int, max_tiles: int) -> Tiles:
    column_blocks = -(-columns // tile_columns)
    row_tiles = -(-rows // tile_rows)
    tiles = max(1, min(max_tiles, row_tiles, batch * column_blocks * row_tiles // FULL_GRID))
    row_blocks = -(-row_tiles // tiles)
    masked = columns % tile_columns != 0 or row_blocks * tiles * tile_rows != rows
    return Tiles(tile_rows, tile_columns, tiles, row_blocks, column_blocks, batch, masked)


def _tile_columns(columns: int) -> int:
    """The widest tile that leaves few lanes without an element."""
    widths = [MAX_COLUMNS]
    while widths[-1] > MIN_COLUMNS:
        widths.append(widths[-1] // 2)
    covered = [-(-columns // width) * width for width in widths]
    return next(width for width, elements in zip(widths, covered, strict=True) if elements <= IDLE_LANES * min(covered))


def _shared_tiles(batch: int, rows: int, columns: int, tile_columns: int) -> Tiles:
    tile_rows = max(1, min(SHARED_TILE // tile_columns, power_of_two(rows)))
    row_blocks, column_blocks = -(-rows // tile_rows), -(-columns // tile_columns)
    masked = columns % tile_columns != 0 or rows % tile_rows != 0
    return Tiles(tile_rows, tile_columns, batch, row_blocks, column_blocks, 1, masked)


def collapse(space: Sequence[int], tensors: list[Strides]) -> tuple[list[int], list[Strides]]:
    """Merges neighbouring spatial dims wherever all tensors allow it; dims of size 1 vanish."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for dim, size in enumerate(space):
        if size == 1:
            continue
        here = [tensor[2 + dim] for tensor in tensors]
        if sizes and all(outer[-1] == size * inner for outer, inner in zip(strides, here, strict=True)):
            sizes[-1] *= size
            for outer, inner in zip(strides, here, strict=True):
                outer[-1] = inner
        else:
            sizes.append(size)
            for outer, inner in zip(strides, here, strict=True):
                outer.append(inner)
    if not sizes:
        sizes, strides = [1], [[1] for _ in tensors]
    return sizes, [(*tensor[:2], *inner) for tensor, inner in zip(tensors, strides, strict=True)]


def power_of_two(size: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, size - 1).bit_length()
