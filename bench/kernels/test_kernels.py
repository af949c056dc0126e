"""The stochastic step of every provider on every case, timed by pytest-benchmark; `make bench`."""

from collections.abc import Callable
from typing import Any

import pytest

from bench.kernels.cases import Case
from bench.kernels.providers import PROVIDERS
from bench.kernels.run import CaseRun, Entry, Row
from bench.report.results import SKIPPED


# Those that are compared run one after the other: whoever is listed first varies fastest.
@pytest.mark.parametrize("provider", [provider.name for provider in PROVIDERS])
@pytest.mark.parametrize("pass_name", ["forward", "backward", "step", "sample"])
def test_pass(
    benchmark: Any, add_row: Callable[[Row], None], case_run: CaseRun, case: Case, provider: str, pass_name: str
) -> None:
    if pass_name not in case.passes:  # a prediction is a sample, all else a step
        pytest.skip("the case has no such pass")
    entry = case_run.entries[provider]
    if not isinstance(entry, Entry):
        if entry["status"] == SKIPPED:
            pytest.skip(entry["reason"])
        pytest.fail(f"{entry['status']}: {entry['reason']}", pytrace=False)
    benchmark.group = f"{case.name}, {pass_name}"
    benchmark.name = provider
    work = case_run.work(entry, pass_name)
    try:
        rounds = case_run.rounds(work)
        with work.context():
            benchmark.pedantic(work.run, setup=work.prepare, teardown=work.drop, rounds=rounds, warmup_rounds=1)
    except Exception as error:
        add_row(case_run.failure(entry.provider, pass_name, error))
        raise
    if benchmark.stats is not None:  # None with --benchmark-disable
        add_row(case_run.result(entry, pass_name, benchmark.stats.stats.data))
