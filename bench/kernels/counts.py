"""What of a pass is counted and not timed: bytes that must move, memory, launches."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bench.audit.table import VALUES
from bench.kernels.cases import GPU, Case, Inputs
from bench.kernels.providers import Provider
from bench.measure.launches import count_calls, count_launches
from bench.measure.memory import bytes_kept, peak_bytes
from bench.measure.timing import Stages


class Counts(NamedTuple):
    """Of one pass of a provider; None where nothing could be counted."""

    peak_bytes: int | None = None
    """Beyond the inputs; measured on GPUs only."""
    kept_bytes: int | None = None
    launches: int | None = None
    """GPU: kernels. CPU: calls of torch's dispatcher."""
    synchronisations: int | None = None


def bytes_moved(case: Case, provider: Provider, name: str) -> int:
    """What the pass `name` of a perfect provider reads and writes: every tensor of the latent's size once.

    In float32, bytes per latent: forward 20 (q's and p's mean and log-variance read, z written), backward 36 (the
    same and z's gradient read, four gradients written), a sample 12; half of it in 16 bits. Noise in a tensor is
    float32: 8 more forward (written and read), 4 backward. The sums are too small to count.
    """
    if name == "step":
        return bytes_moved(case, provider, "forward") + bytes_moved(case, provider, "backward")
    noise = 0 if not provider.noise_is_stored else 4 if name == "backward" else 8
    return case.latents * (VALUES[name] * case.dtype.itemsize + noise)


def count(provider: Provider, stages: Stages, inputs: Inputs) -> dict[str, Counts]:
    """Memory and launches of every pass."""
    gpu = inputs.q.device.type == GPU
    results: list[Any] = []

    def forward() -> None:
        results[:] = [stages.forward(inputs)]

    def calls(run: Callable[[], Any]) -> tuple[int, int] | tuple[None, None]:
        if gpu:
            return count_launches(run)
        # On a CPU a compiled function does not go through the dispatcher.
        return (None, None) if provider.compiled else count_calls(run)

    def peak(run: Callable[[], Any]) -> int | None:
        return peak_bytes(run, inputs.q.device) if gpu else None

    with stages.context():
        if stages.backward is None:
            return {"sample": Counts(peak(lambda: stages.forward(inputs)), None, *calls(forward))}
        backward = stages.backward
        kept = bytes_kept(lambda: stages.forward(inputs))
        peak_forward = peak(lambda: stages.forward(inputs))
        peak_step = peak(lambda: backward(stages.forward(inputs), inputs))
        forward_calls = calls(forward)
        backward_calls = calls(lambda: backward(results.pop(), inputs))
    both = [None if x is None or y is None else x + y for x, y in zip(forward_calls, backward_calls, strict=True)]
    return {
        "forward": Counts(peak_forward, kept, *forward_calls),
        # A backward begins with what its forward left, and that is part of its peak.
        "backward": Counts(peak_step, kept, *backward_calls),
        "step": Counts(peak_step, kept, *both),
    }
