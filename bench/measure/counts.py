"""What a pass costs besides time: the calls of the host, the kernels that it launches, and memory."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure.memory import bytes_kept, mebibytes, peak_bytes
from bench.measure.timing import Stages

# What .item(), float(), bool() and `if` on a tensor come down to: the host waits for the device.
SYNCHRONISATION = torch.ops.aten._local_scalar_dense
# Calls of the runtime that start a kernel, and those that make the host wait.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "hipLaunchKernel", "hipExtLaunchKernel", "hipModuleLaunchKernel")
WAITS = ("cudaStreamSynchronize", "hipStreamSynchronize")


class Calls(NamedTuple):
    """Calls or kernels, and how many of the calls made the host wait for the device."""

    launches: int
    synchronisations: int


class _CallCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = self.synchronisations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += 1
        self.synchronisations += func.overloadpacket is SYNCHRONISATION
        return func(*args, **(kwargs or {}))


def count_calls(run: Callable[[], Any]) -> Calls:
    """Of torch's dispatcher in `run()`, below autograd: views count, a kernel launched by other means does not."""
    with _CallCounter() as counter:
        run()
    return Calls(counter.launches, counter.synchronisations)


def count_launches(run: Callable[[], Any]) -> Calls:
    """Kernels that `run()` launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        run()
    # The profiler waits for the device at its end, but for all of it, which is another call.
    names = [event.name for event in profile.events()]
    return Calls(sum(name.startswith(LAUNCHES) for name in names), sum(name in WAITS for name in names))


def count(
    stages: Stages, inputs: Any, device: torch.device, *, compiled: bool = False, parameters: Iterable[Tensor] = ()
) -> dict[str, dict[str, Any]]:
    """The columns of every pass that no clock gives; without a backward, of "sample" alone.

    `launches` are kernels on a GPU, and calls of torch's dispatcher on a CPU, where a compiled function goes round it.
    `kept_mib` leaves out `parameters`. `peak_mib`, beyond the inputs, is there on GPUs only.
    """
    gpu = device.type == "cuda"
    results: list[Any] = []

    def calls(run: Callable[[], Any]) -> dict[str, Any]:
        if compiled and not gpu:
            return {}
        return (count_launches(run) if gpu else count_calls(run))._asdict()

    def peak(run: Callable[[], Any]) -> dict[str, Any]:
        return {"peak_mib": mebibytes(peak_bytes(run, device))} if gpu else {}

    with stages.context():
        peak_forward = peak(lambda: stages.forward(inputs))
        backward = stages.backward
        if backward is None:
            return {"sample": peak_forward | calls(lambda: stages.forward(inputs))}
        peak_step = peak(lambda: backward(stages.forward(inputs), inputs))
        kept = {"kept_mib": mebibytes(bytes_kept(lambda: stages.forward(inputs), parameters))}
        forward = calls(lambda: results.append(stages.forward(inputs)))
        back = calls(lambda: backward(results.pop(), inputs))
    both = {name: forward[name] + back[name] for name in forward}
    # A backward begins with what its forward left, and that is part of its peak.
    return {
        "forward": peak_forward | kept | forward,
        "backward": peak_step | kept | back,
        "step": peak_step | kept | both,
    }
