"""The table of results: its columns, and a file that grows row by row."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.kernels.cases import Case
from bench.kernels.figures import quantile
from bench.kernels.run import Result

COLUMNS = (
    *("case", "provider", "pass", "mode", "status", "reason"),
    *("batch", "channels", "space", "dtype", "layout", "kl", "latents"),
    *("median_us", "p20_us", "p80_us", "rounds", "bytes", "gb_per_s", "copy_gb_per_s", "copy_share"),
    *("peak_mib", "kept_mib", "launches", "synchronisations", "instructions_per_latent"),
    *("device", "threads", "torch", "triton", "careamics", "ladder_kernels", "commit", "date"),
)


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
