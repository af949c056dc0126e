"""The figures of a kernels file: time against size, share of the copy bandwidth, and memory."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from bench.report.figure_style import (
    DRAWN,
    GREY,
    OURS,
    End,
    label,
    label_ends,
    legend,
    legend_top,
    log_ticks,
    look,
    page,
    panels,
    share_limits,
)
from bench.report.results import UPSTREAM, Results, Row, distinct, number

PASSES = ("forward", "backward", "step", "sample")
ENTRIES = [(provider, mode) for provider, mode in product(DRAWN, ("eager", "graph"))]
SWEEP = "sweep"  # the cases of the size sweep start with it
SPREAD = 0.5  # of the distance between two cases, over which their markers are spread
Entry = tuple[str, str]


def kernel_figures(results: Results) -> dict[str, Figure]:
    """The figures by name; one that has nothing to show is left out."""
    makers: dict[str, Callable[[Results], Figure | None]] = {"time": time, "share": share, "memory": memory}
    made = {name: make(results) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def time(results: Results) -> Figure | None:
    """Median time against the latents of the size sweep; a row of panels for each dtype, layout and KL."""
    rows = [row for row in results.rows if row["case"].startswith(SWEEP) and number(row, "median_us")]
    if not rows:
        return None
    kinds, passes = distinct(map(kind_of, rows)), present_passes(rows)
    what = f": {kinds[0]}" if len(kinds) == 1 else ""
    figure = page(f"Time of a stochastic step against its size{what}", results, height=3.6 * len(kinds))
    cells = panels(figure, len(kinds), len(passes), left=0.95, right=1.95, spacing=0.1)
    last = []
    for (line, kind), (column, name) in product(enumerate(kinds), enumerate(passes)):
        axes = cells[line][column]
        shown = [row for row in rows if row["pass"] == name and kind_of(row) == kind]
        axes.set_title(name if column or what else f"{name}: {kind}")
        ends = draw_times(axes, shown)
        log_ticks(axes)
        axes.yaxis.set_major_formatter(EngFormatter(unit="s"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("latents")
        if column == len(passes) - 1:
            last.append((axes, ends))
    share_limits(cells)
    for axes, ends in last:
        label_ends(axes, ends)
    for row_of_panels in cells:
        row_of_panels[0].set_ylabel("median; band: 20th to 80th percentile")
    return figure


def draw_times(axes: Axes, rows: Sequence[Row]) -> list[End]:
    """Draws the lines, the own ones last; returns text, height and colour of what to write at their ends."""
    ends: list[End] = []
    copied = sorted({(float(row["latents"]), seconds) for row in rows if (seconds := copy_seconds(row))})
    if copied:
        axes.plot(*zip(*copied, strict=True), color=GREY, linestyle=":", linewidth=1.5)
        ends.append(("copying its bytes", copied[-1][1], GREY))
    for provider, mode in ENTRIES:
        chosen = sorted(of(rows, (provider, mode)), key=lambda row: float(row["latents"]))
        if not chosen:
            continue
        sizes = [float(row["latents"]) for row in chosen]
        low, middle, high = ([1e-6 * float(row[f"{name}_us"]) for row in chosen] for name in ("p20", "median", "p80"))
        shape, own = look(provider, mode), provider in OURS
        axes.fill_between(sizes, low, high, color=shape.color, alpha=0.25, linewidth=0)
        axes.plot(sizes, middle, **shape._asdict(), markersize=4.5, linewidth=2.2 if own else 1.5)
        ends.append((label(provider, mode), middle[-1], shape.color))
    return ends


def copy_seconds(row: Row) -> float | None:
    """The time in which the device would copy the bytes that one of our passes moves."""
    moved, bandwidth = number(row, "bytes"), number(row, "copy_gb_per_s")
    return moved / bandwidth / 1e9 if row["provider"] in OURS and moved and bandwidth else None


def share(results: Results) -> Figure | None:
    """The share of the copy bandwidth that each case reaches, a panel for each pass."""
    rows = [row for row in results.rows if not row["case"].startswith(SWEEP) and number(row, "copy_share") is not None]
    rows = [row for row in rows if row["provider"] in DRAWN and row["provider"] != UPSTREAM]
    if not rows:
        return None
    passes = present_passes(rows)
    figure, cells = case_page(
        "Share of the speed of light: 100 % is a plain copy of the same bytes", results, rows, len(passes)
    )
    for axes, name in zip(cells, passes, strict=True):
        axes.set_title(name)
        axes.set_xlabel("of the copy bandwidth")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        draw_dots(axes, [row for row in rows if row["pass"] == name], rows, "copy_share")
        axes.set_xlim(0, max(1.05, axes.get_xlim()[1]))  # the panels' labels would touch if they ended with 100 %
    return figure


def memory(results: Results) -> Figure | None:
    """What each case keeps for backward, and its peak, upstream against ours."""
    titles = {"kept_mib": "kept for backward", "peak_mib": "peak"}
    rows = [row for row in results.rows if not row["case"].startswith(SWEEP) and row["provider"] in DRAWN]
    rows = [row for row in rows if row["mode"] == "eager"]  # the memory of a graph is the pool's
    shown = {column: largest(rows, column) for column in titles}
    shown = {column: chosen for column, chosen in shown.items() if chosen}
    if not shown:
        return None
    everything = [row for chosen in shown.values() for row in chosen]
    figure, cells = case_page("Memory of a stochastic step", results, everything, len(shown))
    for axes, (column, chosen) in zip(cells, shown.items(), strict=True):
        axes.set_title(titles[column])
        axes.set_xlabel("MiB")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        draw_dots(axes, chosen, everything, column)
        low, high = axes.get_xlim()
        axes.set_xlim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    return figure


def largest(rows: Iterable[Row], column: str) -> list[Row]:
    """The row with the largest value in a column for each case, provider and mode."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key, value = (row["case"], row["provider"], row["mode"]), number(row, column)
        if value and (key not in best or value > float(best[key][column])):
            best[key] = row
    return list(best.values())


