"""CAREamics' released LadderVAE in its default architecture: building, block, losses and prediction."""

import contextlib
import importlib
import io
from collections.abc import Callable
from typing import Any

import torch
from careamics.config.architectures.lvae_config import LVAEConfig
from careamics.config.losses.loss_config import LVAELossConfig
from careamics.losses.lvae import lvae_losses as losses
from careamics.models.lvae.likelihoods import GaussianLikelihood
from careamics.models.lvae.lvae import LadderVAE
from careamics.models.lvae.stochastic import NormalStochasticBlock
from torch import Tensor, nn

from tests.careamics_models import noise_model_likelihood

ARCHITECTURE: dict[str, Any] = LVAEConfig(architecture="LVAE").model_dump()
# Every level halves the patch, and upstream's block crops an odd latent, which no longer fits its encoder.
PATCH_MULTIPLE = 2 ** (len(ARCHITECTURE["z_dims"]) + 1)
LOGVAR_LOWERBOUND = -5.0  # LadderVAE's own, which it leaves to the likelihood

Loss = Callable[[tuple[Tensor, dict[str, Any]], Tensor], dict[str, Tensor] | None]


def build_model(patch: int, *, channels: int = 1, analytical_kl: bool = False, seed: int = 0) -> Any:
    """A LadderVAE for square patches; the same seed gives the same weights.

    Of more channels it is denoiSplit's: without log-variances, and with a noise model for each channel.
    """
    torch.manual_seed(seed)
    options = {"input_shape": (patch, patch), "analytical_kl": analytical_kl, "output_channels": channels}
    if channels == 1:
        return LadderVAE(**ARCHITECTURE | options)
    model = LadderVAE(**ARCHITECTURE | options | {"predict_logvar": None})
    model.noise_model = noise_model_likelihood(ARCHITECTURE | options)
    return model


def build_loss(kl_weight: float = 1.0, noise_model: nn.Module | None = None) -> Loss:
    """CAREamics' HDN loss as `loss(model's outputs, targets)`; None where it is NaN.

    With a Gaussian likelihood, or that of a noise model: then it is denoiSplit's, too.
    """
    gaussian, config = None if noise_model else _likelihood(), LVAELossConfig(loss_type="hdn", kl_weight=kl_weight)
    return lambda outputs, targets: losses.hdn_loss(outputs, targets, config, gaussian, noise_model)


def build_unchecked_loss(kl_weight: float = 1.0, noise_model: nn.Module | None = None) -> Loss:
    """The same number without `hdn_loss`'s tests for NaN, for which the host waits: a CUDA graph cannot hold those."""
    likelihood = noise_model or _likelihood()

    def loss(outputs: tuple[Tensor, dict[str, Any]], targets: Tensor) -> dict[str, Tensor]:
        prediction, data = outputs
        kl = losses._get_kl_divergence_loss_denoisplit(data, targets.shape[2:], "kl")
        return {"loss": losses.get_reconstruction_loss(prediction, targets, likelihood) + kl_weight * kl}

    return loss


def _likelihood() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # the constructor prints its arguments
        return GaussianLikelihood(ARCHITECTURE["predict_logvar"], LOGVAR_LOWERBOUND)


def bare_block(channels: int, dims: int, vanilla_latent_hw: int) -> nn.Module:
    """Upstream's stochastic block without its convolutions: its inputs are the packed parameters (B, 2C, *S)."""
    # Built with as little as possible, and replaced: the convolutions cost the same whoever samples.
    block: Any = NormalStochasticBlock(1, channels, 1, dims, kernel=1, vanilla_latent_hw=vanilla_latent_hw)
    block.conv_in_p = block.conv_in_q = block.conv_out = nn.Identity()
    return block


def mmse_loop(model: Any, tiles: Tensor, *, samples: int) -> tuple[Tensor, Tensor]:
    """CAREamics' own mean and standard deviation (B, 1, H, W) of so many predictions of tiles (B, 1, H, W)."""
    # Here, because it needs all of CAREamics.
    prediction = importlib.import_module("careamics.lightning.prediction.lvae.lvae_prediction")
    (mean,), (std,), _ = prediction.lvae_predict_mmse_tiled_batch(model, _likelihood(), (tiles,), samples)
    return mean, std
