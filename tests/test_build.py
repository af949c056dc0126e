"""What an sdist carries, and what the README tells to install for the native build."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of an sdist of this very tree."""
    folder = tmp_path_factory.mktemp("sdist")
    # Elsewhere than here, where the list of an earlier build would be read again.
    commands = ("egg_info", "--egg-base", str(folder), "sdist", "--formats=gztar", "--dist-dir", str(folder))
    subprocess.run([sys.executable, "setup.py", "--quiet", *commands], cwd=ROOT, capture_output=True, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        return {member.name.partition("/")[2] for member in tar if member.isfile()}


def files_of(folder: str, *suffixes: str) -> set[str]:
    paths = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_the_sdist_carries_the_package_and_all_sources_of_the_kernels(sdist: set[str]) -> None:
    needed = files_of("ladder_kernels", ".py") | files_of("csrc", ".h", ".cpp", ".cu", ".cuh")
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert needed <= sdist


def test_the_sdist_carries_no_tests(sdist: set[str]) -> None:
    assert not {name for name in sdist if name.startswith(("tests/", "bench/"))}


def test_the_readme_installs_the_setuptools_that_the_build_requires() -> None:
    required = re.search(r'^requires = \["(setuptools.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    installed = re.search(r'^pip install torch ninja "(setuptools.*)"$', (ROOT / "README.md").read_text(), re.MULTILINE)
    assert required is not None
    assert installed is not None
    assert installed.group(1) == required.group(1)
