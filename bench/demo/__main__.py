"""`python -m bench.demo`: train the real CAREamics LadderVAE with its own blocks and with ours, and compare.

Everything but the stochastic blocks is the same: weights, patches, random numbers. Prints a table and writes
demo.png and summary.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.careamics import PATCH_MULTIPLE
from bench.demo.figure import draw
from bench.demo.run import SEED, run
from bench.demo.table import console_table
from bench.measure.run_info import device_name
from bench.training.micrograph import SIDE, load_micrograph
from bench.training.steps import DivergedError

FIGURE, SUMMARY = "demo.png", "summary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    start, options = time.perf_counter(), _parse(arguments)
    settings = {name: getattr(options, name) for name in ("steps", "batch", "patch", "analytical_kl")}
    for name in (FIGURE, SUMMARY):  # or an earlier run's would be taken for this one's
        (options.out / name).unlink(missing_ok=True)
    print(f"CAREamics LadderVAE in its default architecture, HDN training, on {device_name(options.device)}")
    print(f"{options.steps} steps each, taking turns: upstream's block, ladder_kernels' block, and as a control")
    print("upstream's with weights off by one rounding error", flush=True)
    try:
        findings = run(settings, load_micrograph(SEED), options.device)
    except DivergedError as error:
        print(error, file=sys.stderr)
        return 1
    draw(findings, options.out / FIGURE)
    (options.out / SUMMARY).write_text(json.dumps(findings.summary(), indent=2) + "\n")
    print(f"\n{console_table(findings)}\n")
    print(f"{time.perf_counter() - start:.0f} s; written: {options.out / FIGURE}, {options.out / SUMMARY}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--steps", type=cli.positive_int, default=150, help="training steps of each model (150)")
    parser.add_argument("--batch", type=cli.positive_int, default=2, help="patches per step (2)")
    parser.add_argument("--patch", type=cli.positive_int, default=64, help="side of a patch in pixels (64)")
    cli.add_device(parser)
    parser.add_argument("--analytical-kl", action="store_true", help="KL in closed form instead of Monte Carlo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (out/demo)")
    options = parser.parse_args(arguments)
    cli.check_patch(parser, options.patch, PATCH_MULTIPLE, SIDE)
    cli.check_folder(parser, "--out", options.out)
    return options


if __name__ == "__main__":
    cli.run(main)
