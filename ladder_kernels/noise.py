"""Standard normal noise: torch's generator, or Philox4x32-10 from a seed that lives on the device.

Which of the two a call draws that is given neither: Philox where the backend that serves makes it in a kernel
(`makes_noise` in backends/select.py), else torch's; a block's `rng` overrules that.

Philox is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Element i of a latent, in memory order, takes lane i % 4 of the block with key = seed and counter i // 4, so a sample
depends on the seed alone: not on the backend, the block size or the launch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def draw_seed(device: torch.device) -> Tensor:
    """One int64 seed (), drawn on `device` by torch's generator: it obeys manual_seed, checkpoint and CUDA graphs."""
    if _is_compiled():
        return torch.ops.ladder_kernels.draw_seed.default(torch.empty((0,), device=device))
    return _draw_seed(device)


def draw_noise(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal noise from torch's generator: the very numbers `Normal.rsample` draws, compiled or not."""
    if _is_compiled():
        where = torch.empty((0,), device=device)
        return torch.ops.ladder_kernels.draw_noise.default(where, shape, _DTYPES.index(dtype))
    return torch.randn(shape, dtype=dtype, device=device)


def _is_compiled() -> bool:
    """Whether the draw is to be an operator. Of ATen's, Inductor makes other numbers, in scalar code on a CPU, and anew
    in every kernel that reads them; which ones it leaves alone depends on torch's version.
    """
    return torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export()


def _draw_seed(device: torch.device) -> Tensor:
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


# By number in the operator's schema, not as a dtype: a package of AOTInductor writes those by one numbering and reads
# them by another, so that float32 comes back as float64 (torch 2.11).
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _define(name: str, schema: str, draw: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """A draw on the device of `where`, an empty tensor: a checkpoint inside compiled code finds the generator by the
    operator's tensors, and the C++ that Inductor writes cannot pass a device.
    """
    # The tag keeps a compiler from drawing twice what is read twice.
    torch.library.define(f"ladder_kernels::{name}", schema, tags=(torch.Tag.nondeterministic_seeded,))
    torch.library.impl(f"ladder_kernels::{name}", "CompositeExplicitAutograd", draw)
    torch.library.register_fake(f"ladder_kernels::{name}", fake)


_define(
    "draw_seed",
    "(Tensor where) -> Tensor",
    lambda where: _draw_seed(where.device),
    lambda where: where.new_empty((), dtype=torch.int64),
)
_define(
    "draw_noise",
    "(Tensor where, SymInt[] shape, int dtype) -> Tensor",
    lambda where, shape, dtype: torch.randn(shape, dtype=_DTYPES[dtype], device=where.device),
    lambda where, shape, dtype: where.new_empty(shape, dtype=_DTYPES[dtype]),
)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of four counter words and two key words: int64 tensors that hold 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The low 64 bits of the product are exact although int64 overflows; the mask undoes the sign.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & _MASK, (k1 + KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def box_muller(word1: Tensor, word2: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words: r cos(2 pi u2), r sin(2 pi u2) with r = sqrt(-2 ln u1).

    u = (word + 1/2) / 2^32 is never 0, and in float32 at most 1, so |normal| <= 6.77.
    """
    u1, u2 = (word.to(dtype) * 2.0**-32 + 2.0**-33 for word in (word1, word2))
    # Not below 0: next to u1 = 1 an approximate logarithm may be positive.
    radius = torch.sqrt((-2.0 * torch.log(u1)).clamp(min=0.0))
    angle = (2.0 * math.pi) * u2
    return radius * torch.cos(angle), radius * torch.sin(angle)


def philox_normal(seed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`count` standard normals (count,) of `seed` (int64, one element), computed in float32 or float64."""
    seed = seed.reshape(())
    group = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    zero = torch.zeros((), dtype=torch.int64, device=seed.device)
    words = philox4x32((group & _MASK, group >> 32, zero, zero), (seed & _MASK, (seed >> 32) & _MASK))
    lanes = (*box_muller(words[0], words[1], dtype), *box_muller(words[2], words[3], dtype))
    return torch.stack(lanes, dim=-1).flatten()[:count]
