"""The demo's figure: images, loss curves and the table on one page."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from bench.demo.run import CONTROL, OURS, UPSTREAM, Findings
from bench.demo.table import console_table
from bench.report.figures import BASE, OUR_COLOUR, UPSTREAM_COLOUR

INK, FAINT, LINE = "#1d2430", "#667085", "#dde2ea"
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
        figure = Figure(figsize=(16, 10.45), facecolor="white")
        _texts(figure, findings)
        _images(figure, findings)
        _curves(figure, findings)
        figure.savefig(path, dpi=150)


def _texts(figure: Figure, findings: Findings) -> None:
    settings, environment = findings.settings, findings.environment
    title = "The same CAREamics LadderVAE, trained with either stochastic block"
    kl = "analytical KL" if settings["analytical_kl"] else "Monte-Carlo KL"
    size = f"{settings['steps']} steps of {settings['batch']} x {settings['patch']} x {settings['patch']}, {kl}"
    training = f"HDN denoising in the default architecture, {size}: the same weights, patches and random numbers"
    named = [f"{name} {environment[name]}" for name in ("backend", "ladder_kernels", "torch", "careamics")]
    footer = "   ·   ".join([environment["device"], *named, environment["date"]])
    figure.text(LEFT, 0.95, title, size=27, weight="bold")
    figure.text(LEFT, 0.913, training, size=15, color=FAINT)
    figure.text(0.485, 0.44, console_table(findings), size=9, family="monospace", va="top", linespacing=1.9)
    figure.text(RIGHT, 0.017, footer, size=11, color=FAINT, ha="right")


def _images(figure: Figure, findings: Findings) -> None:
    cells = GridSpec(1, len(PANELS), left=LEFT, right=RIGHT, top=0.867, bottom=0.517, wspace=0.05)
    for column, (name, title) in enumerate(PANELS.items()):
        axes = figure.add_subplot(cells[column], xticks=[], yticks=[], frame_on=False)
        axes.set_title(title, loc="left", size=13, weight="bold")
        if name in findings.psnr_db:
            axes.set_title(f"{findings.psnr_db[name]:.2f} dB", loc="right", size=13, color=FAINT)
        axes.imshow(findings.images[name].numpy(), cmap="gray", vmin=0, vmax=1)


def _curves(figure: Figure, findings: Findings) -> None:
    cells = GridSpec(2, 1, left=0.08, right=0.455, top=0.44, bottom=0.091, height_ratios=[1.4, 1], hspace=0.3)
    upper, lower = figure.add_subplot(cells[0]), figure.add_subplot(cells[1])
    losses, differences = findings.losses, findings.differences()
    upper.set_title("Loss of every step", loc="left", size=13, weight="bold")
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("step")
    steps = range(1, len(losses[OURS]) + 1)
    upper.plot(steps, losses[UPSTREAM], color=UPSTREAM_COLOUR, linewidth=3.2, alpha=0.75, label=UPSTREAM)
    upper.plot(steps, losses[OURS], color=OUR_COLOUR, linewidth=1.4, linestyle=(0, (4, 2)), label=OURS)
    # Above the axes, where no curve is.
    above: dict[str, Any] = {"frameon": False, "loc": "lower right", "bbox_to_anchor": (1, 0.97), "ncols": 2}
    upper.legend(**above, fontsize=11)
    # Equal losses have no place on a logarithmic axis: they are drawn at half of float32's resolution.
    floor = float(np.finfo(np.float32).eps) / 2
    ours, control = (np.maximum(differences[name], floor) for name in (OURS, CONTROL))
    lower.semilogy(steps, control, color=UPSTREAM_COLOUR, linewidth=2.5, alpha=0.5, label=CONTROL_LABEL)
    lower.semilogy(steps, ours, color=OUR_COLOUR, linewidth=1.2, label=f"{OURS} to upstream")
    lower.set_ylabel("relative\ndifference", color=FAINT)
    lower.legend(**above, fontsize=10)
    for axes in (upper, lower):
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.margins(x=0.01)
