"""What the host does for a device: calls and launches are counted, and recorded once as CUDA graphs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure.timing import Stages

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
WARM_UPS_BEFORE_CAPTURE = 3


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


def capture(run: Stages, inputs: list[Any]) -> Stages:
    """The same calls on every set of inputs as two CUDA graphs: all forwards, then all backwards.

    Raises what the capture raises: work that waits for the host cannot be captured.
    """
    with run.context():
        warm_up_for_capture(lambda: _once(run, inputs[0]))
        forward = torch.cuda.CUDAGraph()
        with recording(forward):
            results = [run.forward(given) for given in inputs]
        backward = None
        if run.backward is not None:
            backward = torch.cuda.CUDAGraph()
            # One pool: the backward reads what the forward left.
            with recording(backward, pool=forward.pool()):
                # Held until the capture ends, or every call would write to the same memory.
                gradients = [run.backward(result, given) for result, given in zip(results, inputs, strict=True)]
            del gradients
    return Stages(
        lambda _: forward.replay(),
        None if backward is None else lambda *_: backward.replay(),
        calls=len(inputs),
    )


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """`torch.cuda.graph`, but whatever runs after a capture that broke off still can.

    torch leaves such a capture on its stream and with a random generator that waits for the capture's end.
    """
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, **options):
            yield
    except Exception:
        torch.cuda.set_stream(stream)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        raise


def warm_up_for_capture(run: Callable[[], Any]) -> None:
    """Capturing happens on a side stream, where autograd, cuBLAS and the allocator must have been before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS_BEFORE_CAPTURE):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def _once(run: Stages, given: Any) -> None:
    result = run.forward(given)
    if run.backward is not None:
        run.backward(result, given)