def case_page(title: str, results: Results, rows: Sequence[Row], columns: int) -> tuple[Figure, list[Axes]]:
    """A page of panels with a line for each case of `rows`, and a legend."""
    cases = distinct(row["case"] for row in rows)
    entries = [entry for entry in ENTRIES if any(of(rows, entry))]
    top, left = legend_top(entries), 0.35 + 0.085 * max(map(len, cases))
    figure = page(title, results, height=0.4 + 0.32 * len(cases), top=top)
    cells = panels(figure, 1, columns, left=left, right=0.3, spacing=0.16, top=top)[0]
    for axes in cells:
        axes.set_yticks(range(len(cases)), cases if axes is cells[0] else [])
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.grid()
        axes.tick_params(length=0)
    legend(figure, entries)
    return figure, cells


def draw_dots(axes: Axes, rows: Sequence[Row], everything: Sequence[Row], column: str) -> None:
    """A marker for each row about the line of its case, the own ones last."""
    entries = [entry for entry in ENTRIES if any(of(everything, entry))]
    heights = {case: height for height, case in enumerate(distinct(row["case"] for row in everything))}
    for place, entry in enumerate(entries):
        chosen = of(rows, entry)
        aside = SPREAD * (place / max(1, len(entries) - 1) - 0.5)  # equal values stay visible beside each other
        values = [float(row[column]) for row in chosen]
        shape = look(*entry)._asdict() | {"linestyle": "none"}
        if chosen:
            axes.plot(values, [heights[row["case"]] + aside for row in chosen], **shape, markersize=6)


def of(rows: Iterable[Row], entry: Entry) -> list[Row]:
    """The rows of a (provider, mode) pair."""
    return [row for row in rows if (row["provider"], row["mode"]) == entry]


def kind_of(row: Row) -> str:
    """What else than the size a case is about."""
    return f"{row['dtype']}, {row['layout']}, {row['kl']}"


def present_passes(rows: Iterable[Row]) -> list[str]:
    """The passes of these rows, in the order in which they run."""
    found = {row["pass"] for row in rows}
    return [name for name in PASSES if name in found]
