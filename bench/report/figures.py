"""The figures of bench/results: a kernels file's time against its size, beside it as PNG.

An image carries a fingerprint of the rows that it was drawn from: whether it is out of date is seen without comparing
pixels.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from PIL import Image

from bench.report.results import COMPILED, KERNELS, UPSTREAM, Results, Row, about, number, read

UPSTREAM_COLOUR, OUR_COLOUR = "#3f74b8", "#e2552b"
PURPLE, GREEN, GREY = "#b0699e", "#0a9b77", "#757c87"
BASE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Grey text and lines without a background: read on white and on GitHub's dark page alike.
GREYS = (*(f"axes.{part}color" for part in ("label", "edge", "title")), "text.color", "grid.color", "xtick.color")
LOOK = {"axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.25}
STYLE: Any = BASE | dict.fromkeys((*GREYS, "ytick.color"), GREY) | LOOK | {"legend.frameon": False}

SWEEP = "sweep"  # the cases of the size sweep start with it
# In the order of drawing: the own lines last, on top.
DRAWN = {
    UPSTREAM: (UPSTREAM_COLOUR, "o"),
    COMPILED: (PURPLE, "s"),
    "cuda, Philox": (GREEN, "^"),
    "triton, Philox": (OUR_COLOUR, "D"),
    "cpp": (OUR_COLOUR, "D"),
    "cpp, Philox": (GREEN, "^"),
}
LEAST = "copying the bytes it moves: the floor"
FINGERPRINT = "Rows"  # the PNG's text with that of what is drawn


def figure_path(results: Results) -> Path:
    """Where the figure of a results file belongs."""
    return results.path.with_name(f"{results.path.stem}-time.png")


def swept(results: Results) -> list[Row]:
    """What there is to draw: the rows of the size sweep that have a time."""
    return [row for row in results.rows if row["case"].startswith(SWEEP) and number(row, "median_us")]


def draw(rows: Sequence[Row]) -> Figure:
    """Median time against the latents of `swept` rows, a panel for each pass."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        figure.suptitle(f"Time of a stochastic step against its size\n{about(rows)}", size=9, ha="left", x=0.01)
        panels = figure.subplots(1, 3, sharex=True, sharey=True)
        for axes, name in zip(panels, ("forward", "backward", "step"), strict=True):
            axes.set_title(name)
            _draw_times(axes, sorted((row for row in rows if row["pass"] == name), key=lambda row: int(row["latents"])))
        panels[0].set_ylabel("time: median, and 20th to 80th percentile")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_times(axes: Axes, rows: Sequence[Row]) -> None:
    """The lines of a pass, the own ones last, and that of a copy of the bytes that the last of them moves."""
    shown = [provider for provider in DRAWN if any(row["provider"] == provider for row in rows)]
    for provider in shown:
        chosen = [row for row in rows if row["provider"] == provider]
        sizes = [int(row["latents"]) for row in chosen]
        low, middle, high = ([1e-6 * float(row[f"{q}_us"]) for row in chosen] for q in ("p20", "median", "p80"))
        colour, marker = DRAWN[provider]
        axes.fill_between(sizes, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(sizes, middle, color=colour, marker=marker, label=provider)
        if provider == shown[-1]:
            copied = [1e-9 * float(row["bytes"]) / float(row["copy_gb_per_s"]) for row in chosen]
            axes.plot(sizes, copied, color=GREY, linestyle=":", label=LEAST)
    axes.set(xscale="log", yscale="log", xlabel="latents")
    for axis, unit in ((axes.xaxis, EngFormatter(sep="")), (axes.yaxis, EngFormatter(unit="s"))):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter(unit)
        axis.set_minor_formatter(NullFormatter())


def drawable(paths: Iterable[Path]) -> list[Results]:
    """Those of the files that have a figure."""
    return [each for each in map(read, paths) if each.kind == KERNELS and swept(each)]


def write(results: Results) -> None:
    """Draws the figure of a results file beside it."""
    metadata = {FINGERPRINT: _fingerprint(results), "Software": None}
    draw(swept(results)).savefig(figure_path(results), dpi=110, transparent=True, metadata=metadata)


def is_drawn(results: Results) -> bool:
    """Whether the figure beside a results file is the one that it gives."""
    if not (path := figure_path(results)).exists():
        return False
    with Image.open(path) as image:
        return image.info.get(FINGERPRINT) == _fingerprint(results)


def _fingerprint(results: Results) -> str:
    return hashlib.sha256(json.dumps(swept(results)).encode()).hexdigest()
