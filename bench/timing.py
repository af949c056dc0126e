"""Timing callables that take turns, so that a busy machine treats them alike, with any clock."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from bench.cases import Inputs


class Stages(NamedTuple):
    """What is timed: a forward, and its backward if there is one."""

    forward: Callable[[Inputs], Any]
    backward: Callable[[Any, Inputs], Any] | None = None
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    """Entered around a turn, outside of what is timed."""
    calls: int = 1
    """How many calls each stage makes, on inputs of its own; more than 1 in a captured graph."""


class Clock(Protocol):
    """Marks in a stream of work, which may still be running."""

    def mark(self) -> Any: ...

    def wait(self) -> None:
        """Return when the work up to the last mark is done."""

    def seconds(self, start: Any, end: Any) -> float: ...


class HostClock:
    """For a CPU, where work is done when a call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds(self, start: float, end: float) -> float:
        return end - start


class Effort(NamedTuple):
    """How long a case may be timed: rounds for about `seconds`, but between `least` and `most` of them."""

    seconds: float
    least: int
    most: int


class Times(NamedTuple):
    """Seconds per call, an entry per measurement; `backward` is empty where there is none."""

    forward: list[float]
    backward: list[float]

    @property
    def step(self) -> list[float]:
        """Both together: each forward with the backward that followed it."""
        return [forward + backward for forward, backward in zip(self.forward, self.backward, strict=True)]


WARM_UP_ROUNDS = 1  # the check and the count ran everything before


def take_turns(
    runs: Mapping[str, Stages], inputs: Sequence[Inputs], clock: Clock, effort: Effort
) -> dict[str, Times | Exception]:
    """The times of every run, or the error that it raised."""
    found: dict[str, Times | Exception] = {name: Times([], []) for name in runs}
    seconds_per_round = 0.0
    for count in itertools.count(-WARM_UP_ROUNDS):
        if count == 0:
            rounds = min(max(int(effort.seconds / max(seconds_per_round, 1e-9)), effort.least), effort.most)
        if count >= 0 and count == rounds:
            return found
        seconds_per_round = 0.0
        for name, run in runs.items():
            times = found[name]
            if isinstance(times, Exception):
                continue
            try:
                turn = _turn(run, inputs, clock)
            except Exception as error:  # whatever a provider raises, the others go on
                found[name] = error
                continue
            seconds_per_round += run.calls * sum(map(sum, turn))
            if count >= 0:
                times.forward.extend(forward for forward, _ in turn)
                if run.backward is not None:
                    times.backward.extend(backward for _, backward in turn)
    raise AssertionError("unreachable")


def _turn(run: Stages, inputs: Sequence[Inputs], clock: Clock) -> list[tuple[float, float]]:
    """Seconds per call of forward and backward, on one set of inputs after the other without waiting between them."""
    marks = []
    with run.context():
        for given in inputs if run.calls == 1 else inputs[:1]:
            start = clock.mark()
            result = run.forward(given)
            middle = clock.mark()
            if run.backward is not None:
                run.backward(result, given)
            marks.append((start, middle, clock.mark()))
            del result  # or the next forward needs memory for two
    clock.wait()
    return [
        (clock.seconds(start, middle) / run.calls, clock.seconds(middle, end) / run.calls)
        for start, middle, end in marks
    ]


class Copying:
    """Copies as the measure of the bandwidth there is. Its buffers take turns, as the inputs do."""

    def __init__(self, most_bytes: int, device: torch.device, sets: int) -> None:
        count = max(most_bytes // 8, 1)  # float32, half read and half written
        # Written to, or a CPU would read the one page of zeros that stands for all untouched memory.
        self._buffers = [(torch.ones(count, device=device), torch.zeros(count, device=device)) for _ in range(sets)]

    def of(self, size: int) -> Stages:
        """A copy that moves `size` bytes, at most `most_bytes`."""
        count = max(size // 8, 1)
        turns: Iterator[Any] = itertools.cycle([(source[:count], target[:count]) for source, target in self._buffers])

        def copy(_: Inputs) -> None:
            source, target = next(turns)
            target.copy_(source)

        return Stages(copy)
