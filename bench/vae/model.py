"""A small VDVAE (Child, "Very deep VAEs", 2021): bottom-up features, then a ladder of latents with learned priors.

The stochastic step is the only thing that differs between the two versions: `Plain` or `Fused`.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ladder_kernels import VarianceMap, normal_sample, normal_sample_kl

SIDE = 24
WIDTH, LATENT_CHANNELS = 32, 16
# The latents' sides from the top down; where the next is larger, features are enlarged in between.
LEVELS = (3, 6, 6, 12, 12, 24)
VARIANCE = VarianceMap.vdvae()


class StochasticStep(Protocol):
    """What a level does with its heads (B, 2C, H, W): means, then log-stds."""

    def __call__(self, q_params: Tensor, p_params: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ q (B, C, H, W), and KL(q || p) of each sample (B,)."""

    def sample(self, p_params: Tensor, temperature: float) -> Tensor:
        """z ~ p (B, C, H, W), with its std times the temperature."""


class Plain:
    """In plain PyTorch."""

    def __call__(self, q_params: Tensor, p_params: Tensor) -> tuple[Tensor, Tensor]:
        (q_mean, q_log_std), (p_mean, p_log_std) = q_params.chunk(2, 1), p_params.chunk(2, 1)
        z = q_mean + q_log_std.exp() * torch.randn_like(q_mean)
        squares = (2 * q_log_std).exp() + (q_mean - p_mean).square()
        kl = p_log_std - q_log_std + 0.5 * (squares * (-2 * p_log_std).exp() - 1)
        return z, kl.flatten(1).sum(1)

    def sample(self, p_params: Tensor, temperature: float) -> Tensor:
        mean, log_std = p_params.chunk(2, 1)
        return mean + temperature * log_std.exp() * torch.randn_like(mean)


class Fused:
    """On the functions. Both draw torch's noise, so that on a GPU, too, they see the same."""

    def __call__(self, q_params: Tensor, p_params: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(q_params.chunk(2, 1)[0])
        step = normal_sample_kl(q_params, p_params, variance=VARIANCE, analytical_kl=True, noise=noise)
        return step.z, step.kl_samplewise

    def sample(self, p_params: Tensor, temperature: float) -> Tensor:
        noise = torch.randn_like(p_params.chunk(2, 1)[0])
        return normal_sample(p_params, variance=VARIANCE, noise=noise, temperature=temperature)


class Residual(nn.Module):
    """x + f(x), whose last convolution starts at a tenth of torch's size: x passes nearly unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        with torch.no_grad():
            self.last.weight *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.gelu(self.first(F.gelu(x))))


class Level(nn.Module):
    """One latent: the prior from the features above, the posterior from them and the bottom-up features."""

    def __init__(self) -> None:
        super().__init__()
        heads = 2 * LATENT_CHANNELS
        self.posterior = nn.Conv2d(2 * WIDTH, heads, 3, padding=1)
        self.prior = nn.Conv2d(WIDTH, heads + WIDTH, 3, padding=1)
        self.from_z = nn.Conv2d(LATENT_CHANNELS, WIDTH, 1)
        self.residual = Residual()
        for head in (self.posterior, self.prior):  # KL 0 and features unchanged at first
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]  # it has one

    def infer(self, x: Tensor, bottom_up: Tensor, step: StochasticStep) -> tuple[Tensor, Tensor]:
        p_params, features = self._prior(x)
        z, kl = step(self.posterior(torch.cat([x, bottom_up], 1)), p_params)
        return self._merge(x + features, z), kl

    def generate(self, x: Tensor, temperature: float, step: StochasticStep) -> Tensor:
        p_params, features = self._prior(x)
        return self._merge(x + features, step.sample(p_params, temperature))

    def _prior(self, x: Tensor) -> Sequence[Tensor]:
        """p's parameters, and features: views of one head, which the step takes as they are."""
        return self.prior(x).split((2 * LATENT_CHANNELS, WIDTH), 1)

    def _merge(self, x: Tensor, z: Tensor) -> Tensor:
        return self.residual(x + self.from_z(z))


class Ladder(nn.Module):
    """Images (B, 1, 24, 24) with a Gaussian likelihood, whose std is learned."""

    def __init__(self, step: StochasticStep) -> None:
        super().__init__()
        self.step = step
        sides = sorted(set(LEVELS), reverse=True)
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.bottom_up = nn.ModuleDict({str(side): Residual() for side in sides})
        self.top = nn.Parameter(torch.zeros(1, WIDTH, LEVELS[0], LEVELS[0]))
        self.levels = nn.ModuleList(Level() for _ in LEVELS)
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The reconstruction (B, 1, 24, 24), -log p(images | z) (B,), and the KL of each level (levels, B), in nats."""
        features = self._features(images)
        x, kls = self.top.expand(len(images), -1, -1, -1), []
        for level, side in self._ladder():
            x, kl = level.infer(_enlarged(x, side), features[side], self.step)
            kls.append(kl)
        mean = self.last(x)
        surprise = 0.5 * ((images - mean) * (-self.log_std).exp()).square() + self.log_std
        return mean, surprise.flatten(1).sum(1), torch.stack(kls)

    def generate(self, count: int, temperature: float) -> Tensor:
        """Images (count, 1, 24, 24) from the priors."""
        x = self.top.expand(count, -1, -1, -1)
        for level, side in self._ladder():
            x = level.generate(_enlarged(x, side), temperature, self.step)
        return self.last(x)

    def _ladder(self) -> Iterable[tuple[Level, int]]:
        """The levels from the top down, and their sides."""
        return zip(cast(Iterable[Level], self.levels), LEVELS, strict=True)

    def _features(self, images: Tensor) -> dict[int, Tensor]:
        features = {}
        x = self.stem(images)
        for name, residual in self.bottom_up.items():
            x = residual(F.adaptive_avg_pool2d(x, int(name)))
            features[int(name)] = x
        return features


def _enlarged(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, size=side)
