"""The demo's measurements, one after the other, each written into `Findings` as soon as it is there."""

import datetime
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from bench import careamics as careamics_model
from bench import cli
from bench.demo.block_cost import BlockRun, block_costs
from bench.demo.findings import CONTROL, NAMES, OURS, Findings
from bench.training import micrograph
from bench.training.trainer import KL_WEIGHT, PEAK_LEARNING_RATE, Trainer
from ladder_kernels import info, patch_model
from ladder_kernels.backends import select

SEED = 0
SHOWN_SIDE = 192
PREDICTIONS = 16
KL_SAMPLES = 8
BLOCK_ROUNDS = 30
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {postfix}"


def new_findings(settings: dict[str, Any], device: torch.device) -> Findings:
    """Findings with the settings and the machine filled in."""
    report = info.collect()
    environment = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": cli.device_name(device),
        "backend": backend_name(device),
        "versions": report["versions"],
    }
    training = {
        "data": micrograph.NAME,
        "noise_std": micrograph.NOISE_STD,
        "architecture": careamics_model.ARCHITECTURE,
        "peak_learning_rate": PEAK_LEARNING_RATE,
        "kl_weight": KL_WEIGHT,
        "seed": SEED,
        "predictions": PREDICTIONS,
    }
    return Findings(settings | training, environment)


def backend_name(device: torch.device) -> str:
    """The backend of ladder_kernels that runs in the demo."""
    q, noise = torch.zeros(1, 2, 1, 1, device=device), torch.zeros(1, 1, 1, 1, device=device)
    return select.choose(q, q, noise).__name__.rpartition(".")[2]


def run(findings: Findings, image: micrograph.Micrograph, device: torch.device) -> None:
    """Train both models, measure their blocks, denoise with both."""
    patch, analytical_kl = findings.settings["patch"], findings.settings["analytical_kl"]
    if device.type == "cuda":
        # Else cuDNN may sum in another order every time, and no two runs of one model agree.
        torch.backends.cudnn.deterministic = True
    models = build_models(patch, analytical_kl, device)
    shown = image.shown(max(patch, SHOWN_SIDE // patch * patch))
    findings.images |= {"noisy": image.noisy[shown], "clean": image.clean[shown]}
    findings.psnr["noisy"] = micrograph.psnr(image.noisy[shown], image.clean[shown])

    train(findings, models, image, device)
    print("measuring one stochastic block of each ...", flush=True)
    measure_blocks(findings, models, device)
    print(f"denoising: mean of {PREDICTIONS} predictions of each ...", flush=True)
    normalised = image.normalised()[shown].to(device)
    findings.kl_maps = [
        level.cpu() for level in careamics_model.kl_maps(models[OURS], normalised, samples=KL_SAMPLES, seed=SEED)
    ]
    for name in NAMES:
        denoised = careamics_model.predict(models[name], normalised, samples=PREDICTIONS, seed=SEED)
        findings.images[name] = image.restored(denoised.cpu())
        findings.psnr[name] = micrograph.psnr(findings.images[name], findings.images["clean"])


def build_models(patch: int, analytical_kl: bool, device: torch.device) -> dict[str, nn.Module]:
    """The same model with upstream's blocks, with ours, and with upstream's and a rounding error in every weight."""
    models = {
        name: careamics_model.build_model(patch, analytical_kl=analytical_kl, seed=SEED).to(device)
        for name in (*NAMES, CONTROL)
    }
    with torch.no_grad():
        for parameter in models[CONTROL].parameters():
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    # On a GPU ours makes its own noise by default; with torch's both models draw the same.
    report = patch_model(models[OURS], rng="torch")
    print(f"patch_model: {report}", flush=True)
    return models


def train(findings: Findings, models: dict[str, nn.Module], image: micrograph.Micrograph, device: torch.device) -> None:
    """Train the models on the same batches with the same random numbers.

    They take turns step by step, so that a busy machine slows both, and an interruption leaves two curves of one
    length.
    """
    steps, batch, patch = (findings.settings[name] for name in ("steps", "batch", "patch"))
    normalised = image.normalised()
    generator = torch.Generator().manual_seed(SEED)
    trainers = {name: Trainer(model, steps) for name, model in models.items()}
    # Without a terminal there is nobody to watch bars.
    bars = {
        name: tqdm(total=steps, desc=f"{name:14}", position=place, bar_format=BAR, disable=None)
        for place, name in enumerate(models)
    }
    try:
        for count in range(steps):
            patches = micrograph.random_patches(normalised, patch, batch, generator).to(device)
            for name, trainer in trainers.items():
                result = trainer.step(patches, seed=SEED + count)
                findings.steps[name].append(result)
                bars[name].set_postfix_str(f"loss {result.loss:.4f}, {1e3 * result.seconds:.0f} ms", refresh=False)
                bars[name].update()
    finally:
        for bar in bars.values():
            bar.close()


def measure_blocks(findings: Findings, models: dict[str, nn.Module], device: torch.device) -> None:
    """The cost of the block with the largest latent, upstream's and ours."""
    batch, patch = findings.settings["batch"], findings.settings["patch"]
    runs = {
        name: BlockRun(
            careamics_model.bottom_block(models[name]),
            batch,
            patch // 2,
            analytical_kl=findings.settings["analytical_kl"],
        )
        for name in NAMES
    }
    findings.block_latent = (batch, careamics_model.ARCHITECTURE["z_dims"][0], patch // 2, patch // 2)
    findings.block = block_costs(runs, device, rounds=BLOCK_ROUNDS)
