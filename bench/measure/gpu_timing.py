"""What a GPU needs besides: a clock that waits for it, inputs that do not stay in the L2, graphs, and launches."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from bench.kernels.cases import Case, Inputs
from bench.measure.launches import Calls
from bench.measure.timing import Stages

# Calls of the runtime that start a kernel, and those that make the host wait.
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"} | {
    "hipLaunchKernel",
    "hipExtLaunchKernel",
    "hipModuleLaunchKernel",
    "hipExtModuleLaunchKernel",
}
WAITS = {"cudaStreamSynchronize", "hipStreamSynchronize"}  # what .item() and its like come down to

LAUNCH_BOUND = 1 << 20  # latents; from here on a kernel takes longer than to launch it
MOST_SETS = 64
WARM_UPS_BEFORE_CAPTURE = 3


def synchronised_seconds() -> float:
    """The time when the device has done all that it was asked for: a round has its launch and its wait in it."""
    torch.cuda.synchronize()
    return time.perf_counter()


def input_sets(case: Case, l2_bytes: int) -> int:
    """How many sets of inputs together are twice the L2, so that none of them is still there when its turn comes.

    At most 64: a case of less than 2^16 latents waits for its launches, wherever its inputs are.
    """
    # q and p, two values a latent each, and the gradient of z.
    size = 5 * case.latents * case.dtype.itemsize
    return min(-(-2 * l2_bytes // size), MOST_SETS)


def capture(run: Stages, inputs: list[Inputs]) -> Stages:
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


def _once(run: Stages, given: Inputs) -> None:
    result = run.forward(given)
    if run.backward is not None:
        run.backward(result, given)


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
