"""The data: a real micrograph that ships with scikit-image, with noise added, and random patches of it."""

from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 512
NOISE_STD = 0.2


class Micrograph(NamedTuple):
    """A clean image (H, W) in [0, 1] and the same with noise."""

    clean: Tensor
    noisy: Tensor

    def normalised(self) -> Tensor:
        """The noisy image (H, W) with mean 0 and standard deviation 1: what the model sees."""
        return (self.noisy - self.noisy.mean()) / self.noisy.std()


def load_micrograph(seed: int = 0) -> Micrograph:
    """The micrograph (512, 512), with Gaussian noise of standard deviation `NOISE_STD`."""
    from skimage import color, data  # here, so that what else is in this file works without it

    clean = torch.from_numpy(color.rgb2gray(data.immunohistochemistry())).float()
    generator = torch.Generator().manual_seed(seed)
    return Micrograph(clean, clean + NOISE_STD * torch.randn(clean.shape, generator=generator))


def random_patches(image: Tensor, patch: int, batch: int, generator: torch.Generator) -> Tensor:
    """Square patches (batch, 1, patch, patch) from random places of an image (H, W)."""
    rows, columns = (torch.randint(size - patch + 1, (batch,), generator=generator).tolist() for size in image.shape)
    cut = [image[row : row + patch, column : column + patch] for row, column in zip(rows, columns, strict=True)]
    return torch.stack(cut).unsqueeze(1)
