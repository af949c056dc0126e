"""The one road of a call: who serves it, the noise that it draws, its gradients.

`functional` says what is wanted; `run` finds the backend, draws fresh noise and calls one autograd Function. Where
somebody records the call it is an operator of `ops`, whose autograd is the same Function. Below it nothing knows of
autograd: a backend's own functions, or the operators once more. The packed parameters and the noise, seed or given
latent are kept for backward: nothing else of the latent's size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ladder_kernels import ops
from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.select import load, serving
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.geometry import in_memory_order, latent_shape
from ladder_kernels.noise import default_draw, draw_source, noise_of_seed
from ladder_kernels.ops import is_recorded

Tensors = tuple[Any, ...]


def run(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    generator: torch.Generator | None = None,
    only_z: bool = False,
) -> StepOutputs:
    """The outputs of the step, differentiable; of `only_z` z alone. `generator` is what fresh noise is drawn from."""
    backend = serving(q, p)
    if step.draw == "fresh":
        step = step.with_draw(default_draw(backend))
        source = draw_source(q, step.draw, generator)
    if is_plain(backend, q, p):
        if step.draw == "seed" and source is not None:
            source = noise_of_seed(source, latent_shape(q), compute_dtype(q, p), q)
            step = step.with_draw("noise")
        return _call(torch_backend, q, p, source, step, only_z)
    if is_recorded((q, p)):
        return _call(ops.Operators(backend), q, p, source, step, only_z)
    if not torch.is_grad_enabled():  # a Function takes longer than what it would record
        return _call(load(backend), q, p, source, step, only_z)
    return StepOutputs(*NormalStep.apply(q, p, source, step, backend, load(backend), only_z))


def _call(functions: Any, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step, only_z: bool) -> StepOutputs:
    return StepOutputs(functions.sample(q, source, step)) if only_z else functions.forward(q, p, source, step)


class NormalStep(torch.autograd.Function):
    """apply(q, p, source, step, backend, functions, only_z) -> the entries of `StepOutputs`.

    `functions` are the backend's own, or the operators; of the forward pass, which need not be recorded with the other.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        p: Tensor | None,
        source: Tensor | None,
        step: Step,
        backend: str,
        functions: Any,
        only_z: bool,
    ) -> Tensors:
        ctx.save_for_backward(q, p, source)
        ctx.step, ctx.backend = step, backend
        ctx.set_materialize_grads(False)
        outputs = _call(functions, q, p, source, step, only_z)
        ctx.mark_non_differentiable(*_constants(outputs, q, p, source, step))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensors:
        found = _gradients(ctx.saved_tensors, ctx.step, ctx.backend, StepGrads(*grads), ctx.needs_input_grad[:3])
        return (*found, None, None, None, None)


def _constants(outputs: StepOutputs, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> list[Tensor]:
    """The outputs that know nothing of what needs a gradient: they have none, as in plain PyTorch."""
    q_needs, p_needs, z_needs = (x is not None and x.requires_grad for x in (q, p, source))
    found = [outputs.logvar_max]
    if not (q_needs or z_needs):
        found += [outputs.z, outputs.logprob_q]
    if not (q_needs or p_needs or (z_needs and step.kl == "monte_carlo")):
        found += [*outputs[1:5], outputs.kl_elementwise]
    return [out for out in found if out is not None]


def _gradients(inputs: Tensors, step: Step, backend: str, grads: StepGrads, needs: tuple[bool, bool, bool]) -> Tensors:
    """Those at q, p and source: the backend's, or the plain formula's where they are differentiated or batched."""
    q, p, source = inputs
    functions: Any = _functions(backend, *inputs, *grads)
    if not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            return torch_backend.differentiable_backward(q, p, source, step, grads, needs)
        if torch._C._are_functorch_transforms_active() or any(map(is_batched, grads)):
            functions = torch_backend
    to_q, to_p, to_latent = step.flows_to(grads)
    flows = (needs[0] and to_q, needs[1] and to_p, needs[2] and to_latent)
    found = functions.backward(q, p, source, step, grads, flows)
    if flows == needs:
        return found
    # Where a gradient is needed and nothing arrives it is zero.
    return tuple(
        _zeros(like, step) if need and not flow else grad
        for like, need, flow, grad in zip(inputs, needs, flows, found, strict=True)
    )


def _step_operator(q: Tensor, p: Tensor | None, source: Tensor | None, *asked: Any) -> Tensors:
    """The autograd of the operators, which is that of an eager call."""
    step, backend = ops.Asked.of(q, *asked) if is_recorded((q, p, source)) else ops.Asked.of_real(q, *asked)
    return NormalStep.apply(q, p, source, step, backend, _functions(backend, q, p, source), False)


def _sample_operator(q: Tensor, source: Tensor | None, *asked: Any) -> Tensor:
    step, backend = ops.Asked.of(q, *asked) if is_recorded((q, source)) else ops.Asked.of_real(q, *asked)
    return NormalStep.apply(q, None, source, step, backend, _functions(backend, q, source), True)[0]


ops.register_autograd("step", _step_operator)
ops.register_autograd("sample", _sample_operator)


def _zeros(like: Tensor, step: Step) -> Tensor:
    return in_memory_order(like.new_zeros((like.numel(),)), like.shape, step.channels_last)


def _functions(backend: str, *tensors: Tensor | None) -> Any:
    """The backend's `forward`, `backward` and `sample`: its own, or the operators where somebody records the call."""
    return ops.Operators(backend) if is_recorded(tensors) else load(backend)


def is_plain(backend: str, *tensors: Tensor | None) -> bool:
    """Whether the call is the plain formula, with its own autograd: what torch.func and tracers can see into."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        # A compiler fuses plain torch; any other backend is an operator to it.
        return backend == "torch" or torch.onnx.is_in_onnx_export()
    # torch.jit.trace writes down ATen calls.
    return torch._C._is_tracing() or (backend == "torch" and is_recorded(tensors))


def is_batched(grad: Tensor | None) -> bool:
    """Whether it is one of several at once: `torch.autograd.grad(..., is_grads_batched=True)`."""
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)
