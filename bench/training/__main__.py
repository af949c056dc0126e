"""`python -m bench.training`: steps per second of the real CAREamics LadderVAE, with upstream's blocks and with ours.

Training and prediction; eager, compiled, and captured as a CUDA graph. The variants take turns step by step.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Read by torch when it is loaded. Counting the CPU's memory else prints an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from bench import cli
from bench.careamics import PATCH_MULTIPLE
from bench.measure.run_info import default_path, environment
from bench.report.results import COLUMNS, TRAINING, Table
from bench.training.micrograph import SIDE, load_micrograph
from bench.training.run import Settings, measure
from bench.training.steps import FP32, PRECISIONS

# Batch and rounds, on a GPU or not, and with --quick. On a GPU the batch is CAREamics' default.
EFFORTS = {(True, False): (32, 100), (True, True): (32, 20), (False, False): (4, 30), (False, True): (2, 7)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    settings, results = _parse(arguments)
    start, machine = time.perf_counter(), environment(settings.device)
    table = Table(results, COLUMNS[TRAINING])
    print(f"CAREamics LadderVAE, {settings.batch} x {settings.patch} x {settings.patch}, on {machine['device']}")
    try:
        measure(settings, load_micrograph().normalised(), table, machine)
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {table.path}", file=sys.stderr)
        return cli.INTERRUPTED
    table.done()
    print(f"{time.perf_counter() - start:.0f} s; written: {table.path}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[Settings, Path]:
    parser = cli.Parser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled")
    parser.add_argument("--batch", type=cli.positive_int, help="patches per step (GPU 32, CPU 4, quick 2)")
    parser.add_argument("--patch", type=cli.positive_int, default=64, help="side of a patch in pixels (64)")
    parser.add_argument("--rounds", type=cli.positive_int, help="timed steps (GPU 100, quick 20; CPU 30, quick 7)")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="repeatable; default: all that run")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--results", type=Path, help="the CSV (bench/results/<machine>-<date>-train.csv)")
    options = parser.parse_args(arguments)
    cli.check_patch(parser, options.patch, PATCH_MULTIPLE, SIDE)
    results = options.results or default_path(options.device, TRAINING, quick=options.quick)
    cli.check_folder(parser, "--results", results.parent)
    on_gpu = options.device.type != "cpu"
    batch, rounds = EFFORTS[on_gpu, options.quick]
    # A model takes tens of seconds to compile on a GPU, minutes on a CPU.
    compiled = () if options.quick else PRECISIONS if on_gpu else (FP32,)
    precisions = options.precision or PRECISIONS
    sizes = (options.batch or batch, options.patch, options.rounds or rounds)
    return Settings(options.device, *sizes, precisions, compiled), results


if __name__ == "__main__":
    sys.exit(main())
