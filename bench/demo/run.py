"""The demo's measurements: the same model trained with either block, its blocks measured, a micrograph denoised."""

from dataclasses import dataclass, field
from typing import Any

import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from tqdm import tqdm

from bench import careamics
from bench.demo.block import block_costs
from bench.measure.run_info import environment
from bench.measure.timing import quantile, take_turns
from bench.training import micrograph
from bench.training.steps import Training
from ladder_kernels import patch_model
from ladder_kernels.backends import select

UPSTREAM, OURS = "upstream", "ladder_kernels"
NAMES = (UPSTREAM, OURS)
# Upstream's model once more, its weights off by a rounding error: how far rounding alone drives a training apart.
CONTROL = "control"

SEED = 0
# The first steps allocate memory and choose kernels: their times do not count.
WARM_UP_STEPS = 5
# The part to show: a gland cut across, next to connective tissue.
SHOWN = slice(214, 406)
PREDICTIONS = 16
BLOCK_ROUNDS = 30


@dataclass
class Findings:
    """Settings and measurements, of upstream's model, of ours and of the control by name."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    losses: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*NAMES, CONTROL)})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*NAMES, CONTROL)})
    block_latent: tuple[int, ...] = ()
    block: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    psnr_db: dict[str, float] = field(default_factory=dict)

    def step_ms(self) -> dict[str, float]:
        """The median time of a step after the warm-up, or of all where there are no more."""
        return {name: 1e3 * quantile(self.seconds[name][WARM_UP_STEPS:] or self.seconds[name], 0.5) for name in NAMES}

    def differences(self) -> dict[str, list[float]]:
        """How far our loss and the control's are from upstream's at every step, relative to upstream's."""
        return {
            name: [abs(x - y) / abs(y) for x, y in zip(self.losses[name], self.losses[UPSTREAM], strict=True)]
            for name in (OURS, CONTROL)
        }

    def summary(self) -> dict[str, Any]:
        """All but the images, as plain values."""
        figures = {"median_step_ms": self.step_ms(), "relative_loss_differences": self.differences()}
        return figures | {name: value for name, value in vars(self).items() if name != "images"}


def run(settings: dict[str, Any], image: micrograph.Micrograph, device: torch.device) -> Findings:
    """Train the models, measure their blocks, denoise with both. `settings`: steps, batch, patch, analytical_kl.

    Raises DivergedError where a loss is NaN.
    """
    if device.type == "cuda":
        # Else cuDNN may sum in another order every time, and no two runs of one model agree.
        torch.backends.cudnn.deterministic = True
    q = torch.zeros(1, 2, 1, 1, device=device)
    findings = Findings(settings, environment(device) | {"backend": select.serving(q, q)})
    models = build_models(settings["patch"], settings["analytical_kl"], device)
    _train(findings, models, image, device)
    print("measuring one stochastic block of each ...", flush=True)
    _measure_blocks(findings, models, device)
    print(f"denoising: mean of {PREDICTIONS} predictions of each ...", flush=True)
    _denoise(findings, models, image, device)
    return findings


def build_models(patch: int, analytical_kl: bool, device: torch.device) -> dict[str, Any]:
    """The same model with upstream's blocks, with ours, and with upstream's and a rounding error in every weight."""
    models = {
        name: careamics.build_model(patch, analytical_kl=analytical_kl, seed=SEED).to(device)
        for name in (*NAMES, CONTROL)
    }
    with torch.no_grad():
        for parameter in models[CONTROL].parameters():
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    # On a GPU ours makes its own noise by default; with torch's both models draw the same.
    print(f"patch_model: {patch_model(models[OURS], rng='torch')}", flush=True)
    return models


def _train(findings: Findings, models: dict[str, Any], image: micrograph.Micrograph, device: torch.device) -> None:
    """Train the models on the same batches with the same random numbers, in turns."""
    steps, batch, patch = (findings.settings[name] for name in ("steps", "batch", "patch"))
    normalised, generator = image.normalised(), torch.Generator().manual_seed(SEED)
    rounds = (micrograph.random_patches(normalised, patch, batch, generator).to(device) for _ in range(steps))

    def prepare(name: str, _: Tensor) -> None:
        torch.manual_seed(SEED + len(findings.losses[name]))

    # Without a terminal there is nobody to watch a bar.
    with tqdm(total=steps, desc="training", disable=None) as bar:
        for turn in take_turns({name: Training(models[name], steps=steps) for name in models}, rounds, device, prepare):
            findings.losses[turn.name].append(turn.result.item())
            findings.seconds[turn.name].append(turn.seconds)
            bar.update(turn.name == CONTROL)


def _measure_blocks(findings: Findings, models: dict[str, Any], device: torch.device) -> None:
    """The cost of the block with the largest latent, upstream's and ours."""
    batch, patch, analytical_kl = (findings.settings[name] for name in ("batch", "patch", "analytical_kl"))
    blocks = {name: models[name].top_down_layers[0].stochastic for name in NAMES}
    shape = (batch, blocks[UPSTREAM].conv_in_q.weight.shape[1], patch // 2, patch // 2)
    findings.block_latent = (batch, careamics.ARCHITECTURE["z_dims"][0], *shape[2:])
    findings.block = block_costs(blocks, shape, device, rounds=BLOCK_ROUNDS, analytical_kl=analytical_kl)


def _denoise(findings: Findings, models: dict[str, Any], image: micrograph.Micrograph, device: torch.device) -> None:
    """Both models' estimates of a part of the image, from the same random numbers."""
    images = findings.images
    images |= {"noisy": image.noisy[SHOWN, SHOWN], "clean": image.clean[SHOWN, SHOWN]}
    tile = image.normalised()[None, None, SHOWN, SHOWN].to(device)
    for name in NAMES:
        torch.manual_seed(SEED)
        models[name].reset_for_inference(tile.shape[-2:])
        mean, _ = careamics.mmse_loop(models[name], tile, samples=PREDICTIONS)
        images[name] = mean[0, 0] * image.noisy.std() + image.noisy.mean()
    clean = images["clean"].numpy()
    findings.psnr_db = {
        name: peak_signal_noise_ratio(clean, images[name].numpy(), data_range=1) for name in ("noisy", *NAMES)
    }
