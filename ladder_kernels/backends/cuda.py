"""The CUDA C++ kernels of csrc/cuda, where they have been built: as Triton's, with less to do for a launch."""

import torch
from torch import Tensor

from ladder_kernels.backends import native

NAME = "cuda"

_functions = native.Functions("ladder_kernels._CUDA")
forward, backward, sample = _functions.forward, _functions.backward, _functions.sample


def unavailable() -> str | None:
    reason = native.reason_not_loaded("ladder_kernels._CUDA", "LADDER_KERNELS_BUILD_CUDA")
    return reason or (None if torch.cuda.is_available() else "there is no GPU")


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    if q.is_cuda and (p is None or p.is_cuda):
        return None
    return "it takes tensors on a GPU only"
