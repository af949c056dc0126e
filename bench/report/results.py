"""The tables of bench/results: their columns, written row by row, and read for the pages that show them.

`<machine>-<date>.csv` holds the kernels, `<machine>-<date>-train.csv` the whole model, and so on: see COLUMNS.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "results"
GROWING = Path(__file__).parents[2] / "out" / "bench"  # where a table lies until it is whole
OK, SKIPPED, FAILED, WRONG = "ok", "skipped", "failed", "wrong"
"""A row's status. Wrong: its results are; failed: it raised; skipped: it cannot run there."""
UPSTREAM, COMPILED = "upstream", "upstream, compiled"

# The kinds of file, by what follows the date in their name, and the columns of each.
KERNELS, TRAINING, MMSE, HOST_COST = "", "-train", "-mmse", "-hostcost"
ENVIRONMENT = ("device", "threads", "torch", "triton", "careamics", "ladder_kernels", "commit", "date")
_COLUMNS = {
    KERNELS: "case provider pass status reason batch channels space dtype layout kl latents median_us p20_us p80_us "
    "rounds bytes copy_gb_per_s copy_share peak_mib kept_mib launches synchronisations",
    TRAINING: "variant precision pass status reason batch patch median_ms p20_ms p80_ms rounds peak_mib final_loss",
    MMSE: "way side samples rounds median_s peak_mib",
    HOST_COST: "who pass median_us p20_us p80_us rounds",
}
COLUMNS = {kind: (*names.split(), *ENVIRONMENT) for kind, names in _COLUMNS.items()}
NAME = re.compile(rf"(?P<machine>.+)-(?P<date>\d{{4}}-\d\d-\d\d)(?P<kind>{'|'.join(COLUMNS)})")

Row = dict[str, str]


class Table:
    """A file begun anew; every row is on the disk when `add` returns: an interruption leaves what was measured.

    One of bench/results lies in out/bench until it is `done`: a part never takes the place of a whole.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._final = path
        self.path = GROWING / path.name if path.parent == RESULTS else path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._writer.writeheader()
        self._file.flush()

    def add(self, cells: dict[str, Any]) -> None:
        """A row; a column that it leaves out stays empty."""
        self._writer.writerow(cells)
        self._file.flush()

    def done(self) -> None:
        """All rows are there."""
        self._file.close()
        self.path = self.path.replace(self._final)


class Results(NamedTuple):
    """One results file. Rows stay text; `number` reads a cell."""

    path: Path
    machine: str
    date: str
    kind: str
    rows: list[Row]


def find(folder: Path = RESULTS) -> list[Path]:
    """The results files of a folder."""
    return sorted(path for path in folder.glob("*.csv") if NAME.fullmatch(path.stem))


def read(path: Path) -> Results:
    """Reads a results file. Raises ValueError where the name or the columns are not those of one."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise ValueError(f"{path}: expected a name like <machine>-2026-01-31.csv or <machine>-2026-01-31-train.csv")
    rows = read_rows(path)
    missing = set(COLUMNS[match["kind"]]) - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path}: expected rows with the columns {', '.join(sorted(missing))}, found none")
    return Results(path, match["machine"], match["date"], match["kind"], rows)


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest(results: Iterable[Results]) -> list[Results]:
    """The newest of each machine and kind, by machine."""
    latest = {(each.machine, each.kind): each for each in sorted(results, key=lambda each: each.date)}
    return [latest[key] for key in sorted(latest)]


def number(row: Row | None, column: str) -> float | None:
    """A cell as a number; None where it is empty or its row is not ok, whose figures mean nothing."""
    return float(row[column]) if row and row.get("status", OK) == OK and row[column] else None


def first(rows: Iterable[Row], **wanted: str) -> Row | None:
    """The first row with these cells."""
    return next((row for row in rows if wanted.items() <= row.items()), None)


def distinct(values: Iterable[str]) -> list[str]:
    """The values without repetition, in order of appearance."""
    return list(dict.fromkeys(values))


def about(rows: Sequence[Row]) -> str:
    """On what, with which versions and when rows were measured."""

    def cells(column: str) -> str:
        return " / ".join(distinct(row[column] for row in rows if row[column]))

    threads = f"{cells('threads')} thread{'s' * (cells('threads') != '1')}"
    # A CPU's name tells them already.
    parts = [cells("device") if threads in cells("device") else f"{cells('device')}, {threads}"]
    parts += [f"{name} {cells(name)}" for name in ("torch", "triton", "careamics") if cells(name)]
    commit = f" ({cells('commit')})" if cells("commit") else ""
    return " · ".join([*parts, f"ladder_kernels {cells('ladder_kernels')}{commit}", cells("date")])


def rounded(value: float) -> float:
    """Four digits, as measurements are written."""
    return float(f"{value:.4g}")


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
