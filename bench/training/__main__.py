"""`python -m bench.training`: steps per second of the real CAREamics LadderVAE, with upstream's blocks and with ours.

Training and prediction; eager, compiled, and captured as a CUDA graph; in every precision that CAREamics offers. The
variants take turns step by step. Writes a CSV, and the losses beside it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import INTERRUPTED

if TYPE_CHECKING:
    from torch import Tensor

    from bench.training.run import Settings

# Read by torch when it is loaded. Counting the CPU's memory else prints an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# Batch and rounds. On a GPU the batch is CAREamics' default.
GPU, CPU = (32, 100), (4, 30)
GPU_QUICK, CPU_QUICK = (32, 20), (2, 7)
IMAGE_SIDE = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    try:
        return _train(arguments)
    except KeyboardInterrupt:
        print("interrupted before the benchmark began", file=sys.stderr)
        return INTERRUPTED


def _train(arguments: Sequence[str] | None) -> int:
    # Imported here: torch and CAREamics take seconds to load, and Ctrl-C must not end in a traceback then either.
    from bench.measure import run_info
    from bench.report.results import losses_path
    from bench.training import rows as train_rows
    from bench.training import run as train_run

    settings, results = _parse(arguments)
    start = time.perf_counter()
    common = {"batch": settings.batch, "patch": settings.patch, **run_info.environment(settings.device)}
    table = train_rows.Table(results, common)
    print(f"CAREamics LadderVAE, {settings.batch} x {settings.patch} x {settings.patch}, on {common['device']}")
    try:
        train_run.measure(settings, _patches(settings), table)
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {results}", file=sys.stderr)
        return INTERRUPTED
    print(f"{time.perf_counter() - start:.0f} s; written: {results}, {losses_path(results)}")
    print(f"the figures: python -m bench.report.plots {results}")
    return 0


def _patches(settings: "Settings") -> Callable[[int], "Tensor"]:
    """A function that gives the random patches of step number n: the same for every variant and precision."""
    import torch

    from bench.training.micrograph import random_patches

    image = _image()

    def patches(count: int) -> "Tensor":
        generator = torch.Generator().manual_seed(count)
        return random_patches(image, settings.patch, settings.batch, generator).to(settings.device)

    return patches


def _image() -> "Tensor":
    """The demo's micrograph; where scikit-image, which has it, is not installed, smoothed noise of its size."""
    import torch

    from bench.training.micrograph import NOISE_STD, load_micrograph

    try:
        return load_micrograph().normalised()
    except ImportError:
        print("scikit-image is not installed: smoothed noise takes the place of its micrograph", flush=True)
    noise = torch.randn(1, 1, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 9, stride=1, padding=4)
    return (smooth / smooth.std() + NOISE_STD * noise)[0, 0]


def _parse(arguments: Sequence[str] | None) -> tuple["Settings", Path]:
    from bench import cli
    from bench.careamics import PATCH_MULTIPLE
    from bench.measure import run_info
    from bench.training import run as train_run
    from bench.training import steps as train_steps

    parser = cli.Parser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled")
    parser.add_argument("--batch", type=cli.positive_int, help="patches per step (GPU 32, CPU 4, quick 2)")
    parser.add_argument("--patch", type=cli.positive_int, default=64, help="side of a patch in pixels (64)")
    parser.add_argument("--rounds", type=cli.positive_int, help="timed steps (GPU 100, quick 20; CPU 30, quick 7)")
    parser.add_argument(
        "--precision", choices=train_steps.PRECISIONS, action="append", help="repeatable; default: all that run there"
    )
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--results", type=Path, help="the CSV (bench/results/<machine>-<date>-train.csv)")
    options = parser.parse_args(arguments)
    if options.patch % PATCH_MULTIPLE:
        parser.error(
            f"argument --patch: must be a multiple of {PATCH_MULTIPLE}, or upstream's block cannot train; "
            f"got {options.patch}"
        )
    if options.patch > IMAGE_SIDE:
        parser.error(f"argument --patch: does not fit in the image, whose side is {IMAGE_SIDE}; got {options.patch}")
    results = options.results or run_info.default_path(options.device, quick=options.quick, suffix="-train")
    _check_writable(parser, results)
    on_gpu = options.device.type != "cpu"
    quick, full = (GPU_QUICK, GPU) if on_gpu else (CPU_QUICK, CPU)
    batch, rounds = quick if options.quick else full
    settings = train_run.Settings(
        device=options.device,
        batch=options.batch or batch,
        patch=options.patch,
        rounds=options.rounds or rounds,
        precisions=options.precision or train_steps.precisions_of(options.device),
        variants=train_steps.VARIANTS,
        compiled=() if options.quick else _compiled(on_gpu),
    )
    return settings, results


def _compiled(on_gpu: bool) -> Sequence[str]:
    """The precisions to compile in: every model takes tens of seconds to compile on a GPU, minutes on a CPU."""
    from bench.training.steps import FP32, PRECISIONS

    return PRECISIONS if on_gpu else (FP32,)


def _check_writable(parser: argparse.ArgumentParser, results: Path) -> None:
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --results: cannot make the folder {results.parent}: {error.strerror}")
    if results.suffix != ".csv" or results.is_dir():
        parser.error(f"argument --results: must be a .csv file, got {results}")
    if not os.access(results if results.exists() else results.parent, os.W_OK):
        parser.error(f"argument --results: cannot write {results}")


if __name__ == "__main__":
    sys.exit(main())
