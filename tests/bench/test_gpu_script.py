"""`bench/gpu/run.sh` with stand-ins for Python and the CUDA tools: whatever fails, the rest goes on and is written."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu" / "run.sh"

PYTHON = """#!/bin/sh
case "$*" in
  *find_spec*) exit $MISSING ;;
  *"import xdist"*) exit 1 ;;
  *"torch.zeros(1, device"*) exit $NO_GPU ;;
  *"import torch") exit $NO_TORCH ;;
  *get_device_name*) echo stub-gpu ;;
  *get_device_capability*) echo 9.0 ;;
  *"pip install"*) echo "installed $*" ;;
  *setup.py*) echo "built for $TORCH_CUDA_ARCH_LIST"; exit $NO_BUILD ;;
  *tests/test_triton.py*) head -c 300000 /dev/zero | tr '\\0' x; echo; echo "2 failed, 3 passed"; exit 1 ;;
  *bench.training*) echo "the benchmark: $*" ;;
  *) echo "done: $*" ;;
esac
"""
TOOL = '#!/bin/sh\necho "$@"\n'


SHELL = ("bash", "sh", "timeout", "tee", "tail", "head", "grep", "cut", "date", "mktemp", "rm", "mkdir", "sleep")
SHELL += ("dirname", "tr", "cat")


class Machine:
    """A folder of stand-ins, and of the shell's own tools, that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "bin", folder / "out"
        self.folder.mkdir()
        for tool in SHELL:
            (self.folder / tool).symlink_to(shutil.which(tool))
        self.put("python", PYTHON)
        self.put("nvcc", TOOL)
        self.put("compute-sanitizer", TOOL)

    def put(self, name: str, script: str) -> None:
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)

    def run(self, *arguments: str, **answers: str) -> subprocess.CompletedProcess:
        environment = {"MISSING": "0", "NO_GPU": "0", "NO_TORCH": "0", "NO_BUILD": "0", **answers}
        environment |= {"PATH": str(self.folder), "PYTHON": str(self.folder / "python")}
        command = ["bash", str(SCRIPT), *(arguments or [str(self.out)])]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)

    def summary(self) -> dict[str, str]:
        """What became of every stage."""
        lines = (self.out / "summary.txt").read_text().splitlines()
        return {line[7:29].strip(): line[30:] for line in lines}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_all_stages_run_although_one_fails(machine: Machine) -> None:
    assert machine.run().returncode == 0
    found = machine.summary()
    assert found["triton suite"] == "failed (1): 2 failed, 3 passed"
    assert found["build"] == "ok: built for 9.0"
    for stage in ("info", "cuda suite", "end to end", "memcheck", "racecheck", "initcheck"):
        assert found[stage].startswith("ok: "), stage
    assert "stub-gpu-2" in found["end to end"]


def test_the_files_are_few_and_small(machine: Machine) -> None:
    machine.run()
    files = list(machine.out.iterdir())
    assert len(files) <= 8
    assert all(path.is_file() and path.stat().st_size < 1_000_000 for path in files)
    log = (machine.out / "log.txt").read_text()
    assert "===== triton suite =====" in log
    assert 100_000 < log.count("x") < 130_000


@pytest.mark.parametrize(
    ("without", "answers", "stage", "reason"),
    [
        ("nvcc", {}, "cuda suite", "skipped: the extension is not built"),
        ("compute-sanitizer", {}, "sanitizer", "skipped: there is no compute-sanitizer"),
        (None, {"NO_BUILD": "3"}, "build", "failed (3): built for 9.0"),
        (None, {"NO_BUILD": "3"}, "cuda suite", "skipped: the extension is not built"),
        (None, {"NO_GPU": "1"}, "everything on a GPU", "skipped: torch sees none; DEVICE=cpu rehearses without"),
        (None, {"MISSING": "1"}, "wheels", "skipped: no folder of wheels given; missing: numpy pillow"),
    ],
)
def test_what_is_missing_is_said(
    machine: Machine, without: str | None, answers: dict[str, str], stage: str, reason: str
) -> None:
    if without:
        (machine.folder / without).unlink()
    assert machine.run(**answers).returncode == 0
    assert machine.summary()[stage].startswith(reason)
    assert machine.summary()["info"].startswith("ok")


def test_missing_packages_come_from_the_wheels(machine: Machine, tmp_path: Path) -> None:
    machine.run(str(machine.out), str(tmp_path), MISSING="1", NO_GPU="1")
    installed = (machine.out / "log.txt").read_text()
    assert f"--no-index --no-deps --no-compile --find-links {tmp_path}" in installed
    assert installed.splitlines()[2].endswith("pydantic careamics py-cpuinfo2 pytest-benchmark")


def test_without_torch_it_ends_with_one_line(machine: Machine) -> None:
    assert machine.run(NO_TORCH="1").returncode == 1
    assert list(machine.summary()) == ["torch"]


def test_usage_is_told(machine: Machine) -> None:
    done = machine.run("a", "b", "c")
    assert (done.returncode, done.stderr) == (2, "usage: bench/gpu/run.sh OUT [WHEELS]\n")
