"""The data: a real micrograph that ships with scikit-image, with noise added, and random patches of it."""

from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 512
NOISE_STD = 0.2
# The part to show: a gland cut across, next to connective tissue.
SHOWN_CENTRE = (310, 310)


class Micrograph(NamedTuple):
    """A clean image (H, W) in [0, 1] and the same with noise."""

    clean: Tensor
    noisy: Tensor

    def normalised(self) -> Tensor:
        """The noisy image (H, W) with mean 0 and standard deviation 1: what the model sees."""
        return (self.noisy - self.noisy.mean()) / self.noisy.std()

    def restored(self, normalised: Tensor) -> Tensor:
        """Undo `normalised`."""
        return normalised * self.noisy.std() + self.noisy.mean()

    def shown(self, side: int) -> tuple[slice, slice]:
        """The square of `side` pixels to show, around the gland as far as the image reaches."""
        starts = [
            min(max(centre - side // 2, 0), size - side)
            for centre, size in zip(SHOWN_CENTRE, self.clean.shape, strict=True)
        ]
        return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


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


def psnr(image: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a clean image in [0, 1]."""
    return -10.0 * torch.log10(torch.mean((image - clean) ** 2)).item()
