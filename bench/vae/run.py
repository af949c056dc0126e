"""The example's training: plain PyTorch, the functions, and as a control plain PyTorch from one rounding error off.

Weights, images and random numbers are the same; all take turns step by step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench.measure.timing import take_turns
from bench.vae.model import SIDE, Fused, Ladder, Plain, StochasticStep

SEED = 0
LEARNING_RATE = 1e-3
# The control is the plain version with every weight off by one rounding error.
PLAIN, FUSED, CONTROL = "plain PyTorch", "ladder_kernels", "control"
STEPS: dict[str, Callable[[], StochasticStep]] = {PLAIN: Plain, FUSED: Fused, CONTROL: Plain}


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
