"""`bench/gpu/run.sh` with a Python that only notes what it is asked: all it runs exists, a failure stops nothing."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
echo "$*" >>"$NOTES"
case "$*" in
  *find_spec*) exit $MISSING ;;
  *get_device_capability*) echo 9.0 ;;
  *"torch.zeros(1, device"*) exit $NO_GPU ;;
  *tests/test_triton.py*) echo "2 failed, 3 passed"; exit 1 ;;
  *) echo "done: $*" ;;
esac
"""


def dry_run(folder: Path, **answers: str) -> tuple[dict[str, str], str]:
    """What became of every stage, and all that Python was asked."""
    python, notes, out = folder / "python", folder / "notes", folder / "out"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {"MISSING": "0", "NO_GPU": "0", **answers, "PYTHON": str(python), "NOTES": str(notes)}
    command = ["bash", str(ROOT / "bench" / "gpu" / "run.sh"), str(out)]
    subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True)
    lines = (out / "summary.txt").read_text().splitlines()
    assert len(list(out.iterdir())) <= 8
    return {line[7:29].strip(): line[30:] for line in lines}, notes.read_text()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_stages_run_although_one_fails_and_what_they_run_exists(tmp_path, device):
    stages, asked = dry_run(tmp_path, DEVICE=device)
    assert stages["end to end"].startswith("ok: ")
    assert stages["kernel benchmark"].startswith("ok: ")
    if device == "cuda":
        assert stages["triton suite"] == "failed (1): 2 failed, 3 passed"
        assert stages["triton gradients"].startswith("ok: ")
    modules = set(re.findall(r"^-m ([\w.]+)", asked, re.MULTILINE)) | set(re.findall(r"import (bench[\w.]+)", asked))
    assert {"bench.training", "bench.careamics", "ladder_kernels.info", "pytest"} <= modules
    assert all(importlib.util.find_spec(module) for module in modules)
    files = set(re.findall(r"tests/[\w./]+", asked))
    assert files
    assert all((ROOT / file).exists() for file in files)


def test_what_is_missing_is_said(tmp_path):
    stages, _ = dry_run(tmp_path, NO_GPU="1", MISSING="1")
    assert stages["everything on a GPU"] == "skipped: torch sees none; DEVICE=cpu rehearses without"
    assert stages["wheels"].startswith("skipped: no folder of wheels given; missing: numpy pillow")
