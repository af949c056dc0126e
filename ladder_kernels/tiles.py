"""Where the tiles of an image lie, what a model sees of it there, and how predictions blend: geometry, without a model.

An image (B, C, *S) is read through slices alone, so an array on disk (memmap, zarr) will do, and never copied whole.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tile(NamedTuple):
    """One tile: along every dim where it begins, below 0 in the mirrored border, and its weights (side,).

    At each pixel of the image the products of the weights, over all tiles, sum to one.
    """

    starts: tuple[int, ...]
    weights: tuple[Tensor, ...]

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(len(weights) for weights in self.weights)

    def add_to(self, image: Tensor, prediction: Tensor) -> None:
        """Add a prediction (C, *sides) to the image (C, *S), weighted; what lies in the border is dropped.

        Both may lack leading dims of the tile.
        """
        dims = prediction.dim() - 1
        inside = []
        for dim, (start, weights) in enumerate(zip(self.starts[-dims:], self.weights[-dims:], strict=True), start=1):
            shape = [-1 if each == dim else 1 for each in range(prediction.dim())]
            prediction = prediction * weights.to(prediction).view(shape)
            size = image.shape[dim]
            inside.append(slice(max(start, 0), min(start + len(weights), size)))
            prediction = prediction.narrow(dim, max(-start, 0), inside[-1].stop - inside[-1].start)
        image[(slice(None), *inside)] += prediction.to(image.device)


def tiles(sizes: Sequence[int], sides: Sequence[int], overlaps: Sequence[int]) -> Iterator[Tile]:
    """Tiles of these sides that cover an image, row by row; neighbours share at least so many pixels.

    Where a side is no smaller than the image, the image lies in its middle.
    """
    along = [_along(*each) for each in zip(sizes, sides, overlaps, strict=True)]
    for each in itertools.product(*along):
        yield Tile(*zip(*each, strict=True))


def _along(size: int, side: int, overlap: int) -> list[tuple[int, Tensor]]:
    """Starts and weights along one dim: as few tiles as will do, at equal distances."""
    if side >= size:
        return [((size - side) // 2, torch.ones(side))]
    steps = -(-(size - side) // (side - overlap))
    starts = [round(step * (size - side) / steps) for step in range(steps + 1)]
    weights = torch.ones(len(starts), side, dtype=torch.float64)
    total = torch.zeros(size, dtype=torch.float64)
    for number, start in enumerate(starts):
        if number > 0:
            ramp = _ramp(starts[number - 1] + side - start)
            weights[number, : len(ramp)] *= ramp
        if number < steps:
            ramp = _ramp(start + side - starts[number + 1])
            weights[number, side - len(ramp) :] *= ramp.flip(0)
        total[start : start + side] += weights[number]
    parts = [weights[number] / total[start : start + side] for number, start in enumerate(starts)]
    return [(start, part.float()) for start, part in zip(starts, parts, strict=True)]


def _ramp(count: int) -> Tensor:
    """From 0 to 1, a half wave: it and its mirror image sum to one, and what a tile's very border says counts least."""
    return torch.sin((torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / 2 / max(count, 1))).square()


def cut(image: Any, number: int, starts: Sequence[int], sides: Sequence[int]) -> Tensor:
    """A box (1, C, *sides) of image `number` of (B, C, *S), mirrored at its borders as often as it takes."""
    places = [_mirrored(*each) for each in zip(starts, sides, image.shape[2:], strict=True)]
    box = [slice(int(place.min()), int(place.max()) + 1) for place in places]
    part = image[(slice(number, number + 1), slice(None), *box)]
    if not isinstance(part, Tensor):
        import numpy as np  # who gives an array has it

        wide = np.float64 if np.dtype(part.dtype) == np.float64 else np.float32
        part = torch.from_numpy(np.ascontiguousarray(part, dtype=wide))
    for dim, (place, lies) in enumerate(zip(places, box, strict=True), start=2):
        if lies.stop - lies.start != len(place) or place[0] != lies.start:
            part = part.index_select(dim, (place - lies.start).to(part.device))
    return part


def _mirrored(start: int, side: int, size: int) -> Tensor:
    """The pixels 0 to `size` - 1 that `side` ones from `start` show: around each end, which is not repeated."""
    place = torch.arange(start, start + side) % max(2 * (size - 1), 1)
    return torch.minimum(place, 2 * (size - 1) - place)


def cut_with_context(image: Any, number: int, starts: Sequence[int], sides: Sequence[int], count: int) -> Tensor:
    """Lateral context (1, `count`, *sides) of a box of an image of (B, 1, *S): it, and larger ones around its centre.

    Each has twice the sides of the one before and is scaled down to the box's, as CAREamics' dataset does it.
    """
    context = []
    for factor in (2**scale for scale in range(count)):
        centred = [start + side // 2 - factor * side // 2 for start, side in zip(starts, sides, strict=True)]
        part = cut(image, number, centred, [factor * side for side in sides])
        for dim, side in enumerate(sides, start=2):
            if factor > 1:
                part = torch.tensordot(part, _shrinking(side, factor).to(part), ([dim], [1])).movedim(-1, dim)
        context.append(part)
    return torch.cat(context, 1)


@functools.lru_cache(maxsize=32)
def _shrinking(side: int, factor: int) -> Tensor:
    """The matrix (side, factor * side) of `skimage.transform.resize` by an even factor, along one dim.

    A Gaussian of standard deviation (factor - 1) / 2, cut off at 4 of them and mirrored at the ends; then the mean of
    the two pixels at the middle.
    """
    sigma = (factor - 1) / 2
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma).square())
    kernel /= 2 * kernel.sum()
    matrix = torch.zeros(side, factor * side, dtype=torch.float64)
    for row, middle in itertools.product(range(side), (factor // 2 - 1, factor // 2)):
        place = _mirrored(row * factor + middle - radius, 2 * radius + 1, factor * side)
        matrix[row].index_add_(0, place, kernel)
    return matrix
