"""One case of the benchmark: every provider is checked and counted once, before any of its passes is timed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bench.audit.table import VALUES
from bench.kernels.cases import GPU, Case, Inputs, make_inputs
from bench.kernels.check import fault
from bench.kernels.providers import PROVIDERS, Provider
from bench.measure.launches import count_calls, count_launches
from bench.measure.memory import bytes_kept, peak_bytes
from bench.measure.timing import Clock, Effort, Stages, Work, copying, quantile, rounds_of, seconds_of, spread
from bench.report.results import FAILED, OK, SKIPPED, WRONG, one_line, rounded

EFFORT = Effort(seconds=1, least=5, most=100)
QUICK_EFFORT = Effort(seconds=0.3, least=5, most=50)
MOST_SETS = 64

Row = dict[str, Any]
"""A row of the table: a pass of a provider, or why there is none."""


class Counts(NamedTuple):
    """Of one pass of a provider; None where nothing could be counted."""

    peak_mib: float | None = None
    """Beyond the inputs; measured on GPUs only."""
    kept_mib: float | None = None
    launches: int | None = None
    """GPU: kernels. CPU: calls of torch's dispatcher."""
    synchronisations: int | None = None


class Entry(NamedTuple):
    """A provider whose results are right."""

    provider: Provider
    stages: Stages
    counts: dict[str, Counts]
    """By pass."""


class CaseRun:
    """A case on a device: its inputs, and of every provider an `Entry`, or the row that says why there is none."""

    def __init__(
        self, case: Case, device: torch.device, effort: Effort, clock: Clock, providers: Sequence[Provider] = PROVIDERS
    ) -> None:
        torch.compiler.reset()  # or after a few shapes it stops compiling, and runs eagerly without a word
        sets = 1
        if device.type == GPU:
            torch.cuda.empty_cache()  # what the case before left lies in pieces
            sets = input_sets(case, torch.cuda.get_device_properties(device).L2_cache_size)
        self.case, self._device, self._effort, self._clock = case, device, effort, clock
        self._inputs = [make_inputs(case, device, seed) for seed in range(sets)]
        self._bandwidths: dict[int, float] = {}
        self.entries = {provider.name: self._enter(provider) for provider in providers}

    def _enter(self, provider: Provider) -> Entry | Row:
        reason = provider.unavailable(self.case, self._device)
        if reason is not None:
            return self._row(provider, SKIPPED, reason=reason)
        try:
            # Made once: another one of a compiled function would be compiled again.
            stages = provider.stages(self.case)
            reason = fault(provider, stages, self.case, self._inputs[0])
            if reason is not None:
                return self._row(provider, WRONG, reason=reason)
            return Entry(provider, stages, count(provider, stages, self._inputs[0]))
        except Exception as error:  # a provider may raise anything, a compiler most of all
            return self.failure(provider, error)

    def work(self, entry: Entry, pass_name: str) -> Work:
        """A pass as what is timed, on one set of inputs after the other."""
        return Work(entry.stages, pass_name, self._inputs)

    def rounds(self, work: Work) -> int:
        return rounds_of(work, self._clock, self._effort)

    def result(self, entry: Entry, pass_name: str, seconds: Sequence[float]) -> Row:
        """The row of a pass whose rounds took `seconds`."""
        size, counts = bytes_moved(self.case, entry.provider, pass_name), entry.counts[pass_name]
        speed, copied = size / quantile(seconds, 0.5), self._copy_bandwidth(size)
        cells = {"pass": pass_name, "bytes": size, "rounds": len(seconds), **spread(seconds, "us"), **counts._asdict()}
        shares = {"gb_per_s": 1e-9 * speed, "copy_gb_per_s": 1e-9 * copied, "copy_share": speed / copied}
        return self._row(entry.provider, OK, **cells, **{name: rounded(value) for name, value in shares.items()})

    def failure(self, provider: Provider, error: Exception) -> Row:
        """The row of what raised."""
        return self._row(provider, FAILED, reason=one_line(error))

    def _row(self, provider: Provider, status: str, **cells: Any) -> Row:
        case = self.case
        return {
            **{"case": case.name, "batch": case.batch, "channels": case.channels, "latents": case.latents},
            **{"space": "x".join(map(str, case.space)), "dtype": str(case.dtype).removeprefix("torch.")},
            "layout": "channels_last" if case.channels_last else "nchw",
            "kl": "none" if case.prediction else "analytic" if case.analytic else "mc",
            **{"provider": provider.name, "pass": case.passes[-1], "status": status},
            **cells,
        }

    def _copy_bandwidth(self, size: int) -> float:
        """Bytes per second of a copy that moves as many as a pass does, by the same clock; measured once."""
        if size not in self._bandwidths:
            work = Work(copying(size, self._device, len(self._inputs)), "forward", self._inputs)
            seconds = [seconds_of(work, self._clock) for _ in range(self.rounds(work))]
            self._bandwidths[size] = size / quantile(seconds, 0.5)
        return self._bandwidths[size]


def input_sets(case: Case, l2_bytes: int) -> int:
    """How many sets of inputs together are twice the L2, so that none of them is still there when its turn comes.

    At most 64: a case of less than 2^16 latents waits for its launches, wherever its inputs are.
    """
    # q and p, two values a latent each, and the gradient of z.
    size = 5 * case.latents * case.dtype.itemsize
    return min(-(-2 * l2_bytes // size), MOST_SETS)


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

    def calls(run: Callable[[], Any]) -> Sequence[int | None]:
        # On a CPU a compiled function does not go through the dispatcher.
        return count_launches(run) if gpu else (None, None) if provider.compiled else count_calls(run)

    def peak(run: Callable[[], Any]) -> float | None:
        return _mebibytes(peak_bytes(run, inputs.q.device)) if gpu else None

    with stages.context():
        peak_forward = peak(lambda: stages.forward(inputs))
        if stages.backward is None:
            return {"sample": Counts(peak_forward, None, *calls(forward))}
        backward = stages.backward
        peak_step = peak(lambda: backward(stages.forward(inputs), inputs))
        kept = _mebibytes(bytes_kept(lambda: stages.forward(inputs)))
        forward_calls = calls(forward)
        backward_calls = calls(lambda: backward(results.pop(), inputs))
    both = [None if x is None or y is None else x + y for x, y in zip(forward_calls, backward_calls, strict=True)]
    return {
        "forward": Counts(peak_forward, kept, *forward_calls),
        # A backward begins with what its forward left, and that is part of its peak.
        "backward": Counts(peak_step, kept, *backward_calls),
        "step": Counts(peak_step, kept, *both),
    }


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else rounded(size / 2**20)
