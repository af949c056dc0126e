"""The stochastic step of every provider on every case, as pytest-benchmark's table; `make bench`."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.cases import Case
from bench.providers import PROVIDERS
from bench.suite import EAGER, GRAPH, Result


class Playback:
    """A clock on which times that were measured before pass again."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """Let pytest-benchmark time one after the other."""
        remaining = iter(seconds)

        def advance() -> None:
            self.now += next(remaining)

        benchmark.pedantic(advance, rounds=len(seconds))


playback = Playback()


# pytest-benchmark would time one provider to its end, then the next, and a machine that gets busy in between would
# decide who wins. So the providers of a case take turns (bench.suite), and their times are played back to it.
@pytest.mark.benchmark(timer=playback)
@pytest.mark.parametrize("mode", [EAGER, GRAPH])
@pytest.mark.parametrize("provider", [provider.name for provider in PROVIDERS])
def test_step(benchmark: Any, results: list[Result], case: Case, provider: str, mode: str) -> None:
    found = [row for row in results if (row.provider, row.mode) == (provider, mode)]
    if not found:
        pytest.skip("graphs are for small cases on GPUs")
    row = next((row for row in found if row.pass_name == case.passes[-1]), found[0])
    if row.status == "skipped":
        pytest.skip(row.reason)
    assert row.status == "ok", row.reason
    benchmark.group = f"{case.name}, {row.pass_name}"
    benchmark.name = provider if mode == EAGER else f"{provider} (graph)"
    playback.play(benchmark, row.seconds)
