"""Three ways to the mean and the standard deviation of many predictions, and the models that they run."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.careamics import ARCHITECTURE, LadderVAE, mmse_loop
from ladder_kernels import patch_model, predict_mmse

UPSTREAM, PATCHED, OURS = "upstream's loop", "upstream's loop, patched", "predict_mmse"


class Way(Protocol):
    """Mean and standard deviation (B, 1, H, W) of so many predictions of tiles (B, 1, H, W)."""

    def __call__(self, tiles: Tensor, *, samples: int) -> tuple[Tensor, Tensor]: ...


def build(options: dict[str, Any], patch: int, seed: int = 0) -> Any:
    """A LadderVAE for square patches, the default architecture but for `options`."""
    torch.manual_seed(seed)
    return LadderVAE(**ARCHITECTURE | {"input_shape": (patch, patch)} | options)


def ways(make_model: Callable[[], Any], tile: int) -> dict[str, Way]:
    """All three, by name, each for a model of its own that `make_model` gives, for square tiles."""
    upstream, patched = make_model(), make_model()
    patch_model(patched)
    for model in (upstream, patched):
        model.reset_for_inference((tile, tile))
    return {
        UPSTREAM: functools.partial(mmse_loop, upstream),
        PATCHED: functools.partial(mmse_loop, patched),
        OURS: functools.partial(_ours, patched),
    }


def _ours(model: nn.Module, tiles: Tensor, *, samples: int) -> tuple[Tensor, Tensor]:
    # The second half of the output is the log-variance of a pixel.
    return predict_mmse(model, tiles, samples, output=lambda out: out.chunk(2, 1)[0])
