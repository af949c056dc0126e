"""`make bench`: its options, the file of results, and Ctrl-C."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from bench import INTERRUPTED, cases, cli, suite
from bench.cases import Case
from bench.results_file import ResultsFile, as_row
from bench.run_info import default_path, environment
from bench.suite import Result

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cases [{elapsed}] {postfix}"


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
        config = metafunc.config
        chosen = cases.select(_device(config), quick=config.getoption("quick"))
        # By the module: pytest then runs all tests of a case after another, and measures it once.
        metafunc.parametrize("case", chosen, ids=lambda case: case.name.replace(" ", "-"), scope="module")


def _device(config: pytest.Config) -> torch.device:
    return config.getoption("device") or cli.default_device()


class Session:
    """Measures cases, shows how far it is, and writes down what is done."""

    def __init__(self, config: pytest.Config, total: int) -> None:
        self._config, self._device = config, _device(config)
        self._quick = config.getoption("quick")
        path = config.getoption("results") or default_path(self._device, quick=self._quick)
        self.file = ResultsFile(path)
        self._environment = environment(self._device)
        self._done, self._total = 0, total
        # Without a terminal there is nobody to watch a bar.
        self.bar = tqdm(total=total, bar_format=BAR, disable=None, leave=False)

    def measure(self, case: Case) -> list[Result]:
        effort = suite.QUICK_EFFORT if self._quick else suite.EFFORT
        self.bar.set_description_str(case.name)
        try:
            results = suite.measure(case, self._device, effort, report=self.bar.set_postfix_str)
        except KeyboardInterrupt:
            self.bar.close()
            done = f"{self._done} of {self._total} cases"
            pytest.exit(f"interrupted; {done} measured, in {self.file.path}", INTERRUPTED)
        self.file.append(as_row(case, result, self._environment) for result in results)
        self._done += 1
        self.bar.update()
        return results


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    total = len({item.callspec.params["case"] for item in request.session.items if hasattr(item, "callspec")})
    with _uncaptured(request.config):
        session = Session(request.config, total)
    yield session
    session.bar.close()
    with _uncaptured(request.config):
        print(f"\nwritten: {session.file.path}")


@pytest.fixture(scope="module")
def results(case: Case, session: Session, pytestconfig: pytest.Config) -> list[Result]:
    """All rows of a case."""
    with _uncaptured(pytestconfig):
        return session.measure(case)


def _uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """In which a bar is seen: pytest keeps what is printed to itself."""
    return config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled()
