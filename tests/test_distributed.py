"""A patched LadderVAE on two processes, in DDP and in FSDP2: the gradients are the mean of those of the unwrapped."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.careamics_models import TINY_HDN, patched
from tests.ranks import on_every_rank


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in (*model.top_down_layers, *model.bottom_up_layers):
        fully_shard(layer)
    return fully_shard(model)


def backward(model: nn.Module, rank: int) -> float:
    """Of the rank's own batch, with its own noise."""
    (inputs, targets) = next(TINY_HDN.batches(seed=10 + rank))
    torch.manual_seed(20 + rank)
    loss = TINY_HDN.build_loss()(model(inputs), targets)["loss"]
    loss.backward()
    return loss.item()


def compare(wrap: Callable[[nn.Module], nn.Module], rank: int, world: int, results: dict[int, bool]) -> None:
    plain = patched(TINY_HDN.build())
    losses = [backward(plain, other) for other in range(world)]
    model = wrap(patched(TINY_HDN.build()))
    assert backward(model, rank) == pytest.approx(losses[rank], rel=1e-6)
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        grad = parameter.grad
        if grad is not None and hasattr(grad, "full_tensor"):
            grad = grad.full_tensor()
        assert (grad is None) == (expected.grad is None), name
        if grad is not None:
            torch.testing.assert_close(grad, expected.grad / world, rtol=1e-4, atol=1e-6)
    results[rank] = True


@pytest.mark.parametrize("wrap", [ddp, fsdp])
def test_gradients_are_the_mean_over_processes(wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert sorted(on_every_rank(functools.partial(compare, wrap))) == [0, 1]
