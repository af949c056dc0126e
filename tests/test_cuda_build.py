"""The CUDA extension without a GPU: how its build fails, why the backend does not run, what its ops say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ladder_kernels import use_backend
from ladder_kernels.backends import select

ROOT = Path(__file__).parents[1]
BUILT = importlib.util.find_spec("ladder_kernels._CUDA") is not None

needs_the_extension = pytest.mark.skipif(not BUILT, reason="ladder_kernels._CUDA is not built")


def setup_py(blocked=(), **environment):
    """`python setup.py --version`, with modules in `blocked` not importable."""
    code = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)})); sys.argv[:] = ['setup.py', '--version']; "
    code += "import runpy; runpy.run_path('setup.py', run_name='__main__')"
    unset = ("CUDA_HOME", "CUDA_PATH", "LADDER_KERNELS_BUILD_CUDA", "LADDER_KERNELS_BUILD_CPU")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False)


def test_the_default_build_needs_neither_torch_nor_a_compiler(tmp_path):
    result = setup_py(blocked=("torch",), PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_without_nvcc_the_build_fails_and_says_what_is_missing(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", PATH=str(tmp_path))
    assert result.returncode != 0
    assert "there is no nvcc on PATH and no CUDA_HOME" in result.stderr
    assert "Install the CUDA toolkit" in result.stderr


def test_a_wrong_cuda_home_is_named(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert f"there is no nvcc in {tmp_path}" in result.stderr


def toolkit(folder):
    """A toolkit whose nvcc only says where it is."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\necho '#$ TOP={folder}/bin/..' >&2\n")
    nvcc.chmod(0o755)
    return str(folder)


def test_without_torch_the_build_fails_with_the_command_that_helps(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", CUDA_HOME=toolkit(tmp_path), blocked=("torch",))
    assert result.returncode != 0
    assert "torch cannot be imported" in result.stderr
    assert "LADDER_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation -e ." in result.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_torch_without_cuda_is_refused(tmp_path):
    result = setup_py(LADDER_KERNELS_BUILD_CUDA="1", CUDA_HOME=toolkit(tmp_path))
    assert result.returncode != 0
    assert "is built without CUDA" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available() and BUILT, reason="the backend runs here")
def test_the_backend_says_why_it_does_not_run():
    reason = "there is no GPU" if BUILT else "LADDER_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation -e ."
    with pytest.raises(select.BackendUnavailableError) as raised, use_backend("cuda"):
        pass
    assert reason in str(raised.value)


@needs_the_extension
def test_the_native_functions_refuse_tensors_of_the_cpu():
    native = importlib.import_module("ladder_kernels._CUDA")
    q = torch.zeros(1, 2, 4)
    step = native.step("mode", "monte_carlo", "stable", None, None, 1.0, 1e-6, 1.0, None, False, False)
    with pytest.raises(ValueError, match="q must be on a GPU, got cpu"):
        native.sample(q, None, step)
    with pytest.raises(ValueError, match="q must be on a GPU, got cpu"):
        native.forward(q, None, None, step)
    with pytest.raises(ValueError, match="q must be on a GPU, got cpu"):
        native.backward(q, None, None, step, [None] * 8, (True, False, False))
