"""`python -m bench.mmse`: the mean of many predictions, upstream's loop beside `predict_mmse`.

Times images of several sizes with the default LadderVAE, the largest in overlapping tiles, then denoises a micrograph
with a small one that it trains before; writes a table and mmse.png, the standard deviation's map in it.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Read by torch when it is loaded. Counting the CPU's memory else prints an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from bench import cli
from bench.measure.run_info import default_path, device_name
from bench.mmse.figure import draw
from bench.mmse.run import QUICK, Effort, denoise, difference, jump_across_cuts, micrograph, time_images
from bench.mmse.ways import OURS, UPSTREAM
from bench.report.results import MMSE

FIGURE = "mmse.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    start = time.perf_counter()
    parser = cli.Parser(prog="python -m bench.mmse", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, few samples, a quarter of the micrograph")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--out", type=Path, default=Path("out/mmse"), help="folder for the figure (out/mmse)")
    parser.add_argument("--results", type=Path, help=f"the CSV (bench/results/<machine>-<date>{MMSE}.csv)")
    options = parser.parse_args(arguments)
    results = options.results or default_path(options.device, MMSE, quick=options.quick)
    cli.check_folder(parser, "--out", options.out)
    cli.check_folder(parser, "--results", results.parent)
    effort = QUICK if options.quick else Effort()
    try:
        print(
            f"{effort.samples} predictions of an image, default LadderVAE, on {device_name(options.device)}", flush=True
        )
        for row in time_images(effort, options.device, results):
            print(_line(row), flush=True)
        image = micrograph(effort)
        estimates = denoise(image, effort, options.device)
    except KeyboardInterrupt:
        print("interrupted; the rows so far lie in out/bench, or where --results says", file=sys.stderr)
        return cli.INTERRUPTED
    draw(image, estimates, effort.image_samples, options.out / FIGURE)
    ours, upstream = estimates[OURS], estimates[UPSTREAM]
    found, expected = difference(upstream, ours, effort.image_samples)
    size = " x ".join(map(str, image.clean.shape))
    print(f"\n{size} pixels, {effort.image_samples} predictions, overlapping tiles, a small LadderVAE:")
    print(f"upstream's loop {upstream.seconds:.1f} s, predict_mmse {ours.seconds:.1f} s")
    print(f"the two images differ by {found:.4f} (root mean square); two Monte-Carlo means should by {expected:.4f}")
    for what in ("mean", "std"):
        jumps = ", ".join(f"{name} {jump_across_cuts(getattr(each, what)):.2f}" for name, each in estimates.items())
        print(f"{what}: neighbours across the cuts of upstream's tiles differ by this much of what all do: {jumps}")
    print(f"{time.perf_counter() - start:.0f} s; written: {results}, {options.out / FIGURE}")
    return 0


def _line(row: dict) -> str:
    peak = "" if row["peak_mib"] is None else f", peak {row['peak_mib']:.4g} MiB"
    times = f"{row['median_s']:.3f} s (CPU {row['cpu_s']:.3f} s), {row['upstream_over_this']:.2f}x"
    return f"{row['side']:4} x {row['side']:<4} {row['way']:26} {times}{peak}"


if __name__ == "__main__":
    sys.exit(main())
