"""The Triton backend's three operations: settings looked up, outputs allocated, kernels launched."""

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.outputs import Look, look, resolved
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs
from ladder_kernels.backends.triton import settings
from ladder_kernels.backends.triton.backward import Incoming
from ladder_kernels.backends.triton.settings import INTERPRETED
from ladder_kernels.backends.triton.tile import Strided
from ladder_kernels.geometry import dense


def unavailable() -> str | None:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 3):
        return f"it needs Triton 3.3 or newer, found {triton.__version__}"
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no GPU (for tests on a CPU set TRITON_INTERPRET=1 before the import)"
    return None


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    if not q.is_cuda and not INTERPRETED:
        return f"the tensors are on {q.device}, not on a GPU"
    return None


def forward(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
    if q.numel() == 0:
        return torch_backend.forward(q, p, source, step)
    q, p, source = resolved(q), resolved(p), resolved(source)
    of = settings.forward(Look.of(q), look(p), look(source), q.device, step)
    outputs = StepOutputs._make([new and new() for new in of.outputs])
    partials = of.partials()
    column_sums, row_sums = outputs.kl_spatial, outputs.kl_channelwise
    if of.channels_inner:
        column_sums, row_sums = row_sums, column_sums
    with on_device_of(q):
        of.step(
            Strided(q, of.q_strides),
            _strided(p, of.p_strides),
            _strided(source, of.source_strides),
            outputs.z,
            outputs.kl_elementwise,
            partials,
        )
        of.reduction(
            partials,
            column_sums,
            row_sums,
            outputs.kl_samplewise,
            outputs.kl_samplewise_restricted,
            outputs.logprob_q,
            outputs.logvar_max,
        )
    return outputs


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    if q.numel() == 0:
        return torch_backend.sample(q, source, step)
    q, source = resolved(q), resolved(source)
    of = settings.sample(Look.of(q), look(source), q.device, step)
    z = of.z()
    with on_device_of(q):
        of.step(Strided(q, of.q_strides), _strided(source, of.source_strides), z)
    return z


def backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if q.numel() == 0:
        return torch_backend.backward(q, p, source, step, grads, needs)
    q, p, source = resolved(q), resolved(p), resolved(source)
    z, samplewise, restricted, channelwise, spatial, logprob_q, _, elementwise = map(resolved, grads)
    z, elementwise = _in_order(z, step), _in_order(elementwise, step)
    channelwise, spatial = _contiguous(channelwise), _contiguous(spatial)
    incoming = tuple(map(look, (z, samplewise, restricted, channelwise, spatial, elementwise, logprob_q)))
    of = settings.backward(Look.of(q), look(p), look(source), q.device, step, incoming, needs)
    grad_q, grad_p, grad_latent = [new and new() for new in of.grads]
    over_rows, over_columns = (channelwise, spatial) if of.channels_inner else (spatial, channelwise)
    with on_device_of(q):
        of.step(
            Strided(q, of.q_strides),
            _strided(p, of.p_strides) if of.reads_p else None,
            _strided(source, of.source_strides) if of.reads_source else None,
            Incoming(
                z,
                _of_samples(samplewise),
                _of_samples(restricted),
                over_rows,
                over_columns,
                elementwise,
                _of_samples(logprob_q),
            ),
            grad_q,
            grad_p,
            grad_latent,
        )
    return grad_q, grad_p, grad_latent


def _strided(tensor: Tensor | None, strides: tuple[int, ...] | None) -> Strided | None:
    return None if tensor is None else Strided(tensor, strides)


def _in_order(grad: Tensor | None, step: Step) -> Tensor | None:
    return None if grad is None else dense(grad, step.channels_last)


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def _of_samples(grad: Tensor | None) -> Strided | None:
    return None if grad is None else Strided(grad, (grad.stride(0),))


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
