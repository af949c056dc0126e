"""The tables of measurements as Markdown; each depends on a file of bench/results alone."""

import math
from collections.abc import Iterable, Sequence

from bench.report.results import COMPILED, OK, SKIPPED, UPSTREAM, Results, Row, about, distinct, first, number

LEVEL = "level"  # the cases of the default model's levels start with it
NOTHING = "-"
# Who has a line: of each GPU backend the noise that it draws by default. The files have the rest.
PROVIDERS = (
    *(UPSTREAM, "upstream, validation off", COMPILED),
    *("torch", "torch, compiled", "cpp", "cpp, Philox", "triton, Philox", "cuda, Philox"),
)
PASSES = {"train": "training step", "predict": "prediction", "denoisplit": "denoiSplit's step"}
CALLERS = ("upstream, validation off", COMPILED, "torch, compiled", "cpp", "cpp, compiled", "triton")


def kernels_table(results: Results) -> str:
    """A line for each provider: the time of a step at each level, and what all of them keep for backward."""
    rows = [row for row in results.rows if row["case"].startswith(LEVEL) and row["pass"] in ("step", "sample")]
    # The first level's kind alone, which is the default; the file has the rest.
    rows = [row for row in rows if all(row[name] == rows[0][name] for name in ("batch", "dtype", "layout", "kl"))]
    cases = {row["case"]: " x ".join([row["batch"], row["channels"], *row["space"].split("x")]) for row in rows}
    lines = []
    for who in _tried(PROVIDERS, rows, "provider"):
        kept = [number(first(rows, provider=who, case=case), "kept_mib") for case in cases]
        total = None if None in kept else sum(filter(None, kept))
        times = _times(rows, "provider", who, [{"case": case} for case in cases], "median_us", 1e-6)
        lines.append([who, *times, _mebibytes(total)])
    return table(["", *cases.values(), "kept for backward, all levels"], lines)


def training_table(results: Results) -> str:
    """A line for each variant: training and prediction in every precision, and the peak of training in the first."""
    rows = results.rows
    precisions = distinct(row["precision"] for row in rows)
    columns = [{"precision": precision, "pass": name} for precision in precisions for name in PASSES]
    columns = [where for where in columns if first(rows, **where)]
    lines = []
    for who in _tried(distinct(row["variant"] for row in rows), rows, "variant"):
        peak = number(first(rows, variant=who, **columns[0]), "peak_mib")
        lines.append([who, *_times(rows, "variant", who, columns, "median_ms", 1e-3), _mebibytes(peak)])
    heads = [f"{PASSES[where['pass']]}, {where['precision']}" for where in columns]
    return table(["", *heads, f"peak, {precisions[0]}"], lines)


def mmse_table(results: Results) -> str:
    """A line for each way: of every size of image the time, and how often it fits into upstream's, and the peak."""
    sides, ways = (distinct(row[name] for row in results.rows) for name in ("side", "way"))
    lines = []
    for way in ways:
        wheres = [{"side": side} for side in sides]
        times = _times(results.rows, "way", way, wheres, "median_s", 1, base=ways[0])  # upstream's loop
        peaks = [_mebibytes(number(first(results.rows, way=way, **where), "peak_mib")) for where in wheres]
        lines.append([way, *(cell for pair in zip(times, peaks, strict=True) for cell in pair)])
    return table(["", *(head for side in sides for head in (f"{side} x {side}", "peak"))], lines)


def host_cost_table(results: Results) -> str:
    """A line for each of CALLERS: the time of a call, and how often it fits into that of upstream's compiled block."""
    # Upstream has no function.
    of_block = [row | {"pass": "function"} for row in results.rows if (row["who"], row["pass"]) == (COMPILED, "block")]
    passes = ("function", "block", "prediction")
    lines = []
    for who in CALLERS:
        rows = results.rows if who == COMPILED else [*results.rows, *of_block]
        times = _times(rows, "who", who, [{"pass": name} for name in passes], "median_us", 1e-6, base=COMPILED)
        lines.append([who, *times])
    return table(["", *passes], lines)


def _times(
    rows: Sequence[Row], key: str, who: str, columns: Sequence[Row], unit: str, scale: float, base: str = UPSTREAM
) -> list[str]:
    """The cells of a line, compared with those of `base`."""

    def at(name: str, where: Row) -> Row | None:
        return first(rows, **{key: name}, **where)

    return [time_cell(at(who, where), at(base, where), unit, scale) for where in columns]


def section(results: Results, body: str, link: str) -> str:
    """A table, and what it was measured on; `link` leads to the file."""
    return f"{about(results.rows)} ([all figures]({link})):\n\n{body}"


def _tried(names: Iterable[str], rows: Sequence[Row], column: str) -> list[str]:
    """Those that can run on that machine."""
    return [name for name in names if any(row[column] == name and row["status"] != SKIPPED for row in rows)]


def time_cell(row: Row | None, baseline: Row | None, column: str, unit: float) -> str:
    """A time, and how often it fits into the baseline's; or the status of a row that has none."""
    value, base = number(row, column), number(baseline, column)
    if value is None:
        return f"**{row['status']}**" if row and row["status"] not in (OK, SKIPPED) else NOTHING
    seconds = value * unit
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e3, "ms")) if seconds * s >= 1), (1e6, "µs"))
    return f"{three_digits(seconds * scale)} {name}" + (f" ({three_digits(base / value)}x)" if base else "")


def _mebibytes(value: float | None) -> str:
    return NOTHING if value is None else f"{three_digits(value)} MiB"


def three_digits(value: float) -> str:
    """A positive number with three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
