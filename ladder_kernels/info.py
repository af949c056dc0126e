"""`python -m ladder_kernels.info [--json]`: versions, devices, what serves, why a backend cannot run, where it has."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import ladder_kernels
from ladder_kernels import noise
from ladder_kernels.backends import select

ENVIRONMENT_VARIABLES = (
    select.ENVIRONMENT_VARIABLE,
    "TRITON_INTERPRET",
    "TRITON_CACHE_DIR",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "TORCH_CUDA_ARCH_LIST",
)


# The cards on which we have run the backend, as bench/results names them.
RUN_ON: dict[str, tuple[str, ...]] = {"triton": (), "cuda": ()}

NOISES = {"noise": "noise of torch's generator", "seed": "Philox noise, made in the kernel"}


def collect() -> dict[str, Any]:
    """Everything that a bug report needs, as plain values."""
    return {
        "versions": versions(),
        "devices": _devices(),
        "backends": {name: _with_caveat(name, select.reason_unavailable(name) or "usable") for name in select.NAMES},
        "by default": defaults() | {"only where forced": f"cuda, {NOISES['seed']}"},
        "environment": _environment(),
    }


def _with_caveat(backend: str, said: str) -> str:
    """And for a backend of GPUs, on which one it was seen to work."""
    if backend not in RUN_ON:
        return said
    cards = ", ".join(RUN_ON[backend])
    seen = f"run by us on {cards}" if cards else "not run on a GPU by us yet"
    return f"{said}; {seen}; {select.ENVIRONMENT_VARIABLE}=torch avoids it"


def versions() -> dict[str, str | None]:
    """Of the library and of what it runs with; None where that is not installed."""
    return {
        "ladder_kernels": ladder_kernels.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda (of torch)": torch.version.cuda,
        "triton": _version("triton"),
        "careamics": _version("careamics"),
    }


def defaults(rng: str | None = None) -> dict[str, str]:
    """The backend that serves tensors of each kind of device, and the noise it draws where `rng` names none."""
    return {"CPU tensors": _default("cpu", rng), "GPU tensors": _default_on_gpu(rng)}


def _default_on_gpu(rng: str | None) -> str:
    if torch.cuda.is_available():
        said = _default("cuda", rng)
        return _with_caveat(said.partition(",")[0], said)
    return _with_caveat("triton", f"none here; on one, triton, {NOISES[noise.DRAWS[rng or 'philox']]}")


def _default(device_type: str, rng: str | None) -> str:
    try:
        name = select.default(device_type)
    except (ValueError, select.BackendUnavailableError) as error:
        return str(error)
    draw = noise.DRAWS[rng] if rng else noise.default_draw(name)
    if draw == "seed" and name == "torch":
        return f"{name}, Philox noise, made in plain tensor arithmetic"
    reason = noise.reason_aten_draws() if (name, draw) == ("cpp", "noise") else None
    return f"{name}, {NOISES[draw]}" + (f", made by ATen: {reason}" if reason else "")


def _environment() -> dict[str, str]:
    values = {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ}
    fault = select.fault_of_environment()
    return values if fault is None else values | {select.ENVIRONMENT_VARIABLE: fault}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """What Linux calls it, and the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def _devices() -> dict[str, str]:
    capability = torch.backends.cpu.get_cpu_capability()
    devices = {"cpu": f"{cpu_model()}, {capability}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        devices[f"cuda:{index}"] = f"{properties.name}, {capability}, {properties.total_memory >> 30} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ladder_kernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    report = collect()
    if parser.parse_args().json:
        print(json.dumps(report, indent=2))
        return
    for section, entries in report.items():
        print(section)
        for name, value in entries.items():
            print(f"  {name}: {'not installed' if value is None else value}")
        if not entries:
            print("  none set")


if __name__ == "__main__":
    main()
