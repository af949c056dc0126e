"""CAREamics models to predict with, upstream's loop of many predictions, and `predict_mmse` beside it."""

from typing import Any

import torch
from careamics.models.lvae import LadderVAE
from torch import Tensor, nn

from ladder_kernels import noise, patch_model, predict_mmse
from tests.careamics_models import HDN, Setup

SAMPLES = 5
TILE = (32, 32)
LEVELS = 3


def build(setup: Setup = HDN, tile: tuple[int, ...] = TILE, patched: bool = True) -> LadderVAE:
    """A model whose batch norms have seen something, in training mode."""
    model = setup.build()
    inputs, _ = next(setup.batches())
    with torch.no_grad():
        model(inputs)
    if patched:
        patch_model(model, rng="torch")
    model.reset_for_inference(tile)
    return model.train()


def inputs_of(setup: Setup = HDN, tile: tuple[int, ...] = TILE, images: int = 1) -> Tensor:
    return torch.randn(images, setup.config["multiscale_count"], *tile, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def loop(model: nn.Module, x: Tensor, samples: int, seed: int = 0) -> Tensor:
    """Upstream's way, (samples, B, ...), image by image, with the generators that a patched model draws from."""
    model.eval()
    torch.manual_seed(seed)
    first = int(torch.randint(2**62, ()))
    images = []
    for number, image in enumerate(x):
        for sample in range(samples):
            with noise.seeded_each([first + number * samples + sample], x.device):
                images.append(without_logvar(model, model(image[None])[0]))
    return torch.cat(images).unflatten(0, (-1, samples)).transpose(0, 1)


def without_logvar(model: nn.Module, out: Tensor) -> Tensor:
    return out if model.predict_logvar is None else out.chunk(2, 1)[0]


def mmse(model: nn.Module, x: Tensor, samples: int = SAMPLES, seed: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return predict_mmse(model, x, samples, **options)


def assert_moments(found: tuple[Tensor, Tensor], samples: Tensor) -> None:
    expected = samples.double()
    torch.testing.assert_close(found[0].double(), expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].double(), expected.std(0), rtol=1e-4, atol=1e-6)


def state_of(model: nn.Module) -> tuple[list[bool], dict[str, Any]]:
    attributes = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    return [module.training for module in model.modules()], attributes
