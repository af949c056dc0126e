"""The CUDA library without a GPU: how its build fails, why the backend does not run, what it says to other tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ladder_kernels import use_backend
from ladder_kernels.backends import cuda, native, select
from ladder_kernels.backends.step import Step, StepGrads

ROOT = Path(__file__).parents[1]
BUILT = native.find("cuda")[1] is None


def setup_py(**environment):
    """`python setup.py --version`."""
    unset = ("CUDA_HOME", "CUDA_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "setup.py", "--version"]
    return subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False)


def test_without_nvcc_the_build_fails_and_says_what_is_missing(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", PATH=str(tmp_path))
    assert result.returncode != 0
    assert "there is no nvcc on PATH and no CUDA_HOME" in result.stderr
    assert "Install the CUDA toolkit" in result.stderr


def test_a_wrong_cuda_home_is_named(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert f"there is no nvcc in {tmp_path}" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available() and BUILT, reason="the backend runs here")
def test_the_backend_says_why_it_does_not_run():
    reason = "there is no GPU" if BUILT else "LADDER_KERNELS_BUILD_CUDA=1 pip install ."
    with pytest.raises(select.BackendUnavailableError) as raised, use_backend("cuda"):
        pass
    assert reason in str(raised.value)


def test_it_refuses_tensors_of_the_cpu():
    q, step = torch.zeros(1, 2, 4), Step("mode")
    for call in (
        lambda: cuda.sample(q, None, step),
        lambda: cuda.forward(q, None, None, step),
        lambda: cuda.backward(q, None, None, step, StepGrads(), (True, False, False)),
    ):
        with pytest.raises(ValueError, match="it takes tensors on a GPU only"):
            call()
