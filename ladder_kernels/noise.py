"""Standard normal noise: torch's generator, or Philox4x32-10 from a seed that lives on the device.

Which of the two a call draws that is given neither, `default_draw` says; a block's `rng` overrules it.

Philox is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
Element i of a latent, in memory order, takes lane i % 4 of the block with key = seed and counter i // 4, so a sample
depends on the seed alone: not on the backend, the block size or the launch.
"""

import contextlib
import ctypes
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends import select
from ladder_kernels.backends.step import DTYPES, compute_dtype
from ladder_kernels.geometry import in_memory_order, is_channels_last, latent_shape

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


DRAWS = {"torch": "noise", "philox": "seed"}
"""The two sources by the name of a block's `rng`, as `Step.draw`."""


def default_draw(backend: str) -> str:
    """What a step draws that is given nothing, as `Step.draw`: a seed where Philox is made in a kernel, else noise.

    Elsewhere Philox would be paid for in plain tensor arithmetic, and torch's noise is upstream's.
    """
    return "seed" if backend in ("triton", "cuda") else "noise"


def draw_source(packed: Tensor, draw: str, generator: torch.Generator | None = None) -> Tensor:
    """A fresh seed, or noise in the shape and the dtype of computation of the latent of these packed parameters."""
    if draw == "seed":
        return draw_seed(packed.device, generator)
    return draw_noise(latent_shape(packed), compute_dtype(packed), packed.device, generator)


def draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """One int64 seed (), drawn on `device` by torch's generator: it obeys manual_seed, checkpoint and CUDA graphs.

    A `generator` draws where it lives.
    """
    if generator is not None:
        return _draw_seed(generator.device, generator).to(device)
    if _is_compiled():
        return torch.ops.ladder_kernels.draw_seed.default(torch.empty((0,), device=device))
    return _draw_seed(device)


def draw_noise(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise from torch's generator: the numbers `Normal.rsample` draws, compiled or not.

    On a CPU csrc makes them where it can (`reason_aten_draws`): the same to 1e-6, and the same state is left. A
    `generator` draws where it lives: one of the CPU gives the same numbers on every device.
    """
    if generator is not None:
        return _randn(shape, dtype, generator.device, generator).to(device)
    if _is_compiled():
        where = torch.empty((0,), device=device)
        return torch.ops.ladder_kernels.draw_noise.default(where, shape, DTYPES.index(dtype))
    return _randn(shape, dtype, device)


def noise_of_seed(seed: Tensor, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Philox noise of a latent's shape (B, C, *S), in the memory order of `like`, packed parameters or half of them.

    In an exported program too, whose tensors need not look like those that were traced.
    """
    if not is_exporting() or torch.onnx.is_in_onnx_export() or torch._C._are_functorch_transforms_active():
        return _noise_of_seed(seed, like, shape, DTYPES.index(dtype))
    return torch.ops.ladder_kernels.noise_of_seed.default(seed, like.detach(), shape, DTYPES.index(dtype))


# torch 2.6 has none: there an exported program has the example's order.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def _is_compiled() -> bool:
    """Whether the draw is to be an operator. Of ATen's, Inductor makes other numbers, in scalar code on a CPU, and anew
    in every kernel that reads them; which ones it leaves alone depends on torch's version.
    """
    return torch.compiler.is_compiling() and not torch.onnx.is_in_onnx_export()


def _draw_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device, **_drawn_from(generator))


def _drawn_from(generator: torch.Generator | None) -> dict[str, Any]:
    """Not named where there is none: ONNX knows no operators that take one."""
    return {} if generator is None else {"generator": generator}


# ---- torch.randn on a CPU, made by csrc: ATen takes one word after another of its twister, each by a call.

_FEWEST = 4096  # for fewer numbers, getting and setting the state takes longer than ATen
_STATE_SIZE = 5056  # bytes
_QUICK = 10_000  # nanoseconds

# Getting a generator's state, drawing and setting it: one step to whoever draws here.
_drawing = threading.Lock()


