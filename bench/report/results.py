"""The CSVs of bench/results: which machine and day each is about, and its rows.

`<machine>-<date>.csv` holds the kernels, `<machine>-<date>-train.csv` the end-to-end runs, and beside the latter
`<machine>-<date>-train-losses.csv` their losses. Rows stay text; `number` reads a cell.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parents[1] / "results"
OK, SKIPPED, FAILED, WRONG = "ok", "skipped", "failed", "wrong"
UPSTREAM, COMPILED = "upstream", "upstream, compiled"

# The two kinds of file that are drawn, by what follows the date in their name, and the columns read from each.
KERNELS, TRAINING = "", "-train"
COMMON = {"pass", "status", "reason", "batch", "device", "threads", "torch", "ladder_kernels", "commit", "date"}
COLUMNS = {
    KERNELS: COMMON
    | {"case", "provider", "mode", "channels", "space", "dtype", "layout", "kl", "latents", "median_us", "p20_us"}
    | {"p80_us", "bytes", "copy_gb_per_s", "copy_share", "peak_mib", "kept_mib", "triton", "careamics"},
    TRAINING: COMMON
    | {"variant", "precision", "patch", "median_ms", "p20_ms", "p80_ms", "steps_per_s", "peak_mib", "final_loss"},
}
LOSS_COLUMNS = {"step", "variant", "precision", "loss"}
NAME = re.compile(r"(?P<machine>.+)-(?P<date>\d{4}-?\d\d-?\d\d)(?P<kind>|-train)")

Row = dict[str, str]


class Results(NamedTuple):
    """One results file. `losses` are the rows of its losses file, empty where it has none."""

    path: Path
    machine: str
    date: str
    kind: str
    rows: list[Row]
    losses: list[Row]


def find(folder: Path = RESULTS) -> list[Path]:
    """The results files of a folder; losses files belong to others and are not listed."""
    return sorted(path for path in folder.glob("*.csv") if NAME.fullmatch(path.stem))


def read(path: Path) -> Results:
    """Reads a results file. Raises ValueError where the name or the columns are not those of one."""
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise ValueError(f"{path}: expected a name like <machine>-2026-01-31.csv or <machine>-2026-01-31-train.csv")
    rows = _read_rows(path, COLUMNS[match["kind"]])
    if not rows:
        raise ValueError(f"{path}: has no rows")
    losses = losses_path(path)
    has_losses = match["kind"] == TRAINING and losses.exists()
    loss_rows = _read_rows(losses, LOSS_COLUMNS) if has_losses else []
    return Results(path, match["machine"], match["date"], match["kind"], rows, loss_rows)


def losses_path(path: Path) -> Path:
    """The losses file that belongs to an end-to-end results file."""
    return path.with_name(f"{path.stem}-losses.csv")


def _read_rows(path: Path, columns: set[str]) -> list[Row]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = columns - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: lacks the columns {', '.join(sorted(missing))}")
        return list(reader)


def newest(results: Iterable[Results]) -> list[Results]:
    """The newest of each machine and kind, by machine."""
    latest = {(each.machine, each.kind): each for each in sorted(results, key=lambda each: each.date)}
    return [latest[key] for key in sorted(latest)]


def number(row: Row, column: str) -> float | None:
    """A cell as a number; None where it is empty or its row is not ok, whose figures mean nothing."""
    return float(row[column]) if row["status"] == OK and row[column] else None


def is_ours(provider: str) -> bool:
    """Whether a provider (kernels) or variant (training) is ladder_kernels, not upstream."""
    return not provider.startswith(UPSTREAM)


def tried(rows: Iterable[Row]) -> list[Row]:
    """The rows of what can run at all on that machine."""
    return [row for row in rows if row["status"] != SKIPPED]


def distinct(values: Iterable[str]) -> list[str]:
    """The values without repetition, in order of appearance."""
    return list(dict.fromkeys(values))


def about(rows: Iterable[Row]) -> str:
    """On what, with which versions and when rows were measured."""
    rows = list(rows)

    def cells(column: str) -> str:
        return " / ".join(distinct(row[column] for row in rows if row.get(column)))

    threads = f"{cells('threads')} thread{'s' * (cells('threads') != '1')}" if cells("threads") else ""
    # A CPU's name may tell them already.
    parts = [cells("device") if threads in cells("device") else f"{cells('device')}, {threads}"]
    parts += [f"{name} {cells(name)}" for name in ("torch", "triton", "careamics") if cells(name)]
    commit = f" ({cells('commit')})" if cells("commit") else ""
    days = " / ".join(distinct(row["date"][:10] for row in rows))
    return " · ".join([*parts, f"ladder_kernels {cells('ladder_kernels')}{commit}", days])


def problems(rows: Iterable[Row], subject: str) -> list[str]:
    """Rows that are not ok, one line for each subject, status and reason; `subject` is the column that names them."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["status"] != OK:
            key = (row[subject], row.get("mode", ""), row["status"], " ".join(row["reason"].split()))
            found.setdefault(key, []).append(f"{row.get('case', row.get('precision', ''))} {row['pass']}")
    lines = []
    for (name, mode, status, reason), where in found.items():
        places = ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")
        lines.append(
            f"{name}{', CUDA graph' * (mode == 'graph')}: {status} ({places})" + (f": {reason}" if reason else "")
        )
    return lines
