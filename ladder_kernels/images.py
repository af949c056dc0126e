"""What `predict_mmse` is given: images that fit the model, the tiles that they are cut into, statistics."""

import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder_kernels.ladder import context_count, misfit, multiples, trained_depth
from ladder_kernels.tiles import Tile, cut, cut_with_context, tiles

# By the number of spatial dims. An image of no more pixels is predicted whole.
TILES = {1: (65536,), 2: (256, 256), 3: (16, 64, 64)}
# Of a tile's side, how much two tiles share.
OVERLAP = 1 / 4


def at_least_one(name: str, value: Any) -> int:
    """An integer of any kind, as Python's."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def check_image(image: Any, ladder: Any) -> None:
    """Raise TypeError or ValueError for what are no images (B, C, *S) that the model takes."""
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise TypeError(f"image must be a tensor or an array, got a {type(image).__name__}")
    shape, axes = tuple(image.shape), "B, C and those of space"
    if ladder is not None:
        axes = "B, C, Z, Y, X" if len(ladder.encoder_conv_strides) == 3 else "B, C, Y, X"
    if len(shape) < 3 if ladder is None else len(shape) != 2 + len(ladder.encoder_conv_strides):
        raise ValueError(f"image must have the axes {axes}, got the shape {shape}: a single one is image[None, None]")
    if 0 in shape:
        raise ValueError(f"image is empty, its shape is {shape}")
    if ladder is not None and shape[1] not in (ladder.color_ch, context_count(ladder)):
        context = f", or {context_count(ladder)} with their lateral context" if context_count(ladder) > 1 else ""
        raise ValueError(f"the model takes images of {ladder.color_ch} channel{context}, got {shape[1]}: {shape}")


class Plan(NamedTuple):
    """How images are cut."""

    sides: tuple[int, ...]
    tiles: list[Tile]
    context: int

    def cut(self, image: Any, number: int, tile: Tile) -> Tensor:
        """What the model sees (1, C, *sides) of one of the images there."""
        if self.context > image.shape[1]:
            return cut_with_context(image, number, tile.starts, self.sides, self.context)
        return cut(image, number, tile.starts, self.sides)


def plan(image: Any, ladder: Any, tile: int | Sequence[int] | None, overlap: int | Sequence[int] | None) -> Plan:
    """The tiles of each image; raises ValueError for what cannot be a tile or an overlap."""
    sizes = tuple(image.shape[2:])
    context, takes, depth, joined = 1, (1,) * len(sizes), None, 0
    if ladder is not None:
        context, takes, depth = context_count(ladder), multiples(ladder), trained_depth(ladder)
        joined = len(sizes) - len(ladder.decoder_conv_strides)
    wholes = _rounded_up(sizes, takes)
    if context == image.shape[1] > 1:
        reason = misfit(ladder, sizes) or (None if tile is None else "leave tile out")
        if reason is not None:
            raise ValueError(f"images with their lateral context are predicted whole: {reason}")
        sides = sizes
    elif tile is None:
        sides = _default_sides(wholes, takes, depth)
    else:
        sides = _each_dim("tile", tile, len(sizes), 1)
        reason = None if ladder is None else misfit(ladder, sides)
        if reason is not None:
            raise ValueError(f"tile: {reason}")
    sides = wholes[:joined] + tuple(map(min, sides[joined:], wholes[joined:]))
    if depth is not None and not joined and sides[0] != min(depth, wholes[0]):
        said = f"tile: {sides[0]} planes deep, but the model was built for {depth}, and is wrong near others' borders"
        warnings.warn(f"{said}; without tile it is given {depth}", stacklevel=3)
    overlaps = tuple(int(OVERLAP * side) for side in sides)
    if overlap is not None:
        overlaps = _each_dim("overlap", overlap, len(sizes), 0)
        if any(shared >= side < size for shared, side, size in zip(overlaps, sides, sizes, strict=True)):
            raise ValueError(f"overlap must be smaller than the tile {sides}, got {overlaps}")
    return Plan(sides, list(tiles(sizes, sides, overlaps)), context)


def _default_sides(wholes: tuple[int, ...], takes: tuple[int, ...], depth: int | None) -> tuple[int, ...]:
    """The image whole, or of a tile of `TILES`; but of no other depth than the model was trained on.

    That is a few planes, each near a border where convolutions see zeros: predictions of more are wrong.
    """
    sides = _rounded_up(TILES[len(wholes)], takes)
    if math.prod(wholes) <= math.prod(sides):
        sides = wholes
    return sides if depth is None else (depth, *sides[1:])


def _rounded_up(sizes: Sequence[int], multiples: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-size // multiple) * multiple for size, multiple in zip(sizes, multiples, strict=True))


def _each_dim(name: str, value: int | Sequence[int], dims: int, least: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(given) != dims or any(not isinstance(each, int) or each < least for each in given):
        raise ValueError(f"{name} must be one integer of at least {least}, or {dims} of them, got {value!r}")
    return given


def per_channel(name: str, value: Any, like: Tensor) -> Tensor:
    """One number, or one for each channel of images `like` (B, C, *S), to compute with them."""
    values = torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1)
    if len(values) not in (1, like.shape[1]):
        raise ValueError(f"{name} must be one number or one for each of {like.shape[1]} channels, got {len(values)}")
    if name == "std" and not (values > 0).all():
        raise ValueError(f"std must be above 0, got {value}")
    return values.view(-1, *[1] * (like.dim() - 2))
