"""Three ways to the mean and the standard deviation of many predictions of an image, and the models that they run."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.careamics import ARCHITECTURE, LadderVAE, mmse_loop
from bench.mmse.tiles import tiles
from ladder_kernels import patch_model, predict_mmse

UPSTREAM, PATCHED, OURS = "upstream's loop", "upstream's loop, patched", "predict_mmse"
# An image larger than a tile is cut by all into the same tiles: predict_mmse's own ones for the micrograph's size.
TILE, OVERLAP = 256, 64


class Way(Protocol):
    """Mean and standard deviation (B, 1, H, W) of so many predictions of square images (B, 1, H, W)."""

    def __call__(self, images: Tensor, *, samples: int) -> tuple[Tensor, Tensor]: ...


def build(options: dict[str, Any], patch: int, seed: int = 0) -> Any:
    """A LadderVAE for square patches, the default architecture but for `options`."""
    torch.manual_seed(seed)
    return LadderVAE(**ARCHITECTURE | {"input_shape": (patch, patch)} | options)


def ways(make_model: Callable[[], Any], side: int) -> dict[str, Way]:
    """All three, by name, each for a model of its own that `make_model` gives, for images of this side."""
    upstream, patched = make_model(), make_model()
    patch_model(patched)
    for model in (upstream, patched):
        model.reset_for_inference((min(side, TILE),) * 2)
    return {
        UPSTREAM: functools.partial(_tiled_loop, upstream),
        PATCHED: functools.partial(_tiled_loop, patched),
        OURS: functools.partial(_ours, patched),
    }


def _tiled_loop(model: Any, images: Tensor, *, samples: int) -> tuple[Tensor, Tensor]:
    """CAREamics' loop for every tile, whose overlaps it cuts in the middle."""
    height, width = images.shape[2:]
    if max(height, width) <= TILE:
        return mmse_loop(model, images, samples=samples)
    found = torch.empty_like(images), torch.empty_like(images)
    for tile in tiles(height, width, TILE, OVERLAP):
        for part, target in zip(mmse_loop(model, images[(..., *tile.whole)], samples=samples), found, strict=True):
            target[(..., *tile.kept)] = part[(..., *tile.inner)]
    return found


def _ours(model: nn.Module, images: Tensor, *, samples: int) -> tuple[Tensor, Tensor]:
    return predict_mmse(model, images, samples)
