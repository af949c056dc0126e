"""What one stochastic block costs in a training step, its three convolutions included."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.kernels.cases import LOGVAR_MAX
from bench.measure.launches import count_calls
from bench.measure.memory import bytes_kept
from bench.measure.timing import quantile, take_turns

WARM_UPS = 3


class BlockCost(NamedTuple):
    """One forward and one backward of a block."""

    seconds: float
    calls_forward: int
    calls_backward: int
    synchronisations: int
    bytes_kept: int


class BlockRun:
    """A block with inputs (batch, c_in, side, side), used as a model in training uses it."""

    def __init__(self, block: Any, batch: int, side: int, *, analytical_kl: bool = False) -> None:
        weight = block.conv_in_q.weight
        generator = torch.Generator().manual_seed(0)
        shape = (batch, weight.shape[1], side, side)
        p_features, q_features = (torch.randn(shape, generator=generator).to(weight.device) for _ in range(2))
        self._block = block
        self._inputs = (p_features.requires_grad_(), q_features.requires_grad_())
        self._analytical_kl = analytical_kl
        self._gradients = tuple(torch.ones_like(output) for output in self.forward())

    def forward(self) -> tuple[Tensor, Tensor]:
        """What the rest of the model and the loss read: the output and the KL of every sample."""
        p_features, q_features = self._inputs
        output, data = self._block(p_features, q_features, analytical_kl=self._analytical_kl, var_clip_max=LOGVAR_MAX)
        return output, data["kl_samplewise"]

    def backward(self, outputs: tuple[Tensor, Tensor]) -> None:
        """The gradients of inputs and parameters, computed and dropped."""
        torch.autograd.grad(outputs, (*self._inputs, *self._block.parameters()), self._gradients)

    def cost(self, seconds: float) -> BlockCost:
        """Everything counted, with the time that was measured beside it."""
        outputs: list[tuple[Tensor, Tensor]] = []
        forward = count_calls(lambda: outputs.append(self.forward()))
        backward = count_calls(lambda: self.backward(outputs[0]))
        return BlockCost(
            seconds=seconds,
            calls_forward=forward.total,
            calls_backward=backward.total,
            synchronisations=forward.synchronisations + backward.synchronisations,
            bytes_kept=bytes_kept(self.forward, self._block.parameters()),
        )


def block_costs(runs: Mapping[str, BlockRun], device: torch.device, *, rounds: int) -> dict[str, BlockCost]:
    """The cost of every block; their times are taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    steps = {name: lambda _, run=run: run.backward(run.forward()) for name, run in runs.items()}
    for turn in take_turns(steps, range(WARM_UPS + rounds), device):
        seconds[turn.name].append(turn.seconds)
    return {name: run.cost(quantile(seconds[name][WARM_UPS:], 0.5)) for name, run in runs.items()}
