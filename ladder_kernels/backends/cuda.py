"""The CUDA C++ kernels of csrc/cuda, where they have been built: as Triton's, with less to do for a launch."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends.step import Step, StepGrads, StepOutputs

NAME = "cuda"

_EXTENSION = "ladder_kernels._CUDA"
_BUILD = "LADDER_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation -e ."


@functools.cache
def unavailable() -> str | None:
    """Importing the extension registers its ops; it refuses to be imported by a torch it was not built for."""
    try:
        importlib.import_module(_EXTENSION)
    except ModuleNotFoundError as error:
        if error.name == _EXTENSION:
            return f"not built; run: {_BUILD}"
        raise
    except (ImportError, OSError) as error:
        return f"{_EXTENSION} cannot be loaded: {error}; to rebuild it, run: {_BUILD}"
    return None if torch.cuda.is_available() else "there is no GPU"


def unsupported(q: Tensor, p: Tensor | None, source: Tensor | None) -> str | None:
    for tensor in (q, p, source):
        if tensor is not None and tensor.device.type != "cuda":
            return f"the tensors must be on a GPU, got one on {tensor.device}"
    return None


def forward(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
    return StepOutputs(*_op("forward")(q, p, source, *step))


def backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return _op("backward")(q, p, source, *step, *grads, *needs)


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    return _op("sample")(q, source, *step)


@functools.cache
def _op(name: str) -> Callable[..., Any]:
    # The overload itself: calling it skips the look-up by arguments.
    return getattr(torch.ops.ladder_kernels_cuda, name).default
