"""The table of results: its columns, what identifies a run, and a file that grows row by row."""

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.cases import Case
from bench.figures import quantile
from bench.suite import Result
from ladder_kernels import info

COLUMNS = (
    *("case", "provider", "pass", "mode", "status", "reason"),
    *("batch", "channels", "space", "dtype", "layout", "kl", "latents"),
    *("median_us", "p20_us", "p80_us", "rounds", "bytes", "gb_per_s", "copy_gb_per_s", "copy_share"),
    *("peak_mib", "kept_mib", "launches", "synchronisations", "instructions_per_latent"),
    *("device", "threads", "torch", "triton", "careamics", "ladder_kernels", "commit", "date"),
)
RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("out") / "bench"  # not for keeping


def default_path(device: torch.device, *, quick: bool) -> Path:
    """<machine>-<date>.csv, where the results are kept, or where a quick look is not."""
    return (QUICK_RESULTS if quick else RESULTS) / f"{machine(device)}-{_today()}.csv"


def machine(device: torch.device) -> str:
    """A short name for a file: `h200`, or `x86-2cores`."""
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{platform.machine().removesuffix('_64').lower()}-{cores}cores"
    name = torch.cuda.get_device_name(device).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", name) if word not in ("nvidia", "amd", "geforce", "instinct", "")]
    return "-".join(words)


def environment(device: torch.device) -> dict[str, Any]:
    """The columns that are the same for all rows. `careamics` is empty where its stand-in was timed."""
    report = info.collect()
    key = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    versions = {name: report["versions"][name] or "" for name in ("torch", "triton", "careamics", "ladder_kernels")}
    return {
        "device": report["devices"][key],
        "threads": torch.get_num_threads(),
        **versions,
        "commit": _commit(),
        "date": _today(),
    }


def as_row(case: Case, result: Result, run: dict[str, Any]) -> dict[str, Any]:
    """One row; what was not measured is empty."""
    row: dict[str, Any] = {
        "case": case.name,
        "provider": result.provider,
        "pass": result.pass_name,
        "mode": result.mode,
        "status": result.status,
        "reason": result.reason,
        "batch": case.batch,
        "channels": case.channels,
        "space": "x".join(map(str, case.space)),
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": case.layout,
        "kl": case.kl,
        "latents": case.latents,
        **run,
    }
    if result.seconds:
        median = quantile(result.seconds, 0.5)
        speed = result.bytes / median
        row |= {
            "median_us": _rounded(1e6 * median),
            "p20_us": _rounded(1e6 * quantile(result.seconds, 0.2)),
            "p80_us": _rounded(1e6 * quantile(result.seconds, 0.8)),
            "rounds": len(result.seconds),
            "bytes": result.bytes,
            "gb_per_s": _rounded(1e-9 * speed),
            "copy_gb_per_s": _rounded(1e-9 * result.copy_bytes_per_second),
            "copy_share": _rounded(speed / result.copy_bytes_per_second),
            "peak_mib": _mebibytes(result.figures.peak_bytes),
            "kept_mib": _mebibytes(result.figures.kept_bytes),
            "launches": result.figures.launches,
            "synchronisations": result.figures.synchronisations,
            "instructions_per_latent": result.instructions_per_latent,
        }
    return row


class ResultsFile:
    """Begins the file anew and appends rows to it, so that an interrupted run leaves what it measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Rows of `as_row`; a column that it left out stays empty."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, restval="").writerows(rows)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else _rounded(size / 2**20)


def _today() -> str:
    return datetime.date.today().isoformat()


def _commit() -> str:
    """The commit of this source, with -dirty if it was changed; empty outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return found.stdout.strip()
