"""Three ways to the mean and the standard deviation of many predictions, and the models that they run."""

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.careamics import ARCHITECTURE, GaussianLikelihood, LadderVAE
from ladder_kernels import patch_model, predict_mmse

UPSTREAM, PATCHED, OURS = "upstream's loop", "upstream's loop, patched", "predict_mmse"


class Way(Protocol):
    """Mean and standard deviation (B, 1, H, W) of so many predictions of tiles (B, 1, H, W)."""

    def __call__(self, tiles: Tensor, samples: int) -> tuple[Tensor, Tensor]: ...


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
    return {UPSTREAM: _loop(upstream), PATCHED: _loop(patched), OURS: _ours(patched)}


def _loop(model: nn.Module) -> Way:
    """CAREamics' own function."""
    predict = importlib.import_module("careamics.lightning.prediction.lvae.lvae_prediction")
    with contextlib.redirect_stdout(io.StringIO()):  # the constructor prints its arguments
        likelihood = GaussianLikelihood(ARCHITECTURE["predict_logvar"])

    def loop(tiles: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        (mean,), (std,), _ = predict.lvae_predict_mmse_tiled_batch(model, likelihood, (tiles,), samples)
        return mean, std

    return loop


def _ours(model: nn.Module) -> Way:
    def ours(tiles: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        # The second half of the output is the log-variance of a pixel.
        return predict_mmse(model, tiles, samples, output=lambda out: out.chunk(2, 1)[0])

    return ours
