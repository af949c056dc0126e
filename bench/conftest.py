"""`make bench`: its options, what is timed with which clock, and the file of results."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cli
from bench.kernels import cases
from bench.kernels.cases import GPU, Case
from bench.kernels.run import EFFORT, QUICK_EFFORT, CaseRun, Row
from bench.measure.run_info import default_path, environment
from bench.measure.timing import Clock, synchronised_seconds
from bench.report.results import COLUMNS, KERNELS, Table

PART = pytest.StashKey[bool]()  # whether not all was measured that there is


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ladder_kernels")
    group.addoption("--quick", action="store_true", help="a few cases, in less than two minutes on two cores")
    group.addoption("--device", type=cli.device, default=None, help="default: the GPU, if any")
    group.addoption(
        "--results",
        type=Path,
        default=None,
        metavar="PATH",
        help="where the table is written (bench/results/<machine>-<date>.csv; with --quick in out/bench)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        device = _device(metafunc.config)
        timed = pytest.mark.benchmark(timer=_clock(device))
        chosen = [
            pytest.param(case, id=case.name.replace(" ", "-"), marks=timed)
            for case in cases.select(device, quick=metafunc.config.getoption("quick"))
        ]
        # By the module: pytest then runs all tests of a case after another, and checks its providers once.
        metafunc.parametrize("case", chosen, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out the passes that a case has not."""
    items[:] = [item for item in items if not hasattr(item, "callspec") or _exists(**item.callspec.params)]


def _exists(case: Case | None = None, pass_name: str = "", **_: Any) -> bool:
    return case is None or pass_name in case.passes


def pytest_deselected(items: list[pytest.Item]) -> None:
    """With -k and its like."""
    for item in items:
        item.config.stash[PART] = True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not session.shouldfail
    session.config.stash[PART] = session.config.stash.get(PART, False) or not ended


def _device(config: pytest.Config) -> torch.device:
    return config.getoption("device") or cli.default_device()


def _clock(device: torch.device) -> Clock:
    return synchronised_seconds if device.type == GPU else time.perf_counter


def _say(config: pytest.Config, text: str) -> None:
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}", flush=True)


class Session:
    """The file of results, which grows with every test."""

    def __init__(self, config: pytest.Config) -> None:
        device = _device(config)
        path = config.getoption("results") or default_path(device, KERNELS, quick=config.getoption("quick"))
        self.table = Table(path, COLUMNS[KERNELS])
        self._environment = environment(device)
        self._written: set[tuple[str, ...]] = set()

    def add_once(self, row: Row) -> None:
        """A provider that has no times says so in one row, whatever number of tests find it out."""
        key = tuple(row[name] for name in ("case", "provider", "pass"))
        if key not in self._written:
            self._written.add(key)
            self.table.add(row | self._environment)


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Iterator[Session]:
    session = Session(pytestconfig)
    yield session
    if not pytestconfig.stash[PART]:
        session.table.done()
    _say(pytestconfig, f"written: {session.table.path}")


@pytest.fixture(scope="module")
def case_run(case: Case, pytestconfig: pytest.Config) -> CaseRun:
    """The providers of a case, checked."""
    _say(pytestconfig, f"{case.name}: checking its providers")
    device = _device(pytestconfig)
    effort = QUICK_EFFORT if pytestconfig.getoption("quick") else EFFORT
    return CaseRun(case, device, effort, _clock(device))
