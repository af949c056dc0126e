"""The figure of `python -m bench.mmse`: the micrograph noisy and clean, both MMSE images, the spread of the samples."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from bench.mmse.run import Estimate
from bench.mmse.ways import OURS, UPSTREAM
from bench.report.figures import BASE
from bench.training.micrograph import Micrograph, psnr

STYLE: Any = BASE


def draw(image: Micrograph, estimates: dict[str, Estimate], samples: int, path: Path) -> None:
    """Write the figure."""
    psnrs = {name: f"{psnr(each.mean, image.clean):.1f} dB" for name, each in estimates.items()}
    panels: dict[str, Tensor] = {f"noisy, {psnr(image.noisy, image.clean):.1f} dB": image.noisy}
    for name in (UPSTREAM, OURS):
        panels[f"{name}\n{estimates[name].seconds:.1f} s, {psnrs[name]}"] = estimates[name].mean
    panels["clean, seen by none"] = image.clean
    spread = estimates[OURS].std.numpy()
    with rc_context(STYLE):
        figure = Figure(figsize=(20, 5), facecolor="white", layout="constrained")
        size = " x ".join(map(str, spread.shape))
        figure.suptitle(f"Mean of {samples} predictions, {size} pixels in overlapping tiles", size=14)
        cells = figure.subplots(1, len(panels) + 1)
        for axes, (title, picture) in zip(cells, panels.items(), strict=False):
            grey = axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title)
        figure.colorbar(grey, ax=cells[len(panels) - 1], shrink=0.75, label="grey level")
        # One percent saturates: a few pixels would else leave the rest dark.
        shown = cells[-1].imshow(spread, cmap="magma", vmin=0, vmax=np.quantile(spread, 0.99))
        cells[-1].set_title("standard deviation\nof predict_mmse's samples")
        figure.colorbar(shown, ax=cells[-1], shrink=0.75, label="grey level")
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        figure.savefig(path, dpi=150)
