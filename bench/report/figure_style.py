"""How figures look: fonts, colours of who is compared, headings, and SVG bytes that depend on the data alone.

The text and line colours are read on white and on GitHub's dark page alike; colours come with a marker of their own.
"""

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from bench.report.results import COMPILED, OK, UPSTREAM, Results, about

UPSTREAM_COLOUR, OUR_COLOUR = "#3f74b8", "#e2552b"
PURPLE, GREEN, GREY = "#b0699e", "#0a9b77", "#757c87"

BASE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# rc parameters of figures that are shown on a page of any colour.
STYLE: Any = BASE | {
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "svg.hashsalt": "ladder_kernels",
}

# In the order of drawing: the own lines last, on top. Of each backend the noise that it draws by default.
OURS = ("cuda, Philox", "triton, Philox", "cpp")
DRAWN = (UPSTREAM, COMPILED, *OURS)
# Inches: of a figure, of its heading, of its foot, of a line of the legend.
WIDTH, TOP, BOTTOM, LEGEND_LINE = 10.0, 1.1, 0.85, 0.25
LEGEND_COLUMNS = 4
LABEL_GAP = 0.065  # between the labels at the ends of lines, as a share of the panel's height
End = tuple[str, float, str]  # what to write at the end of a line: text, height, colour


class Look(NamedTuple):
    """How a provider is drawn in every figure."""

    color: str
    marker: str
    linestyle: str
    markerfacecolor: str


def look(provider: str, mode: str = "eager") -> Look:
    """The look of a provider; a CUDA graph is dashed and hollow."""
    looks = {
        UPSTREAM: (UPSTREAM_COLOUR, "o"),
        COMPILED: (PURPLE, "s"),
        "cuda, Philox": (GREEN, "^"),
    }
    colour, marker = looks.get(provider, (OUR_COLOUR, "D"))
    graph = mode == "graph"
    return Look(colour, marker, "--" if graph else "-", "none" if graph else colour)


def label(provider: str, mode: str = "eager") -> str:
    """What a provider is called in figures."""
    return f"{provider}, graph" if mode == "graph" else provider


def page(title: str, results: Results, height: float, top: float = TOP) -> Figure:
    """A figure with its heading: what, on what, when and with which versions.

    Its panels are `height` inches high and begin `top` below the edge. Measurements that are
    not ok are counted at the foot: no figure draws them.
    """
    figure = Figure(figsize=(WIDTH, height + top + BOTTOM))
    figure.text(0.012, 1 - inches(figure, 0.36), title, size=16, weight="bold")
    figure.text(0.012, 1 - inches(figure, 0.64), about(results.rows), size=8.5)
    missing = Counter(row["status"] for row in results.rows if row["status"] != OK)
    if missing:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(missing.items()))
        figure.text(0.012, inches(figure, 0.12), f"not drawn: {counts}; why: {results.path.name}", size=8.5)
    return figure


def inches(figure: Figure, length: float) -> float:
    """A height in inches as a share of the figure's."""
    return length / figure.get_figheight()


def legend_top(entries: Sequence[tuple[str, str]]) -> float:
    """Inches of a heading with the legend of these entries."""
    return TOP + LEGEND_LINE * math.ceil(len(entries) / LEGEND_COLUMNS)


def legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    """Lines under the heading that name the markers of (provider, mode) pairs."""
    handles: list[Artist] = [
        Line2D([], [], **(look(*entry)._asdict() | {"linestyle": "none"}), label=label(*entry)) for entry in entries
    ]
    anchor = (0.005, 1 - inches(figure, 0.7))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=anchor, ncols=LEGEND_COLUMNS, handletextpad=0.1)


def panels(
    figure: Figure, lines: int, columns: int, left: float, right: float, spacing: float, top: float = TOP
) -> list[list[Axes]]:
    """A grid of axes under the heading; margins in inches."""
    grid = figure.add_gridspec(
        lines,
        columns,
        left=left / WIDTH,
        right=1 - right / WIDTH,
        top=1 - inches(figure, top),
        bottom=inches(figure, BOTTOM),
        wspace=spacing,
        hspace=0.4,
    )
    return [[figure.add_subplot(grid[line, column]) for column in range(columns)] for line in range(lines)]


def log_ticks(axes: Axes) -> None:
    """Logarithmic axes whose labels are whole decades."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.grid()


def share_limits(cells: Sequence[Sequence[Axes]]) -> None:
    """Gives all panels the same limits, and tick labels to the outer ones alone."""
    everything = [axes for line in cells for axes in line]
    limits = [(*axes.get_xlim(), *axes.get_ylim()) for axes in everything]
    left, right, bottom, top = zip(*limits, strict=True)
    for axes in everything:
        axes.set(xlim=(min(left), max(right)), ylim=(min(bottom), max(top)))
    for axes in (axes for line in cells for axes in line[1:]):
        axes.tick_params(labelleft=False)


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Writes the names of lines to the right of their ends, apart from each other; after the limits are set."""
    ends = sorted(ends, key=lambda end: end[1])
    right, to_panel = axes.get_xlim()[1], axes.transData + axes.transAxes.inverted()
    places = [float(to_panel.transform((right, height))[1]) for _, height, _ in ends]
    # Pushed apart upwards and downwards: both keep the order and the gap, and so does their mean.
    pairs = zip(_apart(places), [-place for place in _apart([-place for place in places[::-1]])[::-1]], strict=True)
    for (text, _, colour), (up, down) in zip(ends, pairs, strict=True):
        middle = (up + down) / 2
        axes.text(1.03, middle, text, color=colour, size=9.5, va="center", transform=axes.transAxes)


def _apart(places: Sequence[float]) -> list[float]:
    """Rising places, each raised to where it is LABEL_GAP above the one before."""
    raised: list[float] = []
    for place in places:
        raised.append(max(place, raised[-1] + LABEL_GAP) if raised else place)
    return raised


def svg(figure: Figure) -> bytes:
    """The figure as SVG without a background; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
