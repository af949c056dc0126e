"""The native CPU kernels of csrc/cpu, where they have been built: vectorised, threaded, one pass each way."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends import native

NAME = "cpp"

_functions = native.Functions("cpu", sys.modules[__name__])
forward, backward, sample = _functions.forward, _functions.backward, _functions.sample


def unavailable() -> str | None:
    return native.find("cpu")[1]


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    if q.is_cpu and (p is None or p.is_cpu):
        return None
    return "it takes tensors on the CPU only"


def run(function: Callable[..., int], arguments: tuple[Any, ...], q: Tensor) -> int:
    """On torch's threads."""
    return function(*arguments, torch.get_num_threads())


def fill_normal(out: Tensor, state: Tensor) -> bool:
    """Fills `out` (float32, contiguous, at least 16 elements) with what torch.randn would draw from a generator.

    `state` is that of the generator, and becomes the one after the draw. False where it is none that csrc knows: then
    nothing is changed.
    """
    library, _ = native.find("cpu")
    return library.ladder_normal(state.data_ptr(), out.data_ptr(), out.numel(), torch.get_num_threads()) == 0
