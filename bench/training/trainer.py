"""Training of one model, a step at a time, every step timed."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.careamics import build_loss
from bench.measure.launches import synchronize

# A faster training is a chaotic one: at 5e-3 a rounding error in the weights changes the loss by a tenth.
PEAK_LEARNING_RATE = 2e-3
# Below 1 the latents may carry more detail; with the likelihood's log-variance learned this denoises soonest.
KL_WEIGHT = 0.5


class DivergedError(RuntimeError):
    """The loss is not a number any more."""


class StepResult(NamedTuple):
    """What one training step gives."""

    loss: float
    seconds: float


class Trainer:
    """HDN training: the target is the noisy input itself.

    Parameters
    ----------
    model
        On the device it trains on.
    steps
        Length of the whole training, over which the learning rate rises and falls.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model
        self._loss = build_loss(KL_WEIGHT)
        self._optimizer = torch.optim.Adamax(model.parameters(), lr=PEAK_LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: one_cycle(step, steps))

    def step(self, patches: Tensor, seed: int) -> StepResult:
        """One optimizer step on patches (B, 1, H, W); `seed` fixes dropout and the latents' noise.

        Raises DivergedError where the loss is NaN.
        """
        torch.manual_seed(seed)
        self.model.train()
        synchronize(patches.device)
        start = time.perf_counter()
        self._optimizer.zero_grad()
        losses = self._loss(self.model(patches), patches)
        if losses is None:
            raise DivergedError("the loss is NaN: the training diverged")
        losses["loss"].backward()
        self._optimizer.step()
        synchronize(patches.device)
        seconds = time.perf_counter() - start
        self._schedule.step()
        return StepResult(losses["loss"].item(), seconds)


def one_cycle(step: int, steps: int) -> float:
    """The factor on the peak learning rate: up within the first tenth, then down along half a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))
