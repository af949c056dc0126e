"""What the host does for a device: its calls and the kernels that it launches, counted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What .item(), float(), bool() and `if` on a tensor come down to: the host waits for the device.
SYNCHRONISATION = torch.ops.aten._local_scalar_dense
# Calls of the runtime that start a kernel, and those that make the host wait.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel")
WAITS = ("cudaStreamSynchronize", "hipStreamSynchronize")


class Calls(NamedTuple):
    """Calls, and how many of them made the host wait for the device."""

    total: int
    synchronisations: int


class _CallCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = self.synchronisations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        self.synchronisations += func.overloadpacket is SYNCHRONISATION
        return func(*args, **(kwargs or {}))


def count_calls(run: Callable[[], Any]) -> Calls:
    """Of torch's dispatcher in `run()`, below autograd: views count, a kernel launched by other means does not."""
    with _CallCounter() as counter:
        run()
    return Calls(counter.total, counter.synchronisations)


def count_launches(run: Callable[[], Any]) -> Calls:
    """Kernels that `run()` launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    # The profiler waits for the device at its end, but for all of it, which is another call.
    names = [event.name for event in profile.events()]
    return Calls(sum(name.startswith(LAUNCHES) for name in names), sum(name in WAITS for name in names))
