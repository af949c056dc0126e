"""`make bench`: its options, what is timed with which clock, and the file of results."""

import time
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.kernels import cases
from bench.kernels.cases import GPU, Case
from bench.kernels.run import EFFORT, QUICK_EFFORT, CaseRun, Row
from bench.measure.run_info import default_path, environment
from bench.measure.timing import Clock, synchronised_seconds
from bench.report.results import COLUMNS, KERNELS, Table

TABLE = pytest.StashKey[Table]()
PART = pytest.StashKey[bool]()  # there where not everything was chosen


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out the passes that a case has not."""
    given = [item.callspec.params for item in items]  # type: ignore[attr-defined]
    has = ("case" not in each or each["pass_name"] in each["case"].passes for each in given)
    items[:] = [item for item, has_pass in zip(items, has, strict=True) if has_pass]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """With -k and its like."""
    for item in items:
        item.config.stash[PART] = True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A table is whole where everything was chosen and has run."""
    stash = session.config.stash
    if TABLE not in stash:
        return
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not session.shouldfail
    if ended and PART not in stash:
        stash[TABLE].done()
    _say(session.config, f"written: {stash[TABLE].path}")


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
def session(pytestconfig: pytest.Config) -> Session:
    session = Session(pytestconfig)
    pytestconfig.stash[TABLE] = session.table
    return session


@pytest.fixture(scope="module")
def case_run(case: Case, pytestconfig: pytest.Config) -> CaseRun:
    """The providers of a case, checked."""
    _say(pytestconfig, f"{case.name}: checking its providers")
    device = _device(pytestconfig)
    effort = QUICK_EFFORT if pytestconfig.getoption("quick") else EFFORT
    return CaseRun(case, device, effort, _clock(device))