def _randn(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """torch.randn, made by csrc where that can and is faster, whatever backend serves: one seed, the same bits."""
    each = getattr(_seeded, "generators", ())
    if generator is None and len(each) == shape[0]:
        return torch.stack([_randn(shape[1:], dtype, device, own) for own in each])
    fits = math.prod(shape) >= _FEWEST and dtype == torch.float32 and device.type == "cpu"
    if fits and not _is_watched() and reason_aten_draws() is None:
        out = torch.empty(shape, dtype=dtype, device=device)
        if _fill(out, torch.default_generator if generator is None else generator):
            return out
    return torch.randn(shape, dtype=dtype, device=device, **_drawn_from(generator))


_seeded = threading.local()


@contextlib.contextmanager
def seeded_each(seeds: Sequence[int], device: torch.device) -> Iterator[None]:
    """Of a batch of so many, torch's noise of each has a generator of its own, and depends on no other in the batch."""
    before = getattr(_seeded, "generators", ())
    _seeded.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    try:
        yield
    finally:
        _seeded.generators = before


def _is_watched() -> bool:
    """Whether torch.randn itself is to be seen: by a compiler, a tracer, fake tensors, torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def _fill(out: Tensor, generator: torch.Generator) -> bool:
    """Whether `out` is drawn and the generator moved on. Not if a thread has drawn from it by ATen in the meantime.

    Such a thread knows nothing of our lock, and ATen's cannot be had from here. It goes unseen between the last look at
    the state and its setting, some microseconds later; then its numbers are drawn a second time.
    """
    cpp: Any = select.load("cpp")
    with _drawing:
        state = generator.get_state()
        before = _bytes(state)
        if not cpp.fill_normal(out, state):
            return False
        # To look gives up the GIL, and who takes it may draw many times: then it takes long, and is worth another look.
        for _ in range(8):
            start = time.perf_counter_ns()
            if _bytes(generator.get_state()) != before:
                return False
            if time.perf_counter_ns() - start < _QUICK:
                break
        generator.set_state(state)
        return True


def _bytes(state: Tensor) -> bytes:
    return ctypes.string_at(state.data_ptr(), state.numel())


@functools.cache
def reason_aten_draws() -> str | None:
    """Why a CPU's noise is made by ATen in this process and not by csrc, or None.

    Both draw from the same state, at counts around a group of Box-Muller (16) and a block of the twister (624).
    """
    if select.default("cpu") != "cpp":
        return "the backend cpp does not serve"
    ours, atens = (torch.Generator("cpu").manual_seed(20260822) for _ in range(2))
    size = ours.get_state().numel()
    if size != _STATE_SIZE:
        return f"a generator's state has {size} bytes, not {_STATE_SIZE}"
    for generator in (ours, atens):
        torch.randn(3, dtype=torch.float32, device="cpu", generator=generator)  # keeps a fourth in the state
    for count in (16, 17, 31, 32, 560, 623, 624, 625, 640, 1264):
        out = torch.empty(count, dtype=torch.float32, device="cpu")
        filled = _fill(out, ours)
        difference = out - torch.randn(count, dtype=torch.float32, device="cpu", generator=atens)
        if not filled or not (difference.abs() <= 1e-6).all():
            return f"{count} numbers made by csrc are not those of torch.randn"
        if not torch.equal(ours.get_state(), atens.get_state()):
            return f"after {count} numbers csrc leaves another state than torch.randn"
    return None


def _define(name: str, schema: str, draw: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """A draw on the device of `where`, an empty tensor: a checkpoint inside compiled code finds the generator by the
    operator's tensors, and the C++ that Inductor writes cannot pass a device. It must be `torch.empty`: of two equal
    calls a compiler keeps one, unless they are ATen's random operators or read what may differ. Two levels of a model
    would draw the same.
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
    # The dtype by number: a package of AOTInductor writes those by one numbering and reads them by another, so that
    # float32 comes back as float64 (torch 2.11).
    "(Tensor where, SymInt[] shape, int dtype) -> Tensor",
    lambda where, shape, dtype: _randn(shape, DTYPES[dtype], where.device),
    lambda where, shape, dtype: where.new_empty(shape, dtype=DTYPES[dtype]),
)


def _noise_of_seed(seed: Tensor, like: Tensor, shape: Sequence[int], dtype: int) -> Tensor:
    flat = philox_normal(seed, math.prod(shape), DTYPES[dtype])
    return in_memory_order(flat, shape, is_channels_last(like))


torch.library.define("ladder_kernels::noise_of_seed", "(Tensor seed, Tensor like, SymInt[] shape, int dtype) -> Tensor")
torch.library.impl("ladder_kernels::noise_of_seed", "CompositeExplicitAutograd", _noise_of_seed)
torch.library.register_fake("ladder_kernels::noise_of_seed", _noise_of_seed)


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
