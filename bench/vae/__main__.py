"""`python -m bench.vae`: train a small VDVAE on faces twice, in plain PyTorch and on the functions, and compare.

Weights, images and random numbers are the same; the two take turns step by step. Prints losses and times, and draws
reconstructions and samples of both. How far a rounding error alone takes the losses apart, a control shows.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench import cli
from bench.measure.timing import take_turns
from bench.vae.model import SIDE, Fused, Ladder, Plain, StochasticStep

SEED = 0
LEARNING_RATE = 1e-3
SHOWN = 10
# The control is the plain version with every weight off by one rounding error.
PLAIN, FUSED, CONTROL = "plain PyTorch", "ladder_kernels", "control"
STEPS: dict[str, Callable[[], StochasticStep]] = {PLAIN: Plain, FUSED: Fused, CONTROL: Plain}
FIGURE = "vae.png"


class Run(NamedTuple):
    """What the training of one version gave."""

    model: Ladder
    losses: list[float]
    """Nats per pixel, a step after the other."""
    seconds: list[float]


def load_faces() -> Tensor:
    """The faces (100, 1, 24, 24) of scikit-image's subset of Labeled Faces in the Wild, with mean 0 and std 1."""
    from skimage.data import lfw_subset

    faces = torch.from_numpy(lfw_subset()[:100, None, :SIDE, :SIDE]).float()
    return (faces - faces.mean()) / faces.std()


def random_faces(faces: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """A batch of faces, half of them mirrored."""
    chosen = faces[torch.randint(len(faces), (batch,), generator=generator)]
    mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, chosen.flip(-1), chosen)


def train(faces: Tensor, steps: int, batch: int, device: torch.device) -> dict[str, Run]:
    """Trains both versions and the control, which take turns: a busy machine slows all."""
    runs = {name: Run(_new_model(step(), device), [], []) for name, step in STEPS.items()}
    with torch.no_grad():
        for parameter in runs[CONTROL].model.parameters():
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    generator = torch.Generator().manual_seed(SEED)
    batches = (random_faces(faces, batch, generator).to(device) for _ in range(steps))
    with tqdm(total=steps, disable=None) as bar:
        updates = {name: _update(run.model) for name, run in runs.items()}
        for turn in take_turns(updates, batches, device, prepare=lambda name, _: _seed(len(runs[name].losses))):
            runs[turn.name].losses.append(turn.result.item())
            runs[turn.name].seconds.append(turn.seconds)
            if turn.name == FUSED:
                bar.set_postfix_str(f"loss {runs[FUSED].losses[-1]:.4f}", refresh=False)
                bar.update()
    return runs


def _new_model(step: StochasticStep, device: torch.device) -> Ladder:
    torch.manual_seed(SEED)
    return Ladder(step).to(device)


def _seed(count: int) -> None:
    """The same random numbers for all in each step."""
    torch.manual_seed(SEED + 1 + count)


def _update(model: Ladder) -> Callable[[Tensor], Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def update(images: Tensor) -> Tensor:
        optimizer.zero_grad()
        _, surprise, kls = model(images)
        loss = (surprise + kls.sum(0)).mean() / SIDE**2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return update


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
