"""What identifies a run of a benchmark: the machine, the versions, the commit and the day; and where results lie."""

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.report.results import GROWING, RESULTS
from ladder_kernels import info


def default_path(device: torch.device, kind: str, *, quick: bool) -> Path:
    """<machine>-<date><kind>.csv, where results are kept, or where a quick look is not."""
    return (GROWING if quick else RESULTS) / f"{machine(device)}-{datetime.date.today()}{kind}.csv"


def machine(device: torch.device) -> str:
    """A short name for a file: `h200`, or `x86-2cores`."""
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.machine().removesuffix('_64').lower()}-{cores}cores"
    words = re.split(r"[^a-z0-9]+", torch.cuda.get_device_name(device).lower())
    return "-".join(word for word in words if word not in ("nvidia", "amd", "geforce", "instinct", ""))


def environment(device: torch.device) -> dict[str, Any]:
    """The columns that are the same for all rows of a run. `careamics` is empty where it is not installed."""
    versions = info.versions()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: versions[name] or "" for name in ("torch", "triton", "careamics", "ladder_kernels")},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """The commit, with -dirty if what is measured was changed since; empty where there is no git or no repository."""

    def git(*arguments: str) -> str:
        command, folder = ["git", *arguments], Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return ""
    changed = git("status", "--porcelain", "--", ":/ladder_kernels", ":/csrc")
    return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{info.cpu_model()}, {threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else str(device)
