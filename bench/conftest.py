"""`make bench`: its options, what is timed with which clock, and the file of results."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.kernels import cases
from bench.kernels.cases import GPU, Case
from bench.kernels.run import QUICK_SECONDS, SECONDS, CaseRun, Entry, Row
from bench.measure.run_info import default_path, environment
from bench.measure.timing import Clock, synchronised_seconds
from bench.report.results import COLUMNS, KERNELS, Table

TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ladder_kernels")
    group.addoption("--quick", action="store_true", help="a few cases, in less than two minutes on two cores")
    group.addoption("--device", type=cli.device, default=None, help="default: the GPU, if any")
    group.addoption("--results", type=Path, default=None, help="the CSV (bench/results/<machine>-<date>.csv)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    device = _device(metafunc.config)
    timed = pytest.mark.benchmark(timer=_clock(device))
    chosen = cases.select(device, quick=metafunc.config.getoption("quick"))
    named = [pytest.param(case, id=case.name.replace(" ", "-"), marks=timed) for case in chosen]
    # By the module: pytest then runs all tests of a case after another, and checks its providers once.
    metafunc.parametrize("case", named, scope="module")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A table is whole where everything was chosen and has run."""
    stash = session.config.stash
    if TABLE not in stash:
        return
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not session.shouldfail
    left_out = session.config.pluginmanager.getplugin("terminalreporter").stats.get("deselected")
    if ended and not left_out:
        stash[TABLE].done()
    _say(session.config, f"written: {stash[TABLE].path}")


def _device(config: pytest.Config) -> torch.device:
    return config.getoption("device") or cli.default_device()


def _clock(device: torch.device) -> Clock:
    return synchronised_seconds if device.type == GPU else time.perf_counter


def _say(config: pytest.Config, text: str) -> None:
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}", flush=True)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return _device(pytestconfig)


@pytest.fixture(scope="session")
def add_row(pytestconfig: pytest.Config, device: torch.device) -> Callable[[Row], None]:
    """Adds a row to the file of results."""
    path = pytestconfig.getoption("results") or default_path(device, KERNELS, quick=pytestconfig.getoption("quick"))
    table, machine = Table(path, COLUMNS[KERNELS]), environment(device)
    pytestconfig.stash[TABLE] = table
    return lambda row: table.add(row | machine)


@pytest.fixture(scope="module")
def case_run(case: Case, device: torch.device, pytestconfig: pytest.Config, add_row: Callable[[Row], None]) -> CaseRun:
    """The providers of a case, checked; who has no times has its row."""
    _say(pytestconfig, f"{case.name}: checking its providers")
    found = CaseRun(case, device, QUICK_SECONDS if pytestconfig.getoption("quick") else SECONDS, _clock(device))
    for entry in found.entries.values():
        if not isinstance(entry, Entry):
            add_row(entry)
    return found
