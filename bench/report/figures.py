"""`python -m bench.report.figures [csv...]`: draws a kernels file's time against its size, beside it as PNG.

Without arguments, of every kernels file in bench/results. The image carries the numbers that it was drawn from, so that
`python -m bench.report.readme --check` can tell one that is out of date without comparing pixels.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from PIL import Image

from bench.cli import Parser
from bench.report.results import COMPILED, KERNELS, UPSTREAM, Results, Row, about, find, number, read

UPSTREAM_COLOUR, OUR_COLOUR = "#3f74b8", "#e2552b"
PURPLE, GREEN, GREY = "#b0699e", "#0a9b77", "#757c87"
BASE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Grey text and lines without a background: read on white and on GitHub's dark page alike.
STYLE: Any = BASE | {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "grid.color"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color"), GREY),
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
DPI = 110

SWEEP = "sweep"  # the cases of the size sweep start with it
PASSES = ("forward", "backward", "step")
# In the order of drawing: the own lines last, on top.
OURS = ("cuda, Philox", "triton, Philox", "cpp", "cpp, Philox")
DRAWN = {
    UPSTREAM: (UPSTREAM_COLOUR, "o"),
    COMPILED: (PURPLE, "s"),
    "cuda, Philox": (GREEN, "^"),
    "triton, Philox": (OUR_COLOUR, "D"),
    "cpp": (OUR_COLOUR, "D"),
    "cpp, Philox": (GREEN, "^"),
}
NUMBERS = "Numbers"  # the PNG's text with the fingerprint of what is drawn


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
        panels = figure.subplots(1, len(PASSES), sharex=True, sharey=True)
        for axes, name in zip(panels, PASSES, strict=True):
            axes.set_title(name)
            _draw_times(axes, [row for row in rows if row["pass"] == name])
        panels[0].set_ylabel("time: median, and 20th to 80th percentile")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_times(axes: Axes, rows: Sequence[Row]) -> None:
    """The lines of a pass, the own ones last, and that of a copy."""
    copied = sorted({(float(row["latents"]), _copy_seconds(row)) for row in rows if row["provider"] in OURS})
    if copied:
        axes.plot(
            *zip(*copied, strict=True),
            color=GREY,
            linestyle=":",
            label="a copy of the bytes it reads and writes: the least it can take",
        )
    for (provider, (colour, marker)), mode in product(DRAWN.items(), ("eager", "graph")):
        chosen = [row for row in rows if (row["provider"], row["mode"]) == (provider, mode)]
        chosen.sort(key=lambda row: float(row["latents"]))
        if not chosen:
            continue
        sizes = [float(row["latents"]) for row in chosen]
        low, middle, high = ([1e-6 * float(row[f"{name}_us"]) for row in chosen] for name in ("p20", "median", "p80"))
        graph = mode == "graph"
        axes.fill_between(sizes, low, high, color=colour, alpha=0.25, linewidth=0)
        look: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "none"} if graph else {}
        axes.plot(sizes, middle, color=colour, marker=marker, label=provider + ", graph" * graph, **look)
    axes.set(xscale="log", yscale="log", xlabel="latents")
    for axis, unit in ((axes.xaxis, EngFormatter(sep="")), (axes.yaxis, EngFormatter(unit="s"))):
        axis.set_major_locator(LogLocator())
        axis.set_major_formatter(unit)
        axis.set_minor_formatter(NullFormatter())


def _copy_seconds(row: Row) -> float:
    """The time in which the device would copy the bytes that a pass moves."""
    return float(row["bytes"]) / float(row["copy_gb_per_s"]) / 1e9


def fingerprint(figure: Figure) -> str:
    """Of the texts and of every line that a figure shows."""
    lines = [
        [axes.get_title(), str(line.get_label()), np.asarray(line.get_xydata()).tolist()]
        for axes in figure.axes
        for line in axes.get_lines()
    ]
    return hashlib.sha256(json.dumps([figure.get_suptitle(), lines]).encode()).hexdigest()


def save(figure: Figure, path: Path) -> None:
    """Write the PNG, with the fingerprint in it."""
    figure.savefig(path, dpi=DPI, transparent=True, metadata={NUMBERS: fingerprint(figure), "Software": None})


def fault(results: Results) -> str | None:
    """Why the figure beside a results file is not the one that it gives, or None."""
    path = figure_path(results)
    if not path.exists():
        return f"{path.name}: missing; run `make plots`"
    with Image.open(path) as image:
        up_to_date = image.info.get(NUMBERS) == fingerprint(draw(swept(results)))
    return None if up_to_date else f"{path.name}: out of date; run `make plots`"


def drawable(paths: Iterable[Path]) -> list[Results]:
    """Those of the files that have a figure."""
    return [each for each in map(read, paths) if each.kind == KERNELS and swept(each)]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.figures", description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="*", type=Path, help="kernels files; all of bench/results where none is named")
    try:
        for results in drawable(parser.parse_args(arguments).csv or find()):
            save(draw(swept(results)), figure_path(results))
            print(figure_path(results))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
