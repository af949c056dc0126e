"""The figure of `python -m bench.mmse`: the noisy micrograph, both MMSE images, and the spread of the samples."""

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
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    panels: list[tuple[str, Tensor, dict]] = [
        (f"noisy, {psnr(image.noisy, image.clean):.1f} dB", image.noisy, grey),
        *(
            (f"{name}: {each.seconds:.1f} s, {psnr(each.mean, image.clean):.1f} dB", each.mean, grey)
            for name, each in ((name, estimates[name]) for name in (UPSTREAM, OURS))
        ),
    ]
    spread = estimates[OURS].std
    with rc_context(STYLE):
        figure = Figure(figsize=(20, 5.6), facecolor="white", layout="constrained")
        figure.suptitle(
            f"MMSE of {samples} predictions in overlapping tiles, {' x '.join(map(str, spread.shape))} pixels"
        )
        cells = figure.subplots(1, len(panels) + 1)
        for axes, (title, picture, look) in zip(cells, panels, strict=False):
            axes.imshow(picture.numpy(), **look)
            axes.set_title(title)
        # One percent saturates: a few pixels would else leave the rest dark.
        shown = cells[-1].imshow(spread.numpy(), cmap="magma", vmin=0, vmax=np.quantile(spread.numpy(), 0.99))
        cells[-1].set_title("standard deviation of a pixel's samples")
        figure.colorbar(shown, ax=cells[-1], shrink=0.8)
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        figure.savefig(path, dpi=150)
