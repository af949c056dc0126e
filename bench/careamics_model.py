"""The released CAREamics LadderVAE in its default architecture: building, HDN loss, prediction and KL maps."""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from careamics.config.architectures.lvae_config import LVAEConfig
from careamics.config.losses.loss_config import LVAELossConfig
from careamics.losses.lvae.lvae_losses import hdn_loss
from careamics.models.lvae.likelihoods import GaussianLikelihood
from careamics.models.lvae.lvae import LadderVAE
from torch import Tensor, nn

ARCHITECTURE: dict[str, Any] = LVAEConfig(architecture="LVAE").model_dump()
LEVELS = len(ARCHITECTURE["z_dims"])
# Every level halves the patch, and upstream's block crops an odd latent, which no longer fits its encoder.
PATCH_MULTIPLE = 2 ** (LEVELS + 1)
LOGVAR_LOWERBOUND = -5.0  # LadderVAE's own, which it leaves to the likelihood

Loss = Callable[[tuple[Tensor, dict[str, Any]], Tensor], dict[str, Tensor] | None]


def build_model(patch: int, *, analytical_kl: bool = False, seed: int = 0) -> nn.Module:
    """A LadderVAE for square patches; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return LadderVAE(**ARCHITECTURE | {"input_shape": (patch, patch), "analytical_kl": analytical_kl})


def build_loss(kl_weight: float = 1.0) -> Loss:
    """CAREamics' HDN loss with a Gaussian likelihood, as `loss(model's outputs, targets)`; None where it is NaN."""
    with contextlib.redirect_stdout(io.StringIO()):  # the constructor prints its arguments
        likelihood = GaussianLikelihood(ARCHITECTURE["predict_logvar"], LOGVAR_LOWERBOUND)
    config = LVAELossConfig(loss_type="hdn", kl_weight=kl_weight)
    return lambda outputs, targets: hdn_loss(outputs, targets, config, likelihood, None)


def bottom_block(model: Any) -> nn.Module:
    """The stochastic block of the level with the largest latent."""
    return model.top_down_layers[0].stochastic


@torch.no_grad()
def predict(model: Any, image: Tensor, *, samples: int, seed: int = 0) -> Tensor:
    """The mean of several predictions (H, W) for a normalised image (H, W): the MMSE estimate."""
    model = copy.deepcopy(model).eval()
    model.reset_for_inference(tuple(image.shape))
    torch.manual_seed(seed)
    return torch.stack([model(image[None, None])[0][0, 0] for _ in range(samples)]).mean(0)


@torch.no_grad()
def kl_maps(model: Any, image: Tensor, patch: int, *, samples: int, seed: int = 0) -> list[Tensor]:
    """The KL per latent position in nats, in closed form, one map per level, bottom to top; mean of several samples.

    `image` (H, W) is normalised and its sides are multiples of `patch`: out of prediction mode the learned prior of
    the top level has the training patch's size, so the image goes through patch by patch.
    """
    model = copy.deepcopy(model).eval()
    model.mode_pred = False
    for layer in model.top_down_layers:
        layer.analytical_kl = True  # a map of one-sample estimates shows little but their noise
    tiles = image.unfold(0, patch, patch).unfold(1, patch, patch)
    rows, columns = tiles.shape[:2]
    torch.manual_seed(seed)
    draws = [model(tiles.reshape(-1, 1, patch, patch))[1]["kl_spatial"] for _ in range(samples)]
    return [_stitch(torch.stack(level).mean(0), rows, columns) for level in zip(*draws, strict=True)]


def _stitch(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """Tiles (rows * columns, h, w) as one image (rows * h, columns * w)."""
    _, height, width = tiles.shape
    grid = tiles.view(rows, columns, height, width).transpose(1, 2)
    return grid.reshape(rows * height, columns * width)
