"""The example's figure: faces, their reconstructions and samples of both versions, and the losses."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from bench.report.figures import BASE, OUR_COLOUR, UPSTREAM_COLOUR
from bench.vae.run import Run

SEED = 1
TEMPERATURE = 0.8


def draw(runs: Mapping[str, Run], faces: Tensor, path: Path) -> None:
    """Writes the figure; the faces are (count, 1, H, W)."""
    rows = {"faces": faces}
    for name, run in runs.items():
        rows[f"reconstructed, {name}"], rows[f"sampled, {name}"] = _images(run, faces)
    with rc_context(BASE):  # type: ignore[arg-type]  # names of settings are plain strings there
        figure = Figure(figsize=(10, 8.5), layout="constrained")
        grid = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[1] * len(rows) + [2.2])
        for place, (title, images) in enumerate(rows.items()):
            axes = figure.add_subplot(grid[place])
            axes.imshow(torch.cat(list(images[:, 0].cpu()), 1).numpy(), cmap="gray", vmin=-2, vmax=2.5)
            axes.set_title(title, loc="left", fontsize=10)
            axes.axis("off")
        axes = figure.add_subplot(grid[len(rows)])
        for (name, run), colour, style in zip(runs.items(), (UPSTREAM_COLOUR, OUR_COLOUR), ("-", "--"), strict=True):
            axes.plot(range(1, len(run.losses) + 1), run.losses, style, color=colour, label=name)
        axes.set(xlabel="step", ylabel="-ELBO, nats per pixel")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)


@torch.no_grad()
def _images(run: Run, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstructions of the faces, and as many samples; of each version with the same random numbers."""
    torch.manual_seed(SEED)
    reconstructed, _, _ = run.model(faces)
    return reconstructed, run.model.generate(len(faces), TEMPERATURE)
