"""What the demo has found so far: all of it, or what there was at an interruption."""

import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench.demo.block_cost import BlockCost
from bench.training.trainer import StepResult

UPSTREAM, OURS = "upstream", "ladder_kernels"
NAMES = (UPSTREAM, OURS)
# Upstream's model once more, its weights off by a rounding error: how far rounding alone drives a training apart.
CONTROL = "control"
# The first steps allocate memory and choose kernels: their times do not count.
WARM_UP_STEPS = 5


class Difference(NamedTuple):
    """How far two loss curves are apart: relative to upstream's at every step, and the largest."""

    relative: list[float]
    largest_relative: float
    largest_absolute: float


@dataclass
class Findings:
    """Settings and measurements; what was not reached is empty."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    steps: dict[str, list[StepResult]] = field(default_factory=lambda: {name: [] for name in (*NAMES, CONTROL)})
    block_latent: tuple[int, ...] = ()
    block: dict[str, BlockCost] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    psnr: dict[str, float] = field(default_factory=dict)
    kl_maps: list[Tensor] = field(default_factory=list)
    complete: bool = False

    def losses(self) -> dict[str, list[float]]:
        """The loss of every step that all models have made."""
        done = min(len(steps) for steps in self.steps.values())
        return {name: [step.loss for step in steps[:done]] for name, steps in self.steps.items()}

    def step_seconds(self) -> dict[str, float]:
        """The median time of a step after the warm-up; empty before the first step."""
        if not all(self.steps.values()):
            return {}
        return {
            name: statistics.median(step.seconds for step in self.steps[name][WARM_UP_STEPS:] or self.steps[name])
            for name in NAMES
        }

    def differences(self) -> dict[str, Difference]:
        """How far our loss curve and the control's are from upstream's; empty before the first step."""
        losses = self.losses()
        if not losses[UPSTREAM]:
            return {}
        return {name: _difference(losses[name], losses[UPSTREAM]) for name in (OURS, CONTROL)}

    def summary(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "complete": self.complete,
            **self.environment,
            "settings": self.settings,
            "median_step_seconds": self.step_seconds(),
            "block_latent": self.block_latent,
            "block": {name: cost._asdict() for name, cost in self.block.items()},
            "psnr_db": self.psnr,
            "loss_differences": {name: difference._asdict() for name, difference in self.differences().items()},
            "losses": {name: [step.loss for step in steps] for name, steps in self.steps.items()},
            "step_seconds": {name: [step.seconds for step in steps] for name, steps in self.steps.items()},
        }

    def write_summary(self, path: Path) -> None:
        """Write `summary` as JSON; an interruption leaves the old file or the new one, never half of one."""
        unfinished = path.with_suffix(".json.part")
        unfinished.write_text(json.dumps(self.summary(), indent=2) + "\n")
        os.replace(unfinished, path)


def _difference(losses: list[float], reference: list[float]) -> Difference:
    absolute = [abs(loss - expected) for loss, expected in zip(losses, reference, strict=True)]
    relative = [gap / abs(expected) for gap, expected in zip(absolute, reference, strict=True)]
    return Difference(relative, max(relative), max(absolute))
