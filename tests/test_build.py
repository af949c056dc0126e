"""What an sdist carries, what the build says without a compiler, and versions that are one."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import ladder_kernels

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


def test_the_sources_have_the_version_of_the_package() -> None:
    header = (ROOT / "csrc" / "ladder_kernels.h").read_text()
    assert re.findall(r'^#define LADDER_VERSION "(.*)"$', header, re.MULTILINE) == [ladder_kernels.__version__]


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python setup.py build_ext` into that folder, without torch."""
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path('setup.py', run_name='__main__')"
    command = [sys.executable, "-c", code, "build_ext", f"--build-lib={folder}/lib", f"--build-temp={folder}/temp"]
    unset = ("CXX", "LADDER_KERNELS_BUILD_CUDA", "LADDER_KERNELS_BUILD_CPU")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)


def test_without_a_compiler_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    result = build(tmp_path, PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("there is no C++ compiler: the CPU kernels are left out, and plain PyTorch serves") == 1
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_leaves_the_kernels_out_too(tmp_path: Path) -> None:
    result = build(tmp_path, CXX="false")
    assert result.returncode == 0, result.stderr
    assert 'building extension "ladder_kernels.libladder_kernels_cpu" failed' in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"PATH": "/nowhere"}, "there is no C++ compiler"), ({"CXX": "false"}, "false -std=c++17")],
)
def test_kernels_that_were_asked_for_and_cannot_be_built_are_an_error(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    result = build(tmp_path, LADDER_KERNELS_BUILD_CPU="1", **environment)
    assert result.returncode != 0
    assert said in result.stderr


def test_kernels_that_were_declined_are_not_mentioned(tmp_path: Path) -> None:
    result = build(tmp_path, LADDER_KERNELS_BUILD_CPU="0", PATH=str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")
