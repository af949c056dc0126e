"""The step as registered operators: the boundary of torch.compile and export for backends they cannot see into.

Eager calls never come here: the dispatcher costs more than a small kernel's launch. The backend's name is an argument,
so that a compiled graph keeps the backend it was traced with. Operators have a fixed arity: an output or a gradient
that is not asked for is an empty tensor.

One operator is no compiler's: `plain_backward` is how the native backends' autograd, which is C++, gets to the plain
formula where gradients are differentiated or batched.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.select import load
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype, with_zeros
from ladder_kernels.geometry import in_memory_order, latent_shape
from ladder_kernels.variance import VarianceMap

NAMESPACE = "ladder_kernels"

_CHOICES = "str draw, str kl, str variance, float? raw_min, float? raw_max, float beta, float floor"
_STEP = f"{_CHOICES}, Tensor? temperature, SymInt[] window, bool elementwise, bool channels_last, str backend"
_NATIVE_STEP = f"{_CHOICES}, float temperature, int[]? window, bool elementwise, bool channels_last"
_INPUTS = "Tensor q, Tensor? p, Tensor? source"
_OUTPUTS = ", ".join(f"Tensor {name}" for name in StepOutputs._fields)
_GRADS = ", ".join(f"Tensor? grad_{name}" for name in StepGrads._fields)
_NEEDS = "bool needs_q, bool needs_p, bool needs_latent"

torch.library.define(f"{NAMESPACE}::step", f"({_INPUTS}, {_STEP}) -> ({_OUTPUTS})")
torch.library.define(
    f"{NAMESPACE}::step_backward",
    f"({_INPUTS}, {_GRADS}, {_NEEDS}, {_STEP}) -> (Tensor grad_q, Tensor grad_p, Tensor grad_latent)",
)
torch.library.define(f"{NAMESPACE}::sample", f"(Tensor q, Tensor? source, {_STEP}) -> Tensor")
# In the order in which csrc/autograd.h has the arguments: inputs, the step as `native.Functions` gave it, gradients.
torch.library.define(
    f"{NAMESPACE}::plain_backward",
    f"({_INPUTS}, {_NATIVE_STEP}, {_GRADS}, {_NEEDS}) -> (Tensor? grad_q, Tensor? grad_p, Tensor? grad_latent)",
)


def step(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step, backend: str) -> tuple[Any, ...]:
    """The entries of `StepOutputs`, through the operator."""
    return _wanted(torch.ops.ladder_kernels.step.default(q, p, source, *arguments(step, backend)), step)


def sample(q: Tensor, source: Tensor | None, step: Step, backend: str) -> Tensor:
    """z, through the operator."""
    return torch.ops.ladder_kernels.sample.default(q, source, *arguments(step, backend))


def arguments(step: Step, backend: str) -> tuple[Any, ...]:
    """Those of an operator after its tensors.

    The temperature is a tensor: a graph would be compiled anew for every value of a number. No window is an empty list:
    the C++ that Inductor writes cannot pass a list that may be absent.
    """
    temperature = None if step.temperature == 1.0 else torch.ones((), dtype=torch.float64, device="cpu") * step.temperature
    # In the order of `Step`; not its _replace, which older compilers do not trace.
    return (
        step.draw,
        step.kl,
        *step.variance.fields(),
        temperature,
        step.window or (),
        step.elementwise,
        step.channels_last,
        backend,
    )


@torch.library.impl(f"{NAMESPACE}::step", "CompositeExplicitAutograd")
def _step(q: Tensor, p: Tensor | None, source: Tensor | None, *step_and_backend: Any) -> tuple[Tensor, ...]:
    step, backend = _parse_real(step_and_backend)
    return tuple(_or_empty(out, q) for out in load(backend).forward(q, p, source, step))


@torch.library.impl(f"{NAMESPACE}::step_backward", "CompositeExplicitAutograd")
def _step_backward(q: Tensor, p: Tensor | None, source: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    grads, needs, (step, backend) = StepGrads(*rest[:8]), rest[8:11], _parse_real(rest[11:])
    found = load(backend).backward(q, p, source, step, grads, needs)
    return tuple(_or_empty(grad, q) for grad in with_zeros(found, (q, p, source), step, needs))


@torch.library.impl(f"{NAMESPACE}::sample", "CompositeExplicitAutograd")
def _sample(q: Tensor, source: Tensor | None, *step_and_backend: Any) -> Tensor:
    step, backend = _parse_real(step_and_backend)
    return load(backend).sample(q, source, step)


@torch.library.impl(f"{NAMESPACE}::plain_backward", "CompositeImplicitAutograd")
def _plain_backward(q: Tensor, p: Tensor | None, source: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
    (step, _), grads, needs = _parse((*rest[:-11], "torch")), StepGrads(*rest[-11:-3]), rest[-3:]
    differentiable = torch.is_grad_enabled()
    backward = torch_backend.differentiable_backward if differentiable else torch_backend.backward
    return backward(q, p, source, step, grads, needs)


@torch.library.register_fake(f"{NAMESPACE}::step")
def _fake_step(q: Tensor, p: Tensor | None, source: Tensor | None, *step_and_backend: Any) -> tuple[Tensor, ...]:
    step, _ = _parse(step_and_backend)
    shape, dtype = latent_shape(q), compute_dtype(q, p, source)
    every = StepOutputs(
        z=_empty_dense(q, shape, q.dtype, step),
        kl_samplewise=q.new_empty(shape[0], dtype=dtype),
        kl_samplewise_restricted=q.new_empty(shape[0], dtype=dtype),
        kl_channelwise=q.new_empty(shape[:2], dtype=dtype),
        kl_spatial=q.new_empty((shape[0], *shape[2:]), dtype=dtype),
        logprob_q=q.new_empty(shape[0], dtype=dtype),
        qvar_max=q.new_empty((), dtype=dtype),
        kl_elementwise=_empty_dense(q, shape, dtype, step),
    )
    return tuple(_or_empty(out, q) for out in _wanted(every, step))


@torch.library.register_fake(f"{NAMESPACE}::step_backward")
def _fake_step_backward(q: Tensor, p: Tensor | None, source: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    needs, (step, _) = rest[8:11], _parse(rest[11:])
    return tuple(
        _empty_dense(q, like.shape, like.dtype, step) if need and like is not None else q.new_empty(0)
        for like, need in zip((q, p, source), needs, strict=True)
    )


@torch.library.register_fake(f"{NAMESPACE}::sample")
def _fake_sample(q: Tensor, source: Tensor | None, *step_and_backend: Any) -> Tensor:
    step, _ = _parse(step_and_backend)
    return _empty_dense(q, latent_shape(q), q.dtype, step)


def _set_up_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, p, source, *ctx.step_and_backend = inputs
    ctx.save_for_backward(q, p, source)
    ctx.mark_non_differentiable(output[StepOutputs._fields.index("qvar_max")])
    ctx.set_materialize_grads(False)


def _differentiate_step(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    step, _ = _parse(ctx.step_and_backend)
    found = _gradients(ctx, ctx.saved_tensors, _wanted(grads, step), ctx.needs_input_grad[:3])
    return (*found, *[None] * len(ctx.step_and_backend))


def _set_up_sample(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, source, *ctx.step_and_backend = inputs
    ctx.save_for_backward(q, source)


def _differentiate_sample(ctx: Any, grad_z: Tensor) -> tuple[Any, ...]:
    q, source = ctx.saved_tensors
    grad_q, _, _ = _gradients(ctx, (q, None, source), StepGrads(z=grad_z), (True, False, False))
    return (grad_q, None, *[None] * len(ctx.step_and_backend))


def _gradients(ctx: Any, inputs: tuple[Any, ...], grads: Sequence[Any], needs: tuple[bool, bool, bool]) -> Any:
    """Those at q, p and source, None where not needed."""
    q, p, source = inputs
    if torch.is_grad_enabled():
        step, _ = _parse(ctx.step_and_backend)
        return torch_backend.differentiable_backward(q, p, source, step, StepGrads(*grads), needs)
    found = torch.ops.ladder_kernels.step_backward.default(q, p, source, *grads, *needs, *ctx.step_and_backend)
    return [grad if need else None for grad, need in zip(found, needs, strict=True)]


torch.library.register_autograd(f"{NAMESPACE}::step", _differentiate_step, setup_context=_set_up_step)
torch.library.register_autograd(f"{NAMESPACE}::sample", _differentiate_sample, setup_context=_set_up_sample)


def _parse(step_and_backend: Sequence[Any]) -> tuple[Step, str]:
    """The step and the backend from `arguments`; a temperature stays a tensor, which may be a fake one."""
    draw, kl, kind, raw_min, raw_max, beta, floor, temperature, window, elementwise, channels_last, backend = (
        step_and_backend
    )
    step = Step(
        draw,
        kl,
        VarianceMap(kind, raw_min=raw_min, raw_max=raw_max, beta=beta, floor=floor),
        temperature=1.0 if temperature is None else temperature,
        window=tuple(window) if window else None,
        elementwise=elementwise,
        channels_last=channels_last,
    )
    return step, backend


_parse_again = functools.lru_cache(maxsize=256)(_parse)


def _parse_real(step_and_backend: Sequence[Any]) -> tuple[Step, str]:
    """With numbers for what may be a tensor or symbolic; made once for all calls that ask for the same."""
    *choices, temperature, window, elementwise, channels_last, backend = step_and_backend
    temperature = 1.0 if temperature is None else float(temperature)
    return _parse_again((*choices, temperature, tuple(window), elementwise, channels_last, backend))


def _wanted(outputs: Sequence[Any], step: Step) -> tuple[Any, ...]:
    """What belongs to the outputs (or their gradients) that the step has; None for the others."""
    kl = step.kl != "none"
    has = {
        "z": step.draw != "latent",
        "kl_samplewise": kl,
        "kl_samplewise_restricted": kl and step.window is not None,
        "kl_channelwise": kl,
        "kl_spatial": kl,
        "logprob_q": True,
        "qvar_max": True,
        "kl_elementwise": kl and step.elementwise,
    }
    return tuple(out if has[name] else None for name, out in zip(StepOutputs._fields, outputs, strict=True))


def _or_empty(tensor: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty(0) if tensor is None else tensor


def _empty_dense(q: Tensor, shape: Sequence[int], dtype: torch.dtype, step: Step) -> Tensor:
    """As every backend lays out z, the elementwise KL and the gradients."""
    return in_memory_order(q.new_empty(math.prod(shape), dtype=dtype), shape, step.channels_last)
