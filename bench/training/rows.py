"""The two CSVs of the end-to-end benchmark: what every variant took, and its losses. Written row by row."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.results import losses_path

COLUMNS = (
    *("variant", "precision", "pass", "status", "reason", "batch", "patch", "median_ms", "p20_ms", "p80_ms", "rounds"),
    *("steps_per_s", "peak_mib", "final_loss", "device", "threads", "torch", "triton", "careamics", "ladder_kernels"),
    *("commit", "date"),
)
LOSS_COLUMNS = ("step", "variant", "precision", "loss")


class Table:
    """Both files, begun anew; every row is on the disk when `add` or `add_loss` returns.

    `common` are the cells that all rows share.
    """

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self._common = common
        self._rows = _Writer(path, COLUMNS)
        self._losses = _Writer(losses_path(path), LOSS_COLUMNS)

    def add(self, **cells: Any) -> None:
        self._rows.write(self._common | cells)

    def add_loss(self, step: int, variant: str, precision: str, loss: float) -> None:
        self._losses.write({"step": step, "variant": variant, "precision": precision, "loss": f"{loss:.7g}"})


class _Writer:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = path.open("w", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._writer.writeheader()

    def write(self, cells: dict[str, Any]) -> None:
        self._writer.writerow(cells)
        self._file.flush()
