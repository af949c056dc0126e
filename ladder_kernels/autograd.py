"""From the public functions to a backend: eagerly through an autograd Function, else as what can be traced.

The Functions keep the packed parameters and the noise, seed or given latent: nothing else of the latent's size.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ladder_kernels import ops
from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.select import choose, choose_while_tracing
from ladder_kernels.backends.step import Step, StepGrads

Tensors = tuple[Any, ...]


def run_step(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> Tensors:
    """The entries of `StepOutputs`, differentiable."""
    if torch.compiler.is_compiling():
        name = choose_while_tracing(q.device.type)
        # The compiler sees into plain torch and fuses it; any other backend is an operator to it.
        return torch_backend.forward(q, p, source, step) if name == "torch" else ops.step(q, p, source, step, name)
    if torch._C._are_functorch_transforms_active():
        return torch_backend.forward(q, p, source, step)
    return NormalSampleKL.apply(q, p, source, step, choose(q, p, source))


def run_sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    """z, differentiable."""
    if torch.compiler.is_compiling():
        name = choose_while_tracing(q.device.type)
        return torch_backend.sample(q, source, step) if name == "torch" else ops.sample(q, source, step, name)
    if torch._C._are_functorch_transforms_active():
        return torch_backend.sample(q, source, step)
    return NormalSample.apply(q, source, step, choose(q, None, source))


class NormalSampleKL(torch.autograd.Function):
    """apply(q, p, source, step, backend) -> the entries of `StepOutputs`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step, backend: ModuleType
    ) -> Tensors:
        ctx.save_for_backward(q, p, source)
        ctx.step, ctx.backend = step, backend
        ctx.set_materialize_grads(False)
        outputs = backend.forward(q, p, source, step)
        ctx.mark_non_differentiable(outputs.qvar_max)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensors:
        q, p, source = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _differentiable_gradients(torch_backend.forward, (q, p, source), ctx.step, grads)
        else:
            needs = ctx.needs_input_grad[:3]
            found = ctx.backend.backward(q, p, source, ctx.step, StepGrads(*grads), needs)
        return (*found, None, None)


class NormalSample(torch.autograd.Function):
    """apply(q, noise_or_seed, step, backend) -> z."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, source: Tensor | None, step: Step, backend: ModuleType) -> Tensor:
        ctx.save_for_backward(q, source)
        ctx.step, ctx.backend = step, backend
        return backend.sample(q, source, step)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> Tensors:
        q, source = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_q, _ = _differentiable_gradients(_sample_outputs, (q, source), ctx.step, (grad_z,))
        else:
            needs = (True, False, False)
            grad_q, _, _ = ctx.backend.backward(q, None, source, ctx.step, StepGrads(z=grad_z), needs)
        return grad_q, None, None, None


def _sample_outputs(q: Tensor, source: Tensor | None, step: Step) -> Tensors:
    return (torch_backend.sample(q, source, step),)


def _differentiable_gradients(
    plain_forward: Callable[..., Tensors], inputs: tuple[Any, ...], step: Step, grads: tuple[Any, ...]
) -> Tensors:
    """The gradients under `create_graph=True`: autograd of the plain formula, whatever the backend."""
    # Fresh aliases, so that a p computed from q does not count q's gradient twice.
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    outputs = plain_forward(*aliases, step)
    used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out is not None and grad is not None]
    wanted = [x for x in aliases if x is not None and x.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in used],
            wanted,
            [grad for _, grad in used],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(found) if x is not None and x.requires_grad else None for x in aliases)
