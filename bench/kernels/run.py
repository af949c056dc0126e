"""One case of the benchmark: every provider is checked and counted once, before any of its passes is timed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bench.kernels.cases import GPU, Case, make_inputs
from bench.kernels.check import fault
from bench.kernels.providers import PROVIDERS, Provider
from bench.measure.counts import count
from bench.measure.timing import Clock, Stages, Work, copy_seconds, quantile, seconds_of, spread
from bench.report.results import FAILED, OK, SKIPPED, WRONG, one_line, rounded

SECONDS, QUICK_SECONDS = 1.0, 0.3  # that a pass is timed for, but with so many rounds:
LEAST, MOST = 5, 100
# Values moved per latent: q and p read, z written; q, p, grad z read, both gradients written; q read, z written.
VALUES = {"forward": 5, "backward": 9, "sample": 3}
MOST_SETS = 64

Row = dict[str, Any]
"""A row of the table: a pass of a provider, or why there is none."""


class Entry(NamedTuple):
    """A provider whose results are right."""

    provider: Provider
    stages: Stages
    counts: dict[str, dict[str, Any]]
    """By pass."""


class CaseRun:
    """A case on a device: its inputs, and of every provider an `Entry`, or the row that says why there is none."""

    def __init__(
        self, case: Case, device: torch.device, seconds: float, clock: Clock, providers: Sequence[Provider] = PROVIDERS
    ) -> None:
        torch.compiler.reset()  # or after a few shapes it stops compiling, and runs eagerly without a word
        sets = 1
        if device.type == GPU:
            torch.cuda.empty_cache()  # what the case before left lies in pieces
            sets = input_sets(case, torch.cuda.get_device_properties(device).L2_cache_size)
        self.case, self._device, self._seconds, self._clock = case, device, seconds, clock
        self._inputs = [make_inputs(case, device, seed) for seed in range(sets)]
        self._copies: dict[int, float] = {}  # seconds by bytes
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
            counts = count(stages, self._inputs[0], self._device, compiled=provider.compiled)
            return Entry(provider, stages, counts)
        except Exception as error:  # a provider may raise anything, a compiler most of all
            return self.failure(provider, self.case.passes[-1], error)

    def work(self, entry: Entry, pass_name: str) -> Work:
        """A pass as what is timed, on one set of inputs after the other."""
        return Work(entry.stages, pass_name, self._inputs)

    def rounds(self, work: Work) -> int:
        """How many fit, judged by one; the check and the count have warmed everything up before."""
        return min(max(int(self._seconds / max(seconds_of(work, self._clock), 1e-9)), LEAST), MOST)

    def result(self, entry: Entry, pass_name: str, seconds: Sequence[float]) -> Row:
        """The row of a pass whose rounds took `seconds`."""
        size = bytes_moved(self.case, entry.provider, pass_name)
        if size not in self._copies:
            self._copies[size] = copy_seconds(size, self._device, len(self._inputs), self._clock)
        copy = self._copies[size]
        cells = {"pass": pass_name, "bytes": size, "rounds": len(seconds), **spread(seconds, "us")}
        cells |= {"copy_gb_per_s": rounded(1e-9 * size / copy), "copy_share": rounded(copy / quantile(seconds, 0.5))}
        return self._row(entry.provider, OK, **cells, **entry.counts[pass_name])

    def failure(self, provider: Provider, pass_name: str, error: Exception) -> Row:
        """The row of what raised."""
        return self._row(provider, FAILED, reason=one_line(error), **{"pass": pass_name})

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
    noise = 0 if provider.noise in ("philox", "compiler") else 4 if name == "backward" else 8
    return case.latents * (VALUES[name] * case.dtype.itemsize + noise)
