"""What one stochastic block costs in a training step, its three convolutions included."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.kernels.cases import LOGVAR_MAX
from bench.measure.counts import count
from bench.measure.timing import Stages, quantile, seconds_by_name, take_turns

WARM_UPS = 3


def block_costs(
    blocks: Mapping[str, Any], shape: Sequence[int], device: torch.device, *, rounds: int, analytical_kl: bool
) -> dict[str, dict[str, float]]:
    """One forward and one backward of every block on features of a shape (B, C, *S); their times are taken in turns."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator).to(device).requires_grad_() for _ in range(2)]
    stages = {name: _stages(block, inputs, analytical_kl) for name, block in blocks.items()}
    steps = {name: lambda given, each=each: each.backward(each.forward(given), given) for name, each in stages.items()}
    seconds = seconds_by_name(take_turns(steps, [inputs] * (WARM_UPS + rounds), device))
    costs = {}
    for name, block in blocks.items():
        passes = count(stages[name], inputs, device, parameters=block.parameters())
        costs[name] = {
            "ms": 1e3 * quantile(seconds[name][WARM_UPS:], 0.5),
            "calls_forward": passes["forward"]["launches"],
            "calls_backward": passes["backward"]["launches"],
            "synchronisations": passes["step"]["synchronisations"],
            "kept_mib": passes["step"]["kept_mib"],
        }
    return costs


def _stages(block: Any, inputs: Sequence[Tensor], analytical_kl: bool) -> Stages:
    """A block as a model in training uses it: the gradients of inputs and parameters are computed and dropped."""

    def forward(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        output, data = block(*inputs, analytical_kl=analytical_kl, var_clip_max=LOGVAR_MAX)
        return output, data["kl_samplewise"]  # what the rest of the model and the loss read

    gradients = [torch.ones_like(output) for output in forward(inputs)]
    return Stages(
        forward, lambda outputs, inputs: torch.autograd.grad(outputs, (*inputs, *block.parameters()), gradients)
    )
