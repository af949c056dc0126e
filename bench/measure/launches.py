"""Measuring a callable: calls into ATen, host synchronisations, bytes kept for backward, and time."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

# What .item(), float(), bool() and `if` on a tensor come down to: the host waits for the device.
SYNCHRONISATION = torch.ops.aten._local_scalar_dense


class Calls(NamedTuple):
    """Calls that went through torch's dispatcher, and how many of them made the host wait for the device."""

    total: int
    synchronisations: int


def count_calls(run: Callable[[], Any]) -> Calls:
    """The calls of `run()`, below autograd: views count, a kernel that is launched by other means does not."""
    with _CallCounter() as counter:
        run()
    return Calls(counter.total, counter.synchronisations)


class _CallCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = self.synchronisations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        self.synchronisations += func.overloadpacket is SYNCHRONISATION
        return func(*args, **(kwargs or {}))


def bytes_kept(run: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes of memory that autograd keeps for the backward of `run()`, each storage once, parameters left out."""
    excluded = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    # The tensors themselves: while one is held, its address cannot be given to another.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Detached: a saved output that its own graph node holds would never be freed.
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in excluded)


def median_seconds(
    runs: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int, warm_up: int = 3
) -> dict[str, float]:
    """The median time of each of `runs`, which take turns so that a busy machine treats them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(warm_up + rounds):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if count >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
