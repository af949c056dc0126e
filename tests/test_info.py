"""`python -m ladder_kernels.info` where something is wrong: it says so and does not fail."""

import json
import os
import subprocess
import sys

import pytest


def info(**environment: str) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-m", "ladder_kernels.info", "--json"]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_backend_in_the_environment_that_does_not_exist_is_named() -> None:
    said = info(LADDER_KERNELS_BACKEND="cupy")["environment"]["LADDER_KERNELS_BACKEND"]
    assert said == "LADDER_KERNELS_BACKEND='cupy' names an unknown backend; there are torch, cpp, triton, cuda"


@pytest.mark.parametrize("value", ["", "torch"])
def test_a_backend_in_the_environment_that_exists_or_is_empty_is_shown(value: str) -> None:
    assert info(LADDER_KERNELS_BACKEND=value)["environment"]["LADDER_KERNELS_BACKEND"] == value
