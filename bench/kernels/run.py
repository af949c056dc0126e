"""One case of the benchmark: every provider is checked and counted once, before any of its passes is timed."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from bench.kernels.cases import GPU, Case, make_inputs
from bench.kernels.check import fault
from bench.kernels.figures import Figures, bytes_moved, count, instructions_per_latent, quantile
from bench.kernels.providers import PROVIDERS, Provider
from bench.measure import gpu_timing
from bench.measure.timing import Clock, Copying, Effort, Stages, Work, rounds_of, seconds_of

EFFORT = Effort(seconds=1, least=5, most=100)
QUICK_EFFORT = Effort(seconds=0.3, least=5, most=50)
EAGER, GRAPH = "eager", "graph"


class Result(NamedTuple):
    """One row of the table: a pass of a provider, or why there is none."""

    provider: str
    pass_name: str
    mode: str
    status: str
    """ok; wrong: its results are; failed: it raised; skipped: it cannot run here."""
    reason: str = ""
    seconds: tuple[float, ...] = ()
    bytes: int = 0
    copy_bytes_per_second: float = 0.0
    figures: Figures = Figures()
    instructions_per_latent: float | None = None


class Entry(NamedTuple):
    """A provider whose results are right."""

    provider: Provider
    stages: Stages
    figures: dict[str, Figures]
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
            sets = gpu_timing.input_sets(case, torch.cuda.get_device_properties(device).L2_cache_size)
        self.case, self._device, self._effort, self._clock = case, device, effort, clock
        self._inputs = [make_inputs(case, device, seed) for seed in range(sets)]
        self._bandwidths: dict[tuple[int, str], float] = {}
        self.eager = {provider.name: self._enter(provider) for provider in providers}

    def entry(self, provider: str, mode: str) -> Entry | Result:
        """What is to be timed, or the row that says why nothing is."""
        return (self.graphs if mode == GRAPH else self.eager)[provider]

    def work(self, entry: Entry, pass_name: str) -> Work:
        """A pass as what is timed, on one set of inputs after the other."""
        return Work(entry.stages, pass_name, self._inputs)

    def rounds(self, work: Work) -> int:
        return rounds_of(work, self._clock, self._effort)

    def result(self, entry: Entry, pass_name: str, mode: str, seconds: Iterable[float]) -> Result:
        """The row of a pass whose rounds took `seconds`."""
        size = bytes_moved(self.case, entry.provider, pass_name)
        target = _target(self._device)
        return Result(
            entry.provider.name,
            pass_name,
            mode,
            "ok",
            seconds=tuple(each / entry.stages.calls for each in seconds),
            bytes=size,
            copy_bytes_per_second=self._copy_bandwidth(size, mode),
            figures=entry.figures[pass_name],
            instructions_per_latent=instructions_per_latent(self.case, entry.provider, pass_name, target),
        )

    def failure(self, provider: Provider, mode: str, error: Exception) -> Result:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return self._without_times(provider, mode, "failed", reason)

    @functools.cached_property
    def graphs(self) -> dict[str, Entry | Result]:
        """The same as CUDA graphs, which some providers cannot be."""
        # Compiled code last: least is known of what it does in a capture.
        ordered = sorted(self.eager.items(), key=lambda item: isinstance(item[1], Entry) and item[1].provider.compiled)
        return {name: self._capture(entry) if isinstance(entry, Entry) else entry for name, entry in ordered}

    def _enter(self, provider: Provider) -> Entry | Result:
        reason = provider.unavailable(self.case, self._device)
        if reason is not None:
            return self._without_times(provider, EAGER, "skipped", reason)
        try:
            # Made once: another one of a compiled function would be compiled again.
            stages = provider.stages(self.case)
            reason = fault(provider, stages, self.case, self._inputs[0])
            if reason is not None:
                return self._without_times(provider, EAGER, "wrong", reason)
            return Entry(provider, stages, count(provider, stages, self._inputs[0]))
        except Exception as error:  # a provider may raise anything, a compiler most of all
            return self.failure(provider, EAGER, error)

    def _capture(self, entry: Entry) -> Entry | Result:
        waits = entry.figures[self.case.passes[-1]].synchronisations
        if waits:
            reason = f"waits for the device {waits} times, which no graph can"
            return self._without_times(entry.provider, GRAPH, "skipped", reason)
        # The allocator's peak says nothing about a graph, which has its memory for good.
        figures = {name: found._replace(peak_bytes=None) for name, found in entry.figures.items()}
        try:
            return Entry(entry.provider, gpu_timing.capture(entry.stages, self._inputs), figures)
        except Exception as error:  # what cannot be captured raises many things
            return self.failure(entry.provider, GRAPH, error)

    def _without_times(self, provider: Provider, mode: str, status: str, reason: str) -> Result:
        return Result(provider.name, self.case.passes[-1], mode, status, reason)

    def _copy_bandwidth(self, size: int, mode: str) -> float:
        """Bytes per second of a copy that moves as many as a pass does, by the same clock; measured once."""
        if (size, mode) not in self._bandwidths:
            self._bandwidths[size, mode] = self._time_copy(size, mode)
        return self._bandwidths[size, mode]

    def _time_copy(self, size: int, mode: str) -> float:
        stages = Copying(size, self._device, len(self._inputs)).stages()
        if mode == GRAPH:
            stages = gpu_timing.capture(stages, self._inputs)
        work = Work(stages, "forward", self._inputs)
        seconds = [seconds_of(work, self._clock) for _ in range(self.rounds(work))]
        return size * stages.calls / quantile(seconds, 0.5)


def _target(device: torch.device) -> str | None:
    """The architecture by the audit's name."""
    if device.type != GPU:
        return None
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
