"""The workloads of the benchmark suite: one set-up each, for speed and for memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LOGVAR_MAX = 20.0  # the clamp that LadderVAE asks for
CPU, GPU = "cpu", "cuda"


class Case(NamedTuple):
    """A latent (batch, channels, *space) and what is computed of it."""

    name: str
    batch: int
    space: tuple[int, ...]
    channels: int = 128
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    analytic: bool = False
    prediction: bool = False
    """Only a sample is drawn, without gradients."""
    window: int | None = None
    """Side of the restricted KL's window, `vanilla_latent_hw`; None: all of the latent."""
    compiled: bool = False
    """Whether torch.compile takes part. Compiling takes two cores 5 to 10 s a case."""
    quick: bool = False
    devices: tuple[str, ...] = (CPU, GPU)

    @property
    def latents(self) -> int:
        return torch.Size((self.batch, self.channels, *self.space)).numel()

    @property
    def passes(self) -> tuple[str, ...]:
        return ("sample",) if self.prediction else ("forward", "backward", "step")


def _sweep() -> Iterator[Case]:
    """2^10 to 2^26 latents, in steps of 4, in the channels of CAREamics."""
    shapes = {10: (2, 2), 12: (8, 2), 14: (8, 4), 16: (8, 8), 18: (8, 16), 20: (8, 32), 22: (32, 32)}
    for power, (batch, side) in shapes.items():
        yield Case(f"sweep 2^{power}", batch, (side, side), compiled=True)
    # Not on CPUs: on two cores a round of all providers takes some 10 s, and of the next upstream would keep 9 GiB for
    # its backward.
    yield Case("sweep 2^24", 32, (64, 64), compiled=True, devices=(GPU,))
    yield Case("sweep 2^26", 32, (128, 128), compiled=True, devices=(GPU,))


CASES = (
    # The four latents of the default CAREamics LVAE, whose patch is 64 x 64.
    *(Case(f"level {n}x{n} b8", 8, (n, n), compiled=True, quick=n in (32, 4)) for n in (32, 16, 8, 4)),
    *(Case(f"level {n}x{n} b32", 32, (n, n)) for n in (32, 16, 8, 4)),
    # CAREamics' training configuration for denoiSplit (lvae_training/get_config.py): patches of 128 x 128, batch 32.
    # On two cores upstream needs minutes for the 2^24 latents of that.
    Case("denoisplit b32", 32, (64, 64), devices=(GPU,)),
    Case("denoisplit b4", 4, (64, 64), devices=(CPU,)),
    # muSplit with lateral context (multiscale_count 3, patch 64, batch 32: CAREamics/microSplit-reproducibility)
    # keeps its bottom latents at 64 x 64, of which the KL counts the central 32 x 32.
    Case("musplit b32", 32, (64, 64), window=32, devices=(GPU,)),
    Case("musplit b4", 4, (64, 64), window=32, devices=(CPU,)),
    # What a 3D LadderVAE makes of patches of 16 x 64 x 64 that are not strided along Z.
    Case("3d", 2, (16, 32, 32)),
    Case("channels_last", 8, (32, 32), channels_last=True),
    Case("bf16", 8, (32, 32), dtype=torch.bfloat16, compiled=True, quick=True),
    Case("analytic", 8, (32, 32), analytic=True, compiled=True),
    Case("prediction", 32, (32, 32), prediction=True, compiled=True, quick=True),
    # 2^27 latents: 512 MiB a tensor, ten times the L2 of an H200.
    Case("large", 64, (128, 128), compiled=True, devices=(GPU,)),
    *_sweep(),
)


def select(device: torch.device, *, quick: bool) -> list[Case]:
    return [case for case in CASES if device.type in case.devices and (case.quick or not quick)]


class Inputs(NamedTuple):
    """Packed parameters (B, 2C, *S), which require gradients, and the gradients that arrive at z and at the KL.

    Those are random, never ones, and there for every dtype that a provider may return.
    """

    q: Tensor
    p: Tensor
    grad_z: dict[torch.dtype, Tensor]
    grad_kl: dict[torch.dtype, Tensor]


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """The same inputs for the same seed: means N(0, 1), log-variances N(0, 1/4)."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def laid_out(tensor: Tensor) -> Tensor:
        dense = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        return tensor.to(memory_format=dense if case.channels_last else torch.contiguous_format)

    def packed() -> Tensor:
        tensor = normal(case.batch, 2 * case.channels, *case.space)
        tensor[:, case.channels :] *= 0.5
        return laid_out(tensor).to(case.dtype).requires_grad_()

    q, p = packed(), packed()
    if case.prediction:
        return Inputs(q, p, {}, {})
    grad_z, grad_kl = laid_out(normal(case.batch, case.channels, *case.space)), normal(case.batch)
    dtypes = {case.dtype, torch.float32}
    return Inputs(q, p, *({dtype: grad.to(dtype) for dtype in dtypes} for grad in (grad_z, grad_kl)))
