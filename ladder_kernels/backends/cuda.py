"""The CUDA C++ kernels of csrc/cuda, where they have been built: as Triton's, with less to do for a launch."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends import native

NAME = "cuda"

_functions = native.Functions("cuda", sys.modules[__name__])
forward, backward, sample = _functions.forward, _functions.backward, _functions.sample


def unavailable() -> str | None:
    return native.find("cuda")[1] or (None if torch.cuda.is_available() else "there is no GPU")


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    if q.is_cuda and (p is None or p.is_cuda):
        return None
    return "it takes tensors on a GPU only"


def run(function: Callable[..., int], arguments: tuple[Any, ...], q: Tensor) -> int:
    """On q's GPU, in torch's stream."""
    if not q.is_cuda or q.get_device() == torch.cuda.current_device():
        return function(*arguments, stream_of(q))
    with torch.cuda.device(q.device):
        return function(*arguments, stream_of(q))


def stream_of(tensor: Tensor) -> int:
    """The handle of the stream that torch works in now, on the tensor's GPU."""
    # What torch.cuda.current_stream makes an object of, which takes longer than the call.
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())
