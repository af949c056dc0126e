"""The demo's figure: images, KL maps, loss curves and the table on one page."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from bench.careamics import LEVELS
from bench.demo.run import CONTROL, OURS, UPSTREAM, Findings
from bench.demo.table import console_table
from bench.report.figures import BASE, OUR_COLOUR, UPSTREAM_COLOUR

INK, FAINT, LINE = "#1d2430", "#667085", "#dde2ea"
COLOURS = {UPSTREAM: UPSTREAM_COLOUR, OURS: OUR_COLOUR}
STYLE: Any = BASE | {
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
LEFT, RIGHT = 0.025, 0.975
CONTROL_LABEL = "upstream to itself, weights a rounding error off"
PANELS = {
    "noisy": "noisy, seen by both",
    UPSTREAM: "denoised, upstream",
    OURS: "denoised, ladder_kernels",
    "clean": "clean, seen by none",
}


def draw(findings: Findings, path: Path) -> None:
    """Write the figure."""
    with rc_context(STYLE):
        figure = Figure(figsize=(16, 14.6), facecolor="white")
        _heading(figure, findings)
        _images(figure, findings)
        _kl_maps(figure, findings)
        _curves(figure, findings)
        figure.text(0.485, 0.285, console_table(findings), size=9, family="monospace", va="top", linespacing=1.9)
        figure.savefig(path, dpi=150)


def _heading(figure: Figure, findings: Findings) -> None:
    settings, environment = findings.settings, findings.environment
    kl = "analytical KL" if settings["analytical_kl"] else "Monte-Carlo KL"
    figure.text(
        LEFT, 0.964, "The same CAREamics LadderVAE, trained with either stochastic block", size=27, weight="bold"
    )
    figure.text(
        LEFT,
        0.938,
        f"HDN denoising in the default architecture, {settings['steps']} steps of "
        f"{settings['batch']} x {settings['patch']} x {settings['patch']}, {kl}: "
        "the same weights, patches and random numbers",
        size=15,
        color=FAINT,
    )
    named = [f"{name} {environment[name]}" for name in ("backend", "ladder_kernels", "torch", "careamics")]
    footer = [environment["device"], *named, environment["date"]]
    figure.text(RIGHT, 0.012, "   ·   ".join(footer), size=11, color=FAINT, ha="right")


def _images(figure: Figure, findings: Findings) -> None:
    cells = GridSpec(1, len(PANELS), left=LEFT, right=RIGHT, top=0.905, bottom=0.654, wspace=0.05)
    for column, (name, title) in enumerate(PANELS.items()):
        axes = _picture(figure.add_subplot(cells[column]), title)
        if name in findings.psnr:
            axes.set_title(f"{findings.psnr[name]:.2f} dB", loc="right", size=13, color=FAINT)
        axes.imshow(findings.images[name].numpy(), cmap="gray", vmin=0, vmax=1)


def _kl_maps(figure: Figure, findings: Findings) -> None:
    cells = GridSpec(1, LEVELS, left=LEFT, right=RIGHT, top=0.62, bottom=0.369, wspace=0.05)
    for level in range(LEVELS):
        axes = _picture(figure.add_subplot(cells[level]), f"KL, level {level + 1}")
        values = findings.kl_maps[level].numpy()
        height, width = values.shape
        axes.set_title(f"{height} x {width} latents", loc="right", size=11, color=FAINT)
        # Two percent saturate: a few latents would else leave the rest in one colour.
        darkest, brightest = np.quantile(values, (0.01, 0.99))
        shown = axes.imshow(values, cmap="magma", vmin=darkest, vmax=brightest)
        bar = figure.colorbar(shown, cax=axes.inset_axes((0, -0.05, 1, 0.025)), orientation="horizontal", extend="both")
        bar.outline.set_visible(False)
        bar.set_label("nats per latent", size=9, color=FAINT, labelpad=1)


def _picture(axes: Axes, title: str) -> Axes:
    axes.set_title(title, loc="left", size=13, weight="bold")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _curves(figure: Figure, findings: Findings) -> None:
    cells = GridSpec(2, 1, left=0.08, right=0.455, top=0.285, bottom=0.065, height_ratios=[1.4, 1], hspace=0.3)
    upper, lower = figure.add_subplot(cells[0]), figure.add_subplot(cells[1])
    losses, differences = findings.losses, findings.differences()
    upper.set_title("Loss of every step", loc="left", size=13, weight="bold")
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("step")
    steps = range(1, len(losses[OURS]) + 1)
    upper.plot(steps, losses[UPSTREAM], color=COLOURS[UPSTREAM], linewidth=3.2, alpha=0.75, label=UPSTREAM)
    upper.plot(steps, losses[OURS], color=COLOURS[OURS], linewidth=1.4, linestyle=(0, (4, 2)), label=OURS)
    # Above the axes, where no curve is.
    above: dict[str, Any] = {"frameon": False, "loc": "lower right", "bbox_to_anchor": (1, 0.97), "ncols": 2}
    upper.legend(**above, fontsize=11)
    # Equal losses have no place on a logarithmic axis: they are drawn at half of float32's resolution.
    floor = float(np.finfo(np.float32).eps) / 2
    looks: dict[str, dict[str, Any]] = {
        CONTROL: {"color": COLOURS[UPSTREAM], "linewidth": 2.5, "alpha": 0.5, "label": CONTROL_LABEL},
        OURS: {"color": COLOURS[OURS], "linewidth": 1.2, "label": f"{OURS} to upstream"},
    }
    for name, look in looks.items():
        lower.semilogy(steps, np.maximum(differences[name], floor), **look)
    lower.set_ylabel("relative\ndifference", color=FAINT)
    lower.legend(**above, fontsize=10)
    for axes in (upper, lower):
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.margins(x=0.01)
