"""What `python -m bench.mmse` measures: images of several sizes, the largest in tiles, and a noisy micrograph."""

import functools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench.measure.memory import peak_bytes
from bench.measure.run_info import environment
from bench.measure.timing import take_turns
from bench.mmse.tiles import tiles
from bench.mmse.ways import OURS, OVERLAP, PATCHED, TILE, UPSTREAM, Way, build, ways
from bench.report.results import COLUMNS, MMSE, Table, rounded
from bench.training.micrograph import NOISE_STD, Micrograph, load_micrograph, random_patches
from bench.training.steps import Training
from ladder_kernels.predict import default_batch

PATCH = 64
# The image's model: a quarter of the default's weights, so that the whole takes minutes on two cores.
SMALL = {"z_dims": [32] * 4, "encoder_n_filters": 32, "decoder_n_filters": 32}


class Effort(NamedTuple):
    """How much is measured: the samples, the rounds of each size of image, the micrograph's samples and training."""

    samples: int = 16
    rounds: tuple[tuple[int, int], ...] = ((64, 5), (256, 2), (1024, 1))
    image_samples: int = 8
    steps: int = 100
    mirrored: bool = True


QUICK = Effort(samples=4, rounds=((64, 3),), image_samples=2, steps=20, mirrored=False)


class Estimate(NamedTuple):
    """The MMSE image (H, W), the standard deviation of its samples, both in the image's units, and what it took."""

    mean: Tensor
    std: Tensor
    seconds: float


def time_images(effort: Effort, device: torch.device, results: Path) -> Iterator[dict[str, Any]]:
    """Every way on an image of each size, with the default model; each row is yielded once it is in the table."""
    table, machine = Table(results, COLUMNS[MMSE]), environment(device)
    for side, rounds in effort.rounds:
        x = torch.randn(1, 1, side, side, device=device)
        runs = ways(lambda: build({}, PATCH).to(device), side)
        if side > TILE:  # minutes, which tell nothing that one tile does not
            del runs[PATCHED]
        seconds, cpu = _times(runs, x, effort.samples, rounds)
        for name, way in runs.items():
            # Of memory two samples tell as much, if one is no batch.
            peak = peak_bytes(functools.partial(way, x, samples=2 if side > TILE else effort.samples), device)
            row = {
                "way": name,
                "side": side,
                "samples": effort.samples,
                "batch": default_batch((min(side, TILE),) * 2, device) if name == OURS else 1,
                "rounds": rounds,
                "median_s": rounded(statistics.median(seconds[name])),
                "min_s": rounded(min(seconds[name])),
                "cpu_s": rounded(statistics.median(cpu[name])),
                "upstream_over_this": rounded(statistics.median(seconds[UPSTREAM]) / statistics.median(seconds[name])),
                "peak_mib": None if peak is None else rounded(peak / 2**20),
            }
            table.add(row | machine)
            yield row
    table.done()


def _times(
    runs: dict[str, Way], x: Tensor, samples: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds by name, on the clock and of the CPU, taking turns, after two samples of each that warm up."""

    def cpu_seconds(way: Way, count: int) -> float:
        start = time.process_time()
        way(x, samples=count)
        return time.process_time() - start

    calls = {name: functools.partial(cpu_seconds, way) for name, way in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for place, turn in enumerate(take_turns(calls, [2, *[samples] * rounds], x.device)):
        if place >= len(runs):
            seconds[turn.name].append(turn.seconds)
            cpu[turn.name].append(turn.result)
    return seconds, cpu


def micrograph(effort: Effort) -> Micrograph:
    """The demo's micrograph (512, 512), or (1024, 1024) with its mirror images around a corner; noise of its own."""
    clean = load_micrograph().clean
    if effort.mirrored:
        clean = torch.cat([clean, clean.flip(0)], 0)
        clean = torch.cat([clean, clean.flip(1)], 1)
    generator = torch.Generator().manual_seed(0)
    return Micrograph(clean, clean + NOISE_STD * torch.randn(clean.shape, generator=generator))


def denoise(image: Micrograph, effort: Effort, device: torch.device) -> dict[str, Estimate]:
    """Train the small model, then upstream's loop and ours on the whole image, with other noise."""
    weights = _trained(image, effort.steps, device).state_dict()

    def make_model() -> Any:
        model = build(SMALL, PATCH).to(device)
        model.load_state_dict(weights)
        return model

    x, scale = image.normalised()[None, None].to(device), image.noisy.std()
    both = {name: way for name, way in ways(make_model, max(x.shape)).items() if name in (UPSTREAM, OURS)}
    calls = {name: functools.partial(way, samples=effort.image_samples) for name, way in both.items()}
    torch.manual_seed(0)
    found = {}
    for turn in take_turns(calls, [x], device):
        mean, std = (each[0, 0].cpu() for each in turn.result)
        found[turn.name] = Estimate(image.restored(mean), std * scale, turn.seconds)
    return found


def jump_across_cuts(image: Tensor) -> float:
    """How much neighbouring pixels of an image (H, W) differ where upstream's loop cuts tiles, relative to all."""
    ratios = []
    for dim, size in enumerate(image.shape):
        cuts = [tile.kept[0].start - 1 for tile in tiles(size, TILE, TILE, OVERLAP) if tile.kept[0].start > 0]
        steps = image.diff(dim=dim).abs()
        if cuts:
            ratios.append(steps.index_select(dim, torch.tensor(cuts)).mean() / steps.mean())
    return torch.stack(ratios).mean().item() if ratios else 1.0


def _trained(image: Micrograph, steps: int, device: torch.device) -> Any:
    model, normalised = build(SMALL, PATCH).to(device), image.normalised()
    train, generator = Training(model, steps=steps), torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), desc="training", disable=None):
        train(random_patches(normalised, PATCH, 2, generator).to(device))
    return model


def difference(first: Estimate, second: Estimate, samples: int) -> tuple[float, float]:
    """Root mean square of the difference of two means of so many samples, and what Monte Carlo makes one expect."""
    found = (first.mean - second.mean).square().mean().sqrt().item()
    expected = ((first.std.square() + second.std.square()) / samples).mean().sqrt().item()
    return found, expected
