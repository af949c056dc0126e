"""The README's tables of measurements as Markdown; each section depends on files of bench/results alone."""

import math
import re
from collections.abc import Iterable, Sequence

from bench.report.results import COMPILED, OK, SKIPPED, UPSTREAM, Results, Row, about, distinct, number, problems, tried

LEVEL = "level"  # the cases of the default model's levels start with it
NOTHING = "-"
STEP_PASSES = ("forward", "backward", "step")
AUDITED = ("forward", "backward", "sample")


def kernels_section(results: Results, link: str, figures: Sequence[str]) -> str:
    """The levels of the default model on one machine; `link` leads to the file, `figures` to what was drawn of it."""
    rows = [row for row in results.rows if row["case"].startswith(LEVEL)]
    # The first level's kind alone, which is the default; the file has the rest.
    rows = [row for row in rows if all(row[name] == rows[0][name] for name in ("batch", "dtype", "layout", "kl"))]
    parts, hidden = [], []
    if rows:
        kind = f"{rows[0]['dtype']}, {rows[0]['layout']}, KL {rows[0]['kl']}"
        title = (
            f"Forward + backward of each level's stochastic step ({kind}), median; in brackets upstream's time over it:"
        )
        parts, hidden = [title, steps_table(rows)], [passes_table(rows)]
    return section(results, link, parts, hidden, figures, problems(results.rows, "provider"))


def steps_table(rows: Sequence[Row]) -> str:
    """A line for each provider: the time of a step at each level, and what all of them keep for backward."""
    cases = distinct(row["case"] for row in rows)
    titles = [f"{case}<br>{shape(first(rows, case=case))}" for case in cases]
    lines = []
    for provider, mode in entries(rows):
        cells = []
        for case in cases:
            row = first(rows, case=case, provider=provider, mode=mode, **{"pass": "step"})
            upstream = first(rows, case=case, provider=UPSTREAM, mode="eager", **{"pass": "step"})
            cells.append(f"{time_cell(row)}{brackets(ratio(upstream, row))}")
        kept = [kept_mib(rows, case, provider, mode) for case in cases]
        known = [value for value in kept if value is not None]
        total = mebibytes(sum(known) if len(known) == len(cases) else None)
        lines.append([name_of(provider, mode), *cells, total])
    return table(["", *titles, "kept for backward, all levels"], lines)


def passes_table(rows: Sequence[Row]) -> str:
    """A line for each level and provider: every pass, the step against both baselines, and what is kept."""
    lines = []
    for case in distinct(row["case"] for row in rows):
        for provider, mode in entries(rows):
            chosen = {
                name: first(rows, case=case, provider=provider, mode=mode, **{"pass": name}) for name in STEP_PASSES
            }
            upstream = first(rows, case=case, provider=UPSTREAM, mode="eager", **{"pass": "step"})
            compiled = first(rows, case=case, provider=COMPILED, mode=mode, **{"pass": "step"})
            kept = kept_mib(rows, case, provider, mode)
            lines.append(
                [
                    case,
                    name_of(provider, mode),
                    *map(time_cell, chosen.values()),
                    ratio(upstream, chosen["step"]) or NOTHING,
                    ratio(compiled, chosen["step"]) or NOTHING,
                    mebibytes(kept),
                ]
            )
    return table(["", "", *STEP_PASSES, "upstream / this", "compiled / this", "kept for backward"], lines)


def training_section(results: Results, link: str, figures: Sequence[str]) -> str:
    """The whole model on one machine."""
    rows = tried(results.rows)
    lines = []
    for precision in distinct(row["precision"] for row in rows):
        for variant in distinct(row["variant"] for row in rows if row["precision"] == precision):
            line = [variant, precision]
            for name in ("train", "predict"):
                row = first(rows, variant=variant, precision=precision, **{"pass": name})
                upstream = first(rows, variant=UPSTREAM, precision=precision, **{"pass": name})
                line.append(f"{time_cell(row, 'median_ms', 1e-3)}{brackets(ratio(upstream, row, 'median_ms'))}")
            trained = first(rows, variant=variant, precision=precision, **{"pass": "train"})
            peak, loss = (number(trained, name) if trained else None for name in ("peak_mib", "final_loss"))
            line += [mebibytes(peak), NOTHING if loss is None else f"{loss:.5g}"]
            lines.append(line)
    body = table(["", "", "training step", "prediction", "peak of training", "last loss"], lines)
    return section(results, link, [body], [], figures, problems(results.rows, "variant"))


