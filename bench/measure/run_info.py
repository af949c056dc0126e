"""What identifies a run of a benchmark: the machine, the versions, the commit and the day; and where results lie."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.report.results import RESULTS
from ladder_kernels import info

QUICK_RESULTS = Path("out") / "bench"  # not for keeping


def default_path(device: torch.device, kind: str, *, quick: bool) -> Path:
    """<machine>-<date><kind>.csv, where results are kept, or where a quick look is not."""
    return (QUICK_RESULTS if quick else RESULTS) / f"{machine(device)}-{_today()}{kind}.csv"


def machine(device: torch.device) -> str:
    """A short name for a file: `h200`, or `x86-2cores`."""
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.machine().removesuffix('_64').lower()}-{cores}cores"
    name = torch.cuda.get_device_name(device).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", name) if word not in ("nvidia", "amd", "geforce", "instinct", "")]
    return "-".join(words)


def environment(device: torch.device) -> dict[str, Any]:
    """The columns that are the same for all rows of a run. `careamics` is empty where it is not installed."""
    versions = info.collect()["versions"]
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: versions[name] or "" for name in ("torch", "triton", "careamics", "ladder_kernels")},
        "commit": commit(),
        "date": _today(),
    }


def _today() -> str:
    return datetime.date.today().isoformat()


# What a benchmark writes: whoever runs two of them has changed these before the second.
_WRITTEN = (":(top,exclude)bench/results", ":(top,exclude)README.md")


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the source in `folder`, with -dirty if it was changed since; empty outside of a repository."""
    try:
        found = _git(folder, "rev-parse", "--short", "HEAD")
        return found and found + (
            "-dirty" if _git(folder, "diff", "HEAD", "--name-only", "--", ":/", *_WRITTEN) else ""
        )
    except OSError:  # no git
        return ""


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def device_name(found: torch.device) -> str:
    """The device in words."""
    if found.type == "cuda":
        return torch.cuda.get_device_name(found)
    if found.type == "cpu":
        threads = torch.get_num_threads()
        return f"{info.cpu_model()}, {threads} thread{'s' * (threads != 1)}"
    return str(found)
