"""`python -m bench.training`: the time of a step of the real CAREamics LadderVAE, with upstream's blocks and with ours.

Training and prediction; eager, compiled, and captured as a CUDA graph. The variants take turns step by step.
"""

import os
from collections.abc import Sequence

# Read by torch when it is loaded. Counting the CPU's memory else prints an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from bench import cli
from bench.careamics import PATCH_MULTIPLE
from bench.measure.run_info import environment
from bench.report.results import COLUMNS, TRAINING, Table
from bench.training.micrograph import SIDE, load_micrograph
from bench.training.run import Settings, measure
from bench.training.steps import FP32, PRECISIONS

# Batch and rounds, on a GPU or not, and with --quick. On a GPU the batch is CAREamics' default.
EFFORTS = {(True, False): (32, 100), (True, True): (32, 20), (False, False): (4, 30), (False, True): (2, 7)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = cli.Parser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=cli.positive_int, help="patches per step (GPU 32, CPU 4, quick 2)")
    parser.add_argument("--patch", type=cli.positive_int, default=64, help="side of a patch in pixels (64)")
    parser.add_argument("--rounds", type=cli.positive_int, help="timed steps (GPU 100, quick 20; CPU 30, quick 7)")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="repeatable; default: all that run")
    cli.add_device(parser)
    options = cli.table_options(parser, arguments, TRAINING, quick="few rounds, nothing compiled")
    cli.check_patch(parser, options.patch, PATCH_MULTIPLE, SIDE)
    on_gpu = options.device.type != "cpu"
    batch, rounds = EFFORTS[on_gpu, options.quick]
    # A model takes tens of seconds to compile on a GPU, minutes on a CPU.
    compiled = () if options.quick else PRECISIONS if on_gpu else (FP32,)
    sizes = (options.batch or batch, options.patch, options.rounds or rounds)
    settings = Settings(options.device, *sizes, options.precision or PRECISIONS, compiled)
    machine, table = environment(options.device), Table(options.results, COLUMNS[TRAINING])
    print(f"CAREamics LadderVAE, {settings.batch} x {settings.patch} x {settings.patch}, on {machine['device']}")
    measure(settings, load_micrograph().normalised(), lambda row: table.add(row | machine))
    table.done()
    print(f"written: {table.path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
