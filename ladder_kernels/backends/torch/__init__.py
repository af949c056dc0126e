"""Plain PyTorch on any device: the oracle in float64, the fallback everywhere, the eager baseline in benchmarks.

`forward` is differentiable by autograd (second derivatives go through it); `backward` is derived by hand. Both are
traced by compilers and transformed by torch.func, so nothing is written in place.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends.step import HALF_LOG_TWO_PI, Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.backends.torch.formulas import (
    Gaussian,
    IncomingGradients,
    Latent,
    divergence,
    draw_latent,
    gaussian,
    log_density,
    standard_normal,
    step_gradients,
)
from ladder_kernels.geometry import dense, in_memory_order, inside_window, latent_shape, windowed
from ladder_kernels.noise import philox_normal
from ladder_kernels.variance import VarianceMap

NAME = "torch"


def unavailable() -> str | None:
    return None


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    return None


def forward(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
    dtype = compute_dtype(q, p, source)
    posterior = _gaussian(q, step, dtype)
    latent = _draw(posterior, q, source, step, dtype)
    log_q = log_density(latent.eps, posterior)
    kl = None
    if step.kl != "none":
        kl = divergence(posterior, _prior(p, q, step, dtype), latent, step.kl == "analytic")
    # torch.jit.trace has sizes as tensors: an integer one times a number would be of the default dtype.
    count: Any = math.prod(latent_shape(q)[1:])
    count = count.to(dtype) if isinstance(count, Tensor) else count
    kl_channelwise = None if kl is None else kl.flatten(2).sum(2)
    return StepOutputs(
        z=None if step.draw == "latent" else dense(latent.z.to(q.dtype), step.channels_last),
        kl_samplewise=None if kl_channelwise is None else kl_channelwise.sum(1),
        kl_samplewise_restricted=None
        if kl is None or step.window is None
        else windowed(kl, step.window).flatten(1).sum(1),
        kl_channelwise=kl_channelwise,
        kl_spatial=None if kl is None else kl.sum(1),
        logprob_q=log_q.flatten(1).sum(1) - count * HALF_LOG_TWO_PI,
        logvar_max=largest_log_var(q, step.variance, dtype),
        kl_elementwise=dense(kl, step.channels_last) if kl is not None and step.elementwise else None,
    )


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    dtype = compute_dtype(q, source)
    z = _draw(_gaussian(q, step, dtype), q, source, step, dtype).z
    return dense(z.to(q.dtype), step.channels_last)


def backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dtype = compute_dtype(q, p, source)
    posterior = _gaussian(q, step, dtype)
    incoming = IncomingGradients(
        z=None if grads.z is None else grads.z.to(dtype),
        kl=_incoming_kl(grads, step, latent_shape(q), dtype),
        log_q=None if grads.logprob_q is None else _per_sample(grads.logprob_q, q.dim()),
    )
    prior = _prior(None if incoming.kl is None else p, q, step, dtype)
    latent = _draw(posterior, q, source, step, dtype)
    found = step_gradients(posterior, prior, latent, step.draw, step.kl == "analytic", incoming)

    grad_q = _packed_grad(found.q_mean, found.q_raw, q, step) if needs[0] else None
    grad_p = None
    if needs[1] and p is not None and found.p_mean is not None:
        grad_p = _packed_grad(found.p_mean, found.p_raw, p, step)
    grad_latent = None
    if needs[2] and source is not None and found.latent is not None:
        grad_latent = dense(found.latent.expand(source.shape).to(source.dtype), step.channels_last)
    return grad_q, grad_p, grad_latent


def differentiable_backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The same gradients by autograd of `forward`, so that they have gradients themselves."""
    # Fresh aliases, so that a p computed from q does not count q's gradient twice.
    q, p, source = q.view_as(q), *(None if x is None else x.view_as(x) for x in (p, source))
    outputs = forward(q, p, source, step)
    # What depends on no input here (z, where p alone needs a gradient) has none.
    used = [
        (out, grad)
        for out, grad in zip(outputs, grads, strict=True)
        if out is not None and grad is not None and out.requires_grad
    ]
    wanted = [x for x, need in zip((q, p, source), needs, strict=True) if x is not None and need]
    found: list[Tensor | None] = [None] * len(wanted)
    if used:
        outs, incoming = zip(*used, strict=True)
        found = list(torch.autograd.grad(outs, wanted, incoming, create_graph=True, allow_unused=True))
    filled = iter([torch.zeros_like(x) if grad is None else grad for x, grad in zip(wanted, found, strict=True)])
    return tuple(
        next(filled) if x is not None and need else None for x, need in zip((q, p, source), needs, strict=True)
    )


