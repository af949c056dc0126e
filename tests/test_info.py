"""`python -m ladder_kernels.info`: what serves by default; where something is wrong it says so and does not fail."""

import csv
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ladder_kernels import info as module
from ladder_kernels import patch_model
from ladder_kernels.backends import select
from ladder_kernels.noise import default_draw

RESULTS = Path(__file__).parents[1] / "bench" / "results"
CPU = re.compile(r", \d+ threads?$")


@functools.cache
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


# What serves by default, and with which noise.


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LADDER_KERNELS_BACKEND": "torch"}, "torch, noise of torch's generator"),
        ({"LADDER_KERNELS_BACKEND": "cpp"}, "cpp, noise of torch's generator"),
        ({"LADDER_KERNELS_BACKEND": "triton", "TRITON_INTERPRET": "1"}, "triton, Philox noise, made in the kernel"),
        ({"LADDER_KERNELS_BACKEND": "cupy"}, "names an unknown backend"),
    ],
)
def test_a_forced_backend_is_what_serves(environment: dict[str, str], said: str) -> None:
    assert said in info(**environment)["by default"]["CPU tensors"]


def test_what_is_told_of_the_cpu_is_what_a_call_does() -> None:
    q = torch.zeros(1, 2, 3)
    name = select.serving(q)
    assert module.defaults()["CPU tensors"] == f"{name}, {module.NOISES[default_draw(name)]}"


@pytest.mark.parametrize(
    ("unusable", "said"),
    [((), "triton, Philox noise, made in the kernel"), (("triton",), "torch, noise of torch's generator")],
    ids=["usable", "without Triton"],
)
def test_on_a_gpu_triton_makes_the_noise_or_torch_draws_it(
    unusable: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(select, "reason_unavailable", lambda name: "it is broken" if name in unusable else None)
    assert module.defaults()["GPU tensors"].partition("; ")[0] == said


# What it says of the machine and of what we have seen.


def test_the_cpu_is_named_with_its_instruction_set() -> None:
    said = info(LADDER_KERNELS_BACKEND="torch")["devices"]["cpu"]
    assert said.startswith(module.cpu_model())
    assert torch.backends.cpu.get_cpu_capability() in said


def test_backends_of_gpus_are_said_to_have_run_on_those_in_the_results_or_on_none() -> None:
    seen: dict[str, set[str]] = {name: set() for name in module.RUN_ON}
    for path in RESULTS.glob("*.csv"):
        with path.open() as file:
            for row in csv.DictReader(file):
                backend = row.get("provider", "").partition(",")[0]
                if backend in seen and row.get("status") == "ok" and not CPU.search(row["device"]):
                    seen[backend].add(row["device"])
    assert {name: set(cards) for name, cards in module.RUN_ON.items()} == seen


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_of_a_backend_that_ran_on_no_gpu_it_is_said_with_what_avoids_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caveat = "not run on a GPU by us yet; LADDER_KERNELS_BACKEND=torch avoids it"
    monkeypatch.setitem(module.RUN_ON, backend, ())
    assert caveat in module.collect()["backends"][backend]
    monkeypatch.setitem(module.RUN_ON, backend, ("NVIDIA H200",))
    assert "run by us on NVIDIA H200" in module.collect()["backends"][backend]
    assert "GPU" not in module.collect()["backends"]["cpp"]


def test_the_report_of_patch_model_says_so_too() -> None:
    report = str(patch_model(torch.nn.Identity()))
    assert module.defaults()["GPU tensors"] in report
    assert "LADDER_KERNELS_BACKEND=torch avoids it" in report


def test_an_option_of_the_blocks_decides_the_noise() -> None:
    assert module.defaults("philox")["CPU tensors"].endswith("Philox noise, made in the kernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "default", lambda device: "torch")
        assert module.defaults("philox")["CPU tensors"] == "torch, Philox noise, made in plain tensor arithmetic"
