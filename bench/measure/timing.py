"""Time: of a pass on one set of inputs after the other, of what takes turns, and of copies to compare with."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from bench.report.results import rounded

COPIES = 50
Clock = Callable[[], float]
"""Seconds, once all work is done that was asked for before."""


class Stages(NamedTuple):
    """A forward, and its backward if there is one."""

    forward: Callable[[Any], Any]
    backward: Callable[[Any, Any], Any] | None = None
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    """Entered around all rounds, outside of what is timed."""


class Work:
    """A pass in three parts, of which `run` is timed; what the forward left is made before and dropped after it."""

    def __init__(self, stages: Stages, pass_name: str, inputs: Sequence[Any]) -> None:
        self._stages, self._pass, self._inputs = stages, pass_name, itertools.cycle(inputs)
        self.context = stages.context
        self._given: Any = None
        self._result: Any = None

    def prepare(self) -> None:
        self._given = next(self._inputs)
        if self._pass == "backward":
            self._result = self._stages.forward(self._given)

    def run(self) -> None:
        if self._pass != "backward":
            self._result = self._stages.forward(self._given)
        if self._pass in ("backward", "step"):
            assert self._stages.backward is not None
            self._stages.backward(self._result, self._given)

    def drop(self) -> None:
        self._result = None  # or the next forward needs memory for two


def seconds_of(work: Work, clock: Clock) -> float:
    """The time of one round."""
    with work.context():
        work.prepare()
        start = clock()
        work.run()
        end = clock()
        work.drop()
    return end - start


def copy_seconds(size: int, device: torch.device, sets: int, clock: Clock) -> float:
    """The median time of a copy that reads and writes `size` bytes in all; its buffers take turns."""
    count = max(size // 8, 1)  # float32, half read and half written
    # Written to, or a CPU would read the one page of zeros that stands for all untouched memory.
    buffers = [(torch.zeros(count, device=device), torch.ones(count, device=device)) for _ in range(sets)]
    copying = Stages(lambda pair: pair[0].copy_(pair[1]))
    work = Work(copying, "forward", buffers)
    return quantile([seconds_of(work, clock) for _ in range(COPIES)], 0.5)


class Turn(NamedTuple):
    """What one of several runs gave in one round."""

    name: str
    result: Any
    seconds: float


def take_turns(
    runs: Mapping[str, Callable[[Any], Any]],
    rounds: Iterable[Any],
    device: torch.device,
    prepare: Callable[[str, Any], None] = lambda name, given: None,
) -> Iterator[Turn]:
    """Every run once a round, timed until the device is done: a busy machine then slows all alike.

    `rounds` are what all runs are given in each; `prepare(name, given)` comes before the clock starts.
    """
    for given in rounds:
        for name, run in runs.items():
            prepare(name, given)
            synchronize(device)
            start = time.perf_counter()
            result = run(given)
            synchronize(device)
            yield Turn(name, result, time.perf_counter() - start)


def seconds_by_name(turns: Iterable[Turn]) -> dict[str, list[float]]:
    """The seconds of every run, round by round."""
    seconds: dict[str, list[float]] = {}
    for turn in turns:
        seconds.setdefault(turn.name, []).append(turn.seconds)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def synchronised_seconds() -> float:
    """The time when the GPU has done all that it was asked for: a round has its launch and its wait in it."""
    torch.cuda.synchronize()
    return time.perf_counter()


def quantile(values: Sequence[float], q: float) -> float:
    """Interpolated linearly."""
    ordered = sorted(values)
    low, part = divmod(q * (len(ordered) - 1), 1)
    return ordered[int(low)] * (1 - part) + ordered[min(int(low) + 1, len(ordered) - 1)] * part


def spread(seconds: Sequence[float], unit: str) -> dict[str, float]:
    """The columns that tell of times: 20th percentile, median and 80th, in "us" or "ms"."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    at = {"p20": 0.2, "median": 0.5, "p80": 0.8}
    return {f"{name}_{unit}": rounded(scale * quantile(seconds, q)) for name, q in at.items()}
