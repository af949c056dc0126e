"""CAREamics' own Lightning module of LadderVAEs, which its versions 0.1 and 0.2 have: `make versions` runs this.

In float32: its validation makes NumPy arrays of what the model returns, which bfloat16 cannot become.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning
import torch
from careamics.config.algorithms.vae_algorithm_config import VAEBasedAlgorithm
from careamics.lightning import VAEModule
from torch.utils.data import DataLoader

from ladder_kernels import patch_model
from tests.careamics_models import TINY

SIDE = 64  # the smallest that its configuration takes
CONFIG = {
    "algorithm": "hdn",
    "loss": {"loss_type": "hdn"},
    "model": {
        **TINY,
        "architecture": "LVAE",
        "input_shape": (SIDE, SIDE),
        "output_channels": 1,
        "predict_logvar": "pixelwise",
    },
    "gaussian_likelihood": {"predict_logvar": "pixelwise", "logvar_lowerbound": -5.0},
    "optimizer": {"name": "SGD", "parameters": {"lr": 1e-3, "momentum": 0.9}},
    "mmse_count": 2,
}


class Images(pytorch_lightning.LightningDataModule):
    """Noise, and what the module's prediction asks the data for."""

    tiled = False
    prediction_config = SimpleNamespace(tta_transforms=False)
    predict_dataset = SimpleNamespace(image_means=[0.5], image_stds=[2.0])

    def train_dataloader(self) -> DataLoader:
        images = torch.randn(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        return DataLoader([(image,) for image in images], batch_size=2)

    val_dataloader = train_dataloader

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2)), batch_size=2)


def fit_validate_predict(patched: bool, folder: Path) -> tuple[dict[str, Any], float, Any]:
    """The weights, the loss of the validation, and the predictions."""
    torch.manual_seed(0)
    module = VAEModule(VAEBasedAlgorithm(**CONFIG))
    if patched:
        assert len(patch_model(module, rng="torch").patched) == 3
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=1,
        accumulate_grad_batches=2,
        **quiet,
    )
    torch.manual_seed(1)
    trainer.fit(module, Images())
    (validation,) = trainer.validate(module, Images(), verbose=False)
    ((mean, std),) = trainer.predict(module, Images())
    return module.state_dict(), validation["val_loss"], (torch.as_tensor(mean), torch.as_tensor(std))


def test_a_patched_module_fits_validates_and_predicts_as_upstream(tmp_path: Path) -> None:
    found, expected = (fit_validate_predict(patched, tmp_path) for patched in (True, False))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-4)
