"""`python -m bench.train_figure CSV`: the loss curves of the end-to-end benchmark, laid on each other."""

import csv
import sys
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.train_steps import VARIANTS

# On white and on black alike: a grey in the middle, colours of middle lightness, no background.
GREY = "#808690"
COLOURS = ("#3f7fc4", "#2aa198", "#8c7ae6", "#e2552b", "#d99a1c", "#c2559d")
STYLE: Any = {
    "font.size": 12,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}


def read(path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The curves of a losses file: precision, variant, (step, loss)."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault(row["precision"], {}).setdefault(row["variant"], [])
            curve.append((int(row["step"]), float(row["loss"])))
    return curves


def draw(path: Path) -> Path:
    """Draw a losses file as `<same name>.svg`; returns its path."""
    curves = read(path)
    with rc_context(STYLE):
        figure = Figure(figsize=(5 * max(1, len(curves)), 4.4), layout="constrained")
        panels = figure.subplots(1, max(1, len(curves)), squeeze=False, sharey=True)[0]
        for axes, (precision, variants) in zip(panels, curves.items(), strict=False):
            axes.set_title(precision, loc="left", weight="bold")
            axes.set_xlabel("step")
            axes.grid(axis="y")
            for name, curve in variants.items():
                _plot(axes, name, curve)
        panels[0].set_ylabel("loss")
        if curves:
            panels[0].legend(frameon=False, fontsize=10)
        figure.savefig(path.with_suffix(".svg"), transparent=True)
    return path.with_suffix(".svg")


def _plot(axes: Any, name: str, curve: list[tuple[int, float]]) -> None:
    """Curves that coincide stay visible: the earlier of two is the thicker, the later is dashed."""
    names = [variant.name for variant in VARIANTS]
    place = names.index(name) if name in names else len(names) - 1
    steps, losses = zip(*curve, strict=True)
    dashes = "solid" if place == 0 else (2 * place, (4, 3))
    axes.plot(steps, losses, color=COLOURS[place], linewidth=4.0 - 0.5 * place, linestyle=dashes, label=name)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
