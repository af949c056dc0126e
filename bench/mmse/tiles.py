"""An image as overlapping tiles, and back: each gives the part that is nearer to its middle than to a neighbour's."""

from collections.abc import Iterator
from typing import NamedTuple


class Tile(NamedTuple):
    """Where a tile lies in the image, and the part of it that is kept: slices of rows and columns."""

    whole: tuple[slice, slice]
    kept: tuple[slice, slice]
    inner: tuple[slice, slice]
    """`kept` in the tile's own coordinates."""


def tiles(height: int, width: int, side: int, overlap: int) -> Iterator[Tile]:
    """Square tiles that cover an image of at least `side` pixels each way, row by row."""
    for row in _spans(height, side, overlap):
        for column in _spans(width, side, overlap):
            yield Tile(*zip(row, column, strict=True))


def _spans(size: int, side: int, overlap: int) -> Iterator[tuple[slice, slice, slice]]:
    """The same along one dim. The last one ends with the image, however much it then overlaps."""
    starts = [*range(0, size - side, side - overlap), size - side]
    for start in starts:
        first = start if start == 0 else start + overlap // 2
        last = size if start + side == size else start + side - overlap // 2
        yield slice(start, start + side), slice(first, last), slice(first - start, last - start)
