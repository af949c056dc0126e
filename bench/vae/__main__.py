"""`python -m bench.vae`: train a small VDVAE on faces twice, in plain PyTorch and on the functions, and compare.

Weights, images and random numbers are the same; the two take turns step by step. Prints losses and times, and draws
reconstructions and samples of both. How far a rounding error alone takes the losses apart, a control shows.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.vae.run import FUSED, PLAIN, Run, load_faces, train

SHOWN = 10
FIGURE = "vae.png"


def summary(runs: dict[str, Run]) -> str:
    """Losses and times side by side."""
    times = {name: 1e3 * statistics.median(run.seconds) for name, run in runs.items()}
    lines = [
        f"nats per pixel {'first loss':>14}{'last loss':>14}{'step, median':>16}{'from plain PyTorch, at most':>30}"
    ]
    for name, run in runs.items():
        apart = max(abs(one - other) for one, other in zip(run.losses, runs[PLAIN].losses, strict=True))
        lines.append(f"{name:15}{run.losses[0]:14.6f}{run.losses[-1]:14.6f}{times[name]:13.1f} ms{apart:30.1e}")
    parameters = sum(parameter.numel() for parameter in runs[PLAIN].model.parameters())
    ratio = times[PLAIN] / times[FUSED]
    lines.append(f"control: plain PyTorch, weights off by a rounding error; {parameters} parameters")
    lines.append(f"the whole step, convolutions and optimizer included: plain PyTorch's time over ours is {ratio:.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and compare; returns the exit code."""
    parser = cli.Parser(prog="python -m bench.vae", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=cli.positive_int, default=300, help="training steps of each (300)")
    parser.add_argument("--batch", type=cli.positive_int, default=16, help="images per step (16)")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--out", type=Path, default=Path("out/vae"), help="folder for the figure (out/vae)")
    options = parser.parse_args(arguments)
    cli.check_folder(parser, "--out", options.out)
    from bench.vae.figure import draw  # matplotlib takes a second

    faces = load_faces()
    try:
        runs = train(faces, options.steps, options.batch, options.device)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return cli.INTERRUPTED
    print(summary(runs))
    shown = {name: runs[name] for name in (PLAIN, FUSED)}
    draw(shown, faces[:SHOWN].to(options.device), options.out / FIGURE)
    print(f"written: {options.out / FIGURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
