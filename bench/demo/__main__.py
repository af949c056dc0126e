"""`python -m bench.demo`: train the real CAREamics LadderVAE with its own blocks and with ours, and compare.

Everything but the stochastic blocks is the same: weights, patches, random numbers. Prints a table and writes
demo.png and summary.json.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import INTERRUPTED

if TYPE_CHECKING:
    from bench.demo.findings import Findings

FIGURE, SUMMARY = "demo.png", "summary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    try:
        return _demo(arguments)
    except KeyboardInterrupt:
        print("interrupted before the demo began", file=sys.stderr)
        return INTERRUPTED


def _demo(arguments: Sequence[str] | None) -> int:
    # Imported here: torch and CAREamics take seconds to load, and Ctrl-C must not end in a traceback then either.
    from bench.demo import run as demo_run
    from bench.demo import table as demo_table
    from bench.training import micrograph
    from bench.training.trainer import DivergedError

    start = time.perf_counter()
    image = micrograph.load_micrograph(demo_run.SEED)
    options = _parse(arguments, min(image.clean.shape))
    settings = {name: getattr(options, name) for name in ("steps", "batch", "patch", "analytical_kl")}
    findings = demo_run.new_findings(settings, options.device)
    # At once, so that an earlier run's summary is never taken for this one's.
    findings.write_summary(options.out / SUMMARY)
    print(f"CAREamics LadderVAE in its default architecture, HDN training, on {findings.environment['device']}")
    print(f"{options.steps} steps each, taking turns: upstream's block, ladder_kernels' block, and as a control")
    print("upstream's with weights off by one rounding error", flush=True)
    try:
        demo_run.run(findings, image, options.device)
        _write(findings, options.out, complete=True)
    except (KeyboardInterrupt, DivergedError) as error:
        with contextlib.suppress(KeyboardInterrupt):  # somebody who presses it twice means it
            _write(findings, options.out, complete=False)
        cause, done = str(error) or "interrupted", len(findings.losses()["upstream"])
        print(f"{cause} after {done} of {options.steps} steps; what there is lies in {options.out}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    print(f"\n{demo_table.console_table(findings)}\n")
    print(f"{time.perf_counter() - start:.0f} s; written: {options.out / FIGURE}, {options.out / SUMMARY}")
    return 0


def _write(findings: "Findings", out: Path, *, complete: bool) -> None:
    """The summary and the figure; the summary says complete only when the figure lies beside it."""
    from bench.demo import figure as demo_figure

    findings.complete = False
    findings.write_summary(out / SUMMARY)
    demo_figure.draw(findings, out / FIGURE)
    findings.complete = complete
    findings.write_summary(out / SUMMARY)


def _parse(arguments: Sequence[str] | None, image_side: int) -> argparse.Namespace:
    from bench import cli
    from bench.careamics import PATCH_MULTIPLE

    parser = cli.Parser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--steps", type=cli.positive_int, default=150, help="training steps of each model (150)")
    parser.add_argument("--batch", type=cli.positive_int, default=2, help="patches per step (2)")
    parser.add_argument("--patch", type=cli.positive_int, default=64, help="side of a patch in pixels (64)")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--analytical-kl", action="store_true", help="KL in closed form instead of Monte Carlo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (out/demo)")
    options = parser.parse_args(arguments)
    if options.patch % PATCH_MULTIPLE:
        parser.error(
            f"argument --patch: must be a multiple of {PATCH_MULTIPLE}, or upstream's block cannot train; "
            f"got {options.patch}"
        )
    if options.patch > image_side:
        parser.error(f"argument --patch: does not fit in the image, whose side is {image_side}; got {options.patch}")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder {options.out}: {error.strerror}")
    if not os.access(options.out, os.W_OK):
        parser.error(f"argument --out: cannot write to the folder {options.out}")
    return options


if __name__ == "__main__":
    sys.exit(main())