def audit_table(rows: Sequence[Row]) -> str:
    """The ranges over dtypes, layouts and KLs of the static audit, a column for each backend and target."""
    shown = [row for row in rows if row["instructions_per_latent"] and is_default(row)]
    names = sorted(
        {(row["backend"], row["target"]) for row in shown}, key=lambda name: (name[0], len(name[1]), name[1])
    )
    targets = {
        f"{backend}, {target}": [row for row in shown if (row["backend"], row["target"]) == (backend, target)]
        for backend, target in names
    }
    lines = [
        [f"{kernel}, instructions per latent", *(instructions(chosen, kernel) for chosen in targets.values())]
        for kernel in AUDITED
    ]
    for title, column in (("registers", "registers"), ("bytes of stack", "stack"), ("spills", "spills")):
        largest = (str(max(int(row[column]) for row in chosen)) for chosen in targets.values())
        lines.append([f"{title}, at most", *largest])
    shares = (min(float(row["wide_access_share"]) for row in chosen) for chosen in targets.values())
    lines.append(["traffic in 128-bit accesses, at least", *(f"{math.floor(100 * share)} %" for share in shares)])
    return table(["", *targets], lines)


def is_default(row: Row) -> bool:
    """Whether a GPU runs this variant unless it is told otherwise: stable map, Philox noise, a learned p."""
    return not any(word in row["options"] for word in ("naive", "given noise", "no p"))


def instructions(rows: Iterable[Row], kernel: str) -> str:
    """The range of a kernel's instructions per latent."""
    counts = [float(row["instructions_per_latent"]) for row in rows if row["kernel"].split()[0] == kernel]
    return f"{min(counts):.0f} to {max(counts):.0f}"


def section(
    results: Results,
    link: str,
    parts: Sequence[str],
    hidden: Sequence[str],
    figures: Sequence[str],
    missing: Sequence[str],
) -> str:
    """What was measured on what, the parts, the first figure; the rest folded."""
    images = [f"![{figure.rsplit('-', 1)[-1].removesuffix('.svg')}, {results.machine}]({figure})" for figure in figures]
    folded = [*hidden, "\n".join(f"- {line}" for line in missing), *images[1:]]
    folded = [part for part in folded if part]
    blocks = [f"{about(results.rows)} ([table]({link})).", *parts, *images[:1]]
    if folded:
        blocks += ["<details><summary>More of it</summary>", *folded, "</details>"]
    return "\n\n".join(blocks)


def first(rows: Iterable[Row], **wanted: str) -> Row | None:
    """The first row with these cells."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def entries(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The (provider, mode) pairs that were tried, CUDA graphs last."""
    pairs = dict.fromkeys((row["provider"], row["mode"]) for row in tried(rows))
    return sorted(pairs, key=lambda pair: pair[1] == "graph")


def name_of(provider: str, mode: str) -> str:
    """What a line is called."""
    return f"{provider}, CUDA graph" if mode == "graph" else provider


def shape(row: Row | None) -> str:
    """The latent's shape."""
    assert row is not None
    return re.sub(r"\s*x\s*", " x ", f"{row['batch']} x {row['channels']} x {row['space']}")


def kept_mib(rows: Iterable[Row], case: str, provider: str, mode: str) -> float | None:
    """The most that any pass of a case is known to keep for backward."""
    chosen = (row for row in rows if (row["case"], row["provider"], row["mode"]) == (case, provider, mode))
    return max((kept for row in chosen if (kept := number(row, "kept_mib")) is not None), default=None)


def time_cell(row: Row | None, column: str = "median_us", unit: float = 1e-6) -> str:
    """A time; or the status of a row that has none."""
    if row is None:
        return NOTHING
    if row["status"] != OK:
        return row["status"] if row["status"] == SKIPPED else f"**{row['status']}**"
    value = number(row, column)
    if value is None:
        return NOTHING
    seconds = value * unit
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e3, "ms")) if seconds * s >= 1), (1e6, "µs"))
    return f"{three_digits(seconds * scale)} {name}"


def mebibytes(value: float | None) -> str:
    return NOTHING if value is None else f"{three_digits(value)} MiB"


def three_digits(value: float) -> str:
    """A positive number with three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def ratio(baseline: Row | None, row: Row | None, column: str = "median_us") -> str:
    """How often the time of a row fits into that of the baseline; empty where one of them has no time."""
    above, below = (number(each, column) if each else None for each in (baseline, row))
    return f"{three_digits(above / below)}x" if above and below else ""


def brackets(text: str) -> str:
    return f" ({text})" if text else ""


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
