"""`python -m bench.mmse`: time and memory of the mean of many predictions, CAREamics' loop and `predict_mmse`.

The default LadderVAE predicts noise of several sizes. An image larger than a tile is cut by all into the same tiles.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

# Read by torch when it is loaded. Counting the CPU's memory else prints an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import Tensor

from bench import cli
from bench.careamics import build_model, mmse_loop
from bench.measure.memory import mebibytes, peak_bytes
from bench.measure.run_info import environment
from bench.measure.timing import quantile, seconds_by_name, take_turns
from bench.report.results import COLUMNS, MMSE, Table, rounded
from ladder_kernels import patch_model, predict_mmse
from ladder_kernels.images import plan

PATCHED = "upstream's loop, patched"
PATCH = 64  # what the model is built for
TILE = 256  # a larger image is cut
ROUNDS, QUICK_ROUNDS = {64: 5, 256: 2, 1024: 1}, {64: 3, 448: 1}  # by the image's side
SAMPLES, QUICK_SAMPLES = 16, 4
FEW = 2  # samples: enough to warm up, and as good as more for the memory of a large image, where none share a batch


def ways(device: torch.device) -> dict[str, Callable[[Tensor, int], Any]]:
    """By name, who gives mean and standard deviation (1, 1, H, W) of so many predictions of an image (1, 1, H, W)."""
    upstream, patched = (build_model(PATCH).to(device) for _ in range(2))
    patch_model(patched)
    return {
        "upstream's loop": partial(tiled_loop, upstream),
        PATCHED: partial(tiled_loop, patched),
        "predict_mmse": partial(predict_mmse, patched),
    }


def tiled_loop(model: Any, image: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """CAREamics' loop for one tile after the other."""
    tiling = plan(image, model, None, None)
    model.reset_for_inference(tiling.sides)
    found = torch.zeros_like(image), torch.zeros_like(image)
    for tile in tiling.tiles:
        for whole, part in zip(found, mmse_loop(model, tiling.cut(image, 0, tile), samples=samples), strict=True):
            tile.add_to(whole[0], part[0])
    return found


def measure(side: int, samples: int, rounds: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for every way."""
    image, who = torch.randn(1, 1, side, side, device=device), ways(device)
    if side > TILE:  # minutes, which tell nothing that one tile does not
        del who[PATCHED]
    runs = {name: partial(way, image) for name, way in who.items()}
    seconds = seconds_by_name(take_turns(runs, [FEW, *[samples] * rounds], device))
    for name, run in runs.items():
        peak = peak_bytes(partial(run, samples if side <= TILE else FEW), device)
        times = {"rounds": rounds, "median_s": rounded(quantile(seconds[name][1:], 0.5))}
        yield {"way": name, "side": side, "samples": samples, **times, "peak_mib": mebibytes(peak)}


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m bench.mmse", description=__doc__.splitlines()[0])
    cli.add_device(parser)
    options = cli.table_options(parser, arguments, MMSE, quick="few samples, smaller images")
    table, machine = Table(options.results, COLUMNS[MMSE]), environment(options.device)
    samples = QUICK_SAMPLES if options.quick else SAMPLES
    print(f"{samples} predictions of an image, default LadderVAE, on {machine['device']}", flush=True)
    for side, rounds in (QUICK_ROUNDS if options.quick else ROUNDS).items():
        for row in measure(side, samples, rounds, options.device):
            table.add(row | machine)
            print(f"{side:4} x {side:<4} {row['way']:24} {row['median_s']} s, peak {row['peak_mib']} MiB", flush=True)
    table.done()
    print(f"written: {table.path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
