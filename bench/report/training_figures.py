"""The figures of an end-to-end file: times of a step, and loss curves on each other."""

from collections.abc import Sequence
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figure_style import GREEN, GREY, OUR_COLOUR, PURPLE, UPSTREAM_COLOUR, End, label_ends, page, panels
from bench.report.results import UPSTREAM, Results, Row, distinct, is_ours, number, tried

PASSES = {"train": "training step", "predict": "prediction"}


def training_figures(results: Results) -> dict[str, Figure]:
    """The figures by name; one that has nothing to show is left out."""
    made = {"time": step_times(results), "losses": loss_curves(results)}
    return {name: figure for name, figure in made.items() if figure is not None}


def step_times(results: Results) -> Figure | None:
    """Median time of each variant, a column of panels for each pass and a line for each precision."""
    rows = tried(results.rows)
    if not any(number(row, "median_ms") for row in rows):
        return None
    passes = [name for name in PASSES if any(row["pass"] == name for row in rows)]
    precisions = distinct(row["precision"] for row in rows)
    variants = in_drawing_order(rows)
    height = 0.4 + 0.33 * len(variants)
    figure = page(f"The whole model, end to end{size_text(rows)}", results, height=(height + 0.55) * len(precisions))
    left = 0.35 + 0.085 * max(map(len, variants))
    cells = panels(figure, len(precisions), len(passes), left=left, right=0.4, spacing=0.12)
    for (line, precision), (column, name) in product(enumerate(precisions), enumerate(passes)):
        axes = cells[line][column]
        chosen = [row for row in rows if (row["pass"], row["precision"]) == (name, precision)]
        axes.set_title(f"{PASSES[name]}, {precision}")
        axes.set_yticks(range(len(variants)), [] if column else variants)
        axes.set_ylim(len(variants) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        draw_bars(axes, chosen, variants)
    for axes in cells[-1]:
        axes.set_xlabel("ms: median; whisker: 20th to 80th percentile")
    return figure


def draw_bars(axes: Axes, rows: Sequence[Row], variants: Sequence[str]) -> None:
    """A bar for each variant with its time beside it; what has no time says why."""
    for row in rows:
        height, middle = variants.index(row["variant"]), number(row, "median_ms")
        if middle is None:
            axes.text(0, height, f" {row['status']}", color=GREY, va="center", style="italic")
            continue
        low, high = (number(row, column) or middle for column in ("p20_ms", "p80_ms"))
        colour = colour_of(row["variant"])
        axes.barh(height, middle, height=0.62, color=colour, alpha=0.5)
        axes.plot((low, high), (height, height), color=colour, marker="|", linewidth=2)
        axes.annotate(
            f"{middle:.3g} ms", (max(middle, high), height), (5, 0), textcoords="offset points", va="center", size=10
        )
    axes.set_xlim(0, 1.25 * axes.get_xlim()[1])


def loss_curves(results: Results) -> Figure | None:
    """The loss of every step, a panel for each precision; the own curves thin on top of upstream's."""
    if not results.losses:
        return None
    precisions = distinct(row["precision"] for row in results.losses)
    figure = page("Loss of every training step", results, height=3.3 * len(precisions))
    for precision, [axes] in zip(
        precisions, panels(figure, len(precisions), 1, left=0.85, right=2.1, spacing=0), strict=True
    ):
        axes.set_title(precision)
        axes.set_ylabel("loss")
        rows = [row for row in results.losses if row["precision"] == precision]
        label_ends(axes, draw_losses(axes, rows))
    axes.set_xlabel("step")
    return figure


def draw_losses(axes: Axes, rows: Sequence[Row]) -> list[End]:
    """Draws the curves, the own ones last; returns what to write at their ends."""
    ends: list[End] = []
    variants = in_drawing_order(rows)
    for place, variant in enumerate(variants):
        chosen = sorted((row for row in rows if row["variant"] == variant), key=lambda row: int(row["step"]))
        steps, losses = [int(row["step"]) for row in chosen], [float(row["loss"]) for row in chosen]
        # Each thinner than the one below it: curves that coincide are all seen.
        axes.plot(steps, losses, color=colour_of(variant), linewidth=1.2 * (len(variants) - place))
        ends.append((variant, losses[-1], colour_of(variant)))
    axes.margins(x=0.01)
    axes.grid(axis="y")
    return ends


def in_drawing_order(rows: Sequence[Row]) -> list[str]:
    """The variants, upstream's before ours."""
    return sorted(distinct(row["variant"] for row in rows), key=is_ours)


def size_text(rows: Sequence[Row]) -> str:
    """Batch and patch where all rows agree on them."""
    sizes = {(row["batch"], row["patch"]) for row in rows if row["batch"]}
    return ": batch {}, patch {}".format(*sizes.pop()) if len(sizes) == 1 else ""


def colour_of(variant: str) -> str:
    """One for each of ours and upstream's, eager and compiled; grey for the rest."""
    compiled = "compiled" in variant
    if is_ours(variant):
        return GREEN if compiled else OUR_COLOUR
    if compiled:
        return PURPLE
    return UPSTREAM_COLOUR if variant == UPSTREAM else GREY
