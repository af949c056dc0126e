"""What the host does for a device: its calls and the kernels that it launches, counted."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What .item(), float(), bool() and `if` on a tensor come down to: the host waits for the device.
SYNCHRONISATION = torch.ops.aten._local_scalar_dense

# Calls of the runtime that start a kernel, and those that make the host wait.
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"} | {
    "hipLaunchKernel",
    "hipExtLaunchKernel",
    "hipModuleLaunchKernel",
    "hipExtModuleLaunchKernel",
}
WAITS = {"cudaStreamSynchronize", "hipStreamSynchronize"}  # what .item() and its like come down to


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


def count_launches(run: Callable[[], Any]) -> Calls:
    """Kernels that `run()` launches, and how often it makes the host wait."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    # The profiler waits for the device at its end, but for all of it, which is another call.
    return counted(event.name for event in profile.events())


def counted(names: Iterable[str]) -> Calls:
    """From the names of a profile's events."""
    names = list(names)
    return Calls(sum(name in LAUNCHES for name in names), sum(name in WAITS for name in names))
