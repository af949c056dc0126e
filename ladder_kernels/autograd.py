"""From the public functions to a backend: eagerly through autograd, else as what can be traced.

Autograd is a Function here, or for the native ops csrc/autograd.h, which does the same in C++. Either keeps the packed
parameters and the noise, seed or given latent: nothing else of the latent's size.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ladder_kernels import ops
from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.select import choose, choose_while_tracing, makes_noise
from ladder_kernels.backends.step import Step, StepGrads, compute_dtype, with_zeros
from ladder_kernels.geometry import latent_shape
from ladder_kernels.noise import draw_noise, draw_seed

Tensors = tuple[Any, ...]


class Route(NamedTuple):
    """How a call is served: eagerly, as an operator that somebody records, or by the plain formula that anybody can."""

    backend: str
    makes_noise: bool
    """Whether fresh noise is Philox by default: where the backend that serves makes it in a kernel."""
    eager: ModuleType | None = None
    plain: bool = False


def route(q: Tensor, p: Tensor | None = None) -> Route:
    """The route of a call with these parameters; what z comes from is like them, and may be yet to be drawn."""
    if torch.compiler.is_compiling():
        name = choose_while_tracing(q.device.type)
        # A compiler sees into plain torch and fuses it; any other backend is an operator to it.
        plain = name == "torch" or _is_transformed() or torch.onnx.is_in_onnx_export()
        return Route(name, makes_noise(name), plain=plain)
    backend = choose(q, p, None)
    if _is_transformed() or torch._C._is_tracing():  # torch.jit.trace writes down ATen calls
        return Route(backend.NAME, makes_noise(backend.NAME), plain=True)
    are_plain = type(q) in _PLAIN and type(p) in _PLAIN
    if not are_plain or torch._C._len_torch_dispatch_stack():  # make_fx, fake tensors
        return Route(backend.NAME, makes_noise(backend.NAME), plain=backend is torch_backend)
    return _eager_route(backend)


@functools.cache
def _eager_route(backend: ModuleType) -> Route:
    return Route(backend.NAME, makes_noise(backend.NAME), backend)


def run_step(route: Route, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> Tensors:
    """The entries of `StepOutputs`, differentiable. Noise, or a seed, that the step needs and is not given is drawn."""
    if route.eager is not None and route.eager.DIFFERENTIABLE:
        return route.eager.forward(q, p, source, step)
    source = source_or_fresh(q, source, step.draw)
    if route.eager is not None:
        return NormalSampleKL.apply(q, p, source, step, route.eager)
    return torch_backend.forward(q, p, source, step) if route.plain else ops.step(q, p, source, step, route.backend)


def run_sample(route: Route, q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    """z, differentiable; `source` as in `run_step`."""
    if route.eager is not None and route.eager.DIFFERENTIABLE:
        return route.eager.sample(q, source, step)
    source = source_or_fresh(q, source, step.draw)
    if route.eager is not None:
        return NormalSample.apply(q, source, step, route.eager)
    return torch_backend.sample(q, source, step) if route.plain else ops.sample(q, source, step, route.backend)


def source_or_fresh(q: Tensor, source: Tensor | None, draw: str) -> Tensor | None:
    """`source`, or where there is none what `Step.draw` asks for: a seed, or noise, that torch's generator draws."""
    if source is not None or draw not in ("noise", "seed"):
        return source
    return draw_seed(q.device) if draw == "seed" else draw_noise(latent_shape(q), compute_dtype(q), q.device)


def _is_transformed() -> bool:
    """Whether torch differentiates or transforms what it sees: torch.func and duals."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


_PLAIN = frozenset((Tensor, nn.Parameter, type(None)))


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
        found = step_gradients(ctx.backend, ctx.saved_tensors, ctx.step, StepGrads(*grads), ctx.needs_input_grad[:3])
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
        needs = (True, False, False)
        grad_q, _, _ = step_gradients(ctx.backend, (q, None, source), ctx.step, StepGrads(z=grad_z), needs)
        return grad_q, None, None, None


def step_gradients(
    backend: ModuleType, inputs: Tensors, step: Step, grads: StepGrads, needs: tuple[bool, bool, bool]
) -> Tensors:
    """The gradients at q, p and source: the backend's, or plain torch's where they are differentiated or batched."""
    q, p, source = inputs
    if torch.is_grad_enabled():
        return torch_backend.differentiable_backward(q, p, source, step, grads, needs)
    if torch._C._are_functorch_transforms_active() or any(map(_is_batched, grads)):
        backend = torch_backend
    return with_zeros(backend.backward(q, p, source, step, grads, needs), inputs, step, needs)


def _is_batched(grad: Tensor | None) -> bool:
    """Whether it is one of several at once: `torch.autograd.grad(..., is_grads_batched=True)`."""
    return grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad)
