"""Figures that are not times: bytes that must move, memory, launches, and instructions from the static audit."""

import csv
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bench import gpu_timing
from bench.audit import TABLE, VALUES
from bench.cases import GPU, Case, Inputs
from bench.measure import bytes_kept, count_calls
from bench.providers import Provider
from bench.timing import Stages


class Figures(NamedTuple):
    """Of one pass of a provider; None where nothing could be counted."""

    peak_bytes: int | None = None
    """Beyond the inputs. GPU only: nothing counts a CPU's allocations."""
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


def count(provider: Provider, stages: Stages, inputs: Inputs) -> dict[str, Figures]:
    """Memory and launches of every pass."""
    device = inputs.q.device
    with stages.context():
        if stages.backward is None:
            return {"sample": _figures(provider, device, lambda: stages.forward(inputs))}
        backward = stages.backward
        kept = bytes_kept(lambda: stages.forward(inputs))
        forward_figures = _figures(provider, device, lambda: stages.forward(inputs))
        step = _figures(provider, device, lambda: backward(stages.forward(inputs), inputs))
        result = stages.forward(inputs)
        backward_figures = _figures(provider, device, lambda: backward(result, inputs))
    # A backward of its own is measured from the memory that its forward left: the step's peak says all of it.
    backward_figures = backward_figures._replace(peak_bytes=step.peak_bytes)
    return {
        "forward": forward_figures._replace(kept_bytes=kept),
        "backward": backward_figures._replace(kept_bytes=kept),
        "step": step._replace(kept_bytes=kept),
    }


def _figures(provider: Provider, device: torch.device, run: Callable[[], Any]) -> Figures:
    if device.type == GPU:
        return Figures(gpu_timing.peak_bytes(run), None, *gpu_timing.count_launches(run))
    if provider.compiled:  # does not go through the dispatcher
        return Figures()
    return Figures(None, None, *count_calls(run))


def instructions_per_latent(case: Case, provider: Provider, name: str, target: str | None) -> float | None:
    """From the static audit: Triton's kernels with Philox noise, on an architecture that was audited."""
    if provider.name != "triton, Philox" or target is None:
        return None
    kernels = {"sample": ["sample"], "step": [f"forward {case.kl}", f"backward {case.kl}"]}.get(
        name, [f"{name} {case.kl}"]
    )
    dtype = str(case.dtype).removeprefix("torch.")
    found = [_audited().get((target, kernel, dtype, case.layout)) for kernel in kernels]
    return None if None in found else round(sum(value for value in found if value is not None), 1)


@functools.cache
def _audited() -> dict[tuple[str, str, str, str], float]:
    with TABLE.open(newline="") as file:
        return {
            (row["target"], row["kernel"], row["dtype"], row["layout"]): float(row["instructions_per_latent"])
            for row in csv.DictReader(file)
        }


def quantile(values: Sequence[float], q: float) -> float:
    """Interpolated linearly."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
