"""The README's tables of measurements as Markdown; each depends on files of bench/results alone."""

import math
from collections.abc import Iterable, Sequence

from bench.report.results import COMPILED, FAILED, OK, SKIPPED, UPSTREAM, Results, Row, about, distinct, first, number

LEVEL = "level"  # the cases of the default model's levels start with it
NOTHING = "-"
# Who has a line: of each GPU backend the noise that it draws by default. The files have the rest, and CUDA graphs.
PROVIDERS = (
    *(UPSTREAM, "upstream, validation off", COMPILED),
    *("torch", "torch, compiled", "cpp", "cpp, Philox", "triton, Philox", "cuda, Philox"),
)
PASSES = {"train": "training step", "predict": "prediction"}
# Whose step has a line, and what ours takes for it.
PEERS = {
    "diffusers, LDM": "`.diffusers()`",
    "HDN, ladder-vae-pytorch": "`.juglab_hdn()`",
    "VDVAE": "`.vdvae()`",
    "COSDD": "`.cosdd()`",
    "Efficient-VDVAE": "`.efficient_vdvae()`",
    "NVAE": "logstd",
    "hvae-oodd": "softplus",
}
CALLERS = ("upstream, validation off", COMPILED, "torch, compiled", "cpp", "cpp, compiled", "triton", "cuda")


def kernels_table(results: Results) -> str:
    """A line for each provider: the time of a step at each level, and what all of them keep for backward."""
    rows = [row for row in results.rows if row["case"].startswith(LEVEL) and row["mode"] == "eager"]
    # The first level's kind alone, which is the default; the file has the rest.
    rows = [row for row in rows if all(row[name] == rows[0][name] for name in ("batch", "dtype", "layout", "kl"))]
    cases = {row["case"]: _shape(row) for row in rows}
    lines = []
    for provider in _tried(PROVIDERS, rows, "provider"):
        steps = [first(rows, **_step(case, provider)) for case in cases]
        upstream = [first(rows, **_step(case, UPSTREAM)) for case in cases]
        kept = [number(row, "kept_mib") for row in steps]
        total = None if None in kept else sum(value for value in kept if value is not None)
        times = [time_cell(row, base, "median_us", 1e-6) for row, base in zip(steps, upstream, strict=True)]
        lines.append([provider, *times, _mebibytes(total)])
    return table(["", *cases.values(), "kept for backward, all levels"], lines)


def training_table(results: Results) -> str:
    """A line for each variant: training and prediction in every precision, and the peak of training in the first."""
    precisions = distinct(row["precision"] for row in results.rows)
    columns = [(name, precision) for precision in precisions for name in PASSES]
    lines = []
    for variant in _tried(distinct(row["variant"] for row in results.rows), results.rows, "variant"):
        line = [variant]
        for name, precision in columns:
            where = {"precision": precision, "pass": name}
            row, base = (first(results.rows, variant=each, **where) for each in (variant, UPSTREAM))
            line.append(time_cell(row, base, "median_ms", 1e-3))
        trained = first(results.rows, **{"variant": variant, "precision": precisions[0], "pass": "train"})
        lines.append([*line, _mebibytes(number(trained, "peak_mib"))])
    heads = [f"{PASSES[name]}, {precision}" for name, precision in columns]
    return table(["", *heads, f"peak, {precisions[0]}"], lines)


def peers_table(results: Results) -> str:
    """A line for each of PEERS: how far its step and ours are apart, and the time of each, eager and compiled."""
    heads = ["peer", "`variance=`", "differs at most", "its code, eager / compiled", "ours, eager / compiled"]
    lines = []
    for peer, variance in PEERS.items():
        row = first(results.rows, peer=peer, ours="the function")
        if row is not None:
            apart = max(float(value) for name, value in row.items() if name.endswith("_difference"))
            times = [_both_times(row, f"{who}_us", f"{who}_compiled_us") for who in ("theirs", "ours")]
            lines.append([peer, variance, f"{apart:.0e}", *times])
    return table(heads, lines)


def mmse_table(results: Results) -> str:
    """A line for each way: of every size of image the time, and how often it fits into upstream's, and the peak."""
    sides = distinct(row["side"] for row in results.rows)
    ways = distinct(row["way"] for row in results.rows)
    lines = []
    for way in ways:
        line = [way]
        for side in sides:
            # Upstream's loop is the first.
            row, base = (first(results.rows, way=name, side=side) for name in (way, ways[0]))
            line += [time_cell(row, base, "median_s", 1), "-" if row is None else _mebibytes(number(row, "peak_mib"))]
        lines.append(line)
    return table(["", *(head for side in sides for head in (f"{side} x {side}", "peak"))], lines)


def host_cost_table(results: Results) -> str:
    """A line for each of CALLERS: the time of a call, and how often it fits into that of upstream's compiled block."""
    baselines = {"function": "block", "block": "block", "prediction": "prediction"}
    lines = []
    for who in _tried(CALLERS, results.rows, "who"):
        line = [who]
        for name, compared in baselines.items():
            # One that failed has a single row, of no pass.
            row = first(results.rows, who=who, **{"pass": name}) or first(results.rows, who=who, status=FAILED)
            line.append(time_cell(row, first(results.rows, who=COMPILED, **{"pass": compared}), "median_us", 1e-6))
        lines.append(line)
    return table(["", *baselines], lines)


def section(results: Results, body: str, link: str) -> str:
    """A table, and what it was measured on; `link` leads to the file."""
    return f"{about(results.rows)} ([all figures]({link})):\n\n{body}"


def _step(case: str, provider: str) -> dict[str, str]:
    return {"case": case, "provider": provider, "pass": "step"}


def _tried(names: Iterable[str], rows: Sequence[Row], column: str) -> list[str]:
    """Those that can run on that machine."""
    return [name for name in names if any(row[column] == name and row["status"] != SKIPPED for row in rows)]


def _shape(row: Row) -> str:
    return " x ".join([row["batch"], row["channels"], *row["space"].split("x")])


def time_cell(row: Row | None, baseline: Row | None, column: str, unit: float) -> str:
    """A time, and how often it fits into the baseline's; or the status of a row that has none."""
    value, base = number(row, column), number(baseline, column)
    if value is None:
        return f"**{row['status']}**" if row and row["status"] not in (OK, SKIPPED) else NOTHING
    seconds = value * unit
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e3, "ms")) if seconds * s >= 1), (1e6, "µs"))
    return f"{three_digits(seconds * scale)} {name}" + (f" ({three_digits(base / value)}x)" if base else "")


def _both_times(row: Row, eager: str, compiled: str) -> str:
    """Two times in microseconds, in one unit."""
    times = [number(row, eager), number(row, compiled)]
    scale, name = (1e-3, "ms") if any(value is not None and value >= 1000 for value in times) else (1, "µs")
    return " / ".join(NOTHING if value is None else three_digits(value * scale) for value in times) + f" {name}"


def _mebibytes(value: float | None) -> str:
    return NOTHING if value is None else f"{three_digits(value)} MiB"


def three_digits(value: float) -> str:
    """A positive number with three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