def largest_log_var(packed: Tensor, variance: VarianceMap, dtype: torch.dtype) -> Tensor:
    """The largest log-variance () of packed parameters, detached; maps are monotone, so that of the largest raw value.

    -inf where there is none; NaN propagates.
    """
    raw = packed.detach().chunk(2, dim=1)[1]
    if raw.numel() == 0:
        return packed.new_full((), -math.inf, dtype=dtype)
    largest = raw.max().to(dtype)
    return gaussian(largest, largest, variance).log_var


def _gaussian(packed: Tensor, step: Step, dtype: torch.dtype) -> Gaussian:
    mean, raw = packed.to(dtype).chunk(2, dim=1)
    return gaussian(mean, raw, step.variance)


def _prior(p: Tensor | None, q: Tensor, step: Step, dtype: torch.dtype) -> Gaussian:
    return standard_normal(q.new_empty((), dtype=dtype)) if p is None else _gaussian(p, step, dtype)


def _draw(posterior: Gaussian, q: Tensor, source: Tensor | None, step: Step, dtype: torch.dtype) -> Latent:
    if step.draw == "seed" and source is not None:
        shape = latent_shape(q)
        source = in_memory_order(philox_normal(source, math.prod(shape), dtype), shape, step.channels_last)
    return draw_latent(posterior, step.draw, None if source is None else source.to(dtype), step.temperature)


def _incoming_kl(grads: StepGrads, step: Step, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The gradient of the elementwise KL, broadcastable to (B, C, *S); None if no KL output was used."""
    terms = []
    if grads.kl_samplewise is not None:
        terms.append(_per_sample(grads.kl_samplewise, len(shape)))
    if grads.kl_channelwise is not None:
        terms.append(grads.kl_channelwise.reshape(*shape[:2], *[1] * (len(shape) - 2)))
    if grads.kl_samplewise_restricted is not None and step.window is not None:
        inside = inside_window(shape[2:], step.window, grads.kl_samplewise_restricted.device)
        terms.append(torch.where(inside, _per_sample(grads.kl_samplewise_restricted, len(shape)), 0.0))
    if grads.kl_spatial is not None:
        terms.append(grads.kl_spatial.unsqueeze(1))
    if grads.kl_elementwise is not None:
        terms.append(grads.kl_elementwise)
    return _sum(terms).to(dtype) if terms else None


def _per_sample(values: Tensor, dims: int) -> Tensor:
    return values.reshape(-1, *[1] * (dims - 1))


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _packed_grad(grad_mean: Tensor | None, grad_raw: Tensor | None, packed: Tensor, step: Step) -> Tensor:
    """Both halves of a packed gradient; zeros where nothing arrives."""
    shape = latent_shape(packed)
    halves = [
        packed.new_zeros(shape) if grad is None else _to_shape(grad, shape).to(packed.dtype)
        for grad in (grad_mean, grad_raw)
    ]
    return dense(torch.cat(halves, dim=1), step.channels_last)


def _to_shape(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums a gradient over the batch if the parameter has batch 1, broadcasts it where it is smaller."""
    if shape[0] == 1 and grad.dim() and grad.shape[0] != 1:
        grad = grad.sum(0, keepdim=True)
    return grad.expand(shape)
