"""The CUDA C++ kernels of csrc/cuda, where they have been built: as Triton's, with less to do for a launch."""

import torch
from torch import Tensor

from ladder_kernels.backends import native

NAME = "cuda"
DIFFERENTIABLE = True

_ops = native.Ops("ladder_kernels._CUDA", "ladder_kernels_cuda")
forward, backward, sample = _ops.forward, _ops.backward, _ops.sample


def unavailable() -> str | None:
    reason = native.reason_not_loaded("ladder_kernels._CUDA", "LADDER_KERNELS_BUILD_CUDA")
    return reason or (None if torch.cuda.is_available() else "there is no GPU")


def unsupported(q: Tensor, p: Tensor | None, source: Tensor | None) -> str | None:
    for tensor in (q, p, source):
        if tensor is not None and tensor.device.type != "cuda":
            return f"the tensors must be on a GPU, got one on {tensor.device}"
    return None
