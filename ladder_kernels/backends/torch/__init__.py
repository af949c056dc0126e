"""Plain PyTorch on any device: the oracle in float64, the fallback everywhere, the eager baseline in benchmarks.

`forward` is differentiable by autograd (second derivatives go through it); `backward` is derived by hand. Both are
traced by compilers and transformed by torch.func, so nothing is written in place.
"""

import math

import torch
from torch import Tensor

from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.backends.torch.formulas import (
    Gaussian,
    kl_analytic,
    log_density,
    log_variance_slope,
    max_log_variance,
    variance_ratio,
)
from ladder_kernels.geometry import dense, in_memory_order, inside_window, latent_shape, windowed
from ladder_kernels.noise import philox_normal

NAME = "torch"


def unavailable() -> str | None:
    return None


def unsupported(q: Tensor, p: Tensor | None, source: Tensor | None) -> str | None:
    return None


def forward(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
    dtype = compute_dtype(q, p, source)
    posterior = _gaussian(q, step, dtype)
    eps, z = _draw(posterior, q, source, step, dtype)
    log_q = log_density(eps * eps, posterior)
    kl = _kl(posterior, _prior(p, q, step, dtype), log_q, z, step) if step.kl != "none" else None
    count = math.prod(latent_shape(q)[1:])
    kl_channelwise = None if kl is None else kl.flatten(2).sum(2)
    return StepOutputs(
        z=None if step.draw == "latent" else dense(z.to(q.dtype), step.channels_last),
        kl_samplewise=None if kl_channelwise is None else kl_channelwise.sum(1),
        kl_restricted=None if kl is None or step.window is None else windowed(kl, step.window).flatten(1).sum(1),
        kl_channelwise=kl_channelwise,
        kl_spatial=None if kl is None else kl.sum(1),
        logprob_q=log_q.flatten(1).sum(1) - count * 0.5 * math.log(2 * math.pi),
        qvar_max=max_log_variance(posterior.logvar, step.stable),
        kl_elementwise=dense(kl, step.channels_last) if kl is not None and step.elementwise else None,
    )


def _kl(posterior: Gaussian, prior: Gaussian, log_q: Tensor, z: Tensor, step: Step) -> Tensor:
    """Of every element (B, C, *S)."""
    if step.kl == "analytic":
        return kl_analytic(posterior, prior, step.stable)
    return log_q - log_density(prior.over_std(z - prior.mean).square(), prior)


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    dtype = compute_dtype(q, source)
    _, z = _draw(_gaussian(q, step, dtype), q, source, step, dtype)
    return dense(z.to(q.dtype), step.channels_last)


def backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by hand, with grad l = (d log v / d l) * grad log v so that nothing divides by v.

    The gradient of a KL is halved first, so that no product overflows where the result does not.
    """
    dtype = compute_dtype(q, p, source)
    posterior = _gaussian(q, step, dtype)
    eps, z = _draw(posterior, q, source, step, dtype)
    grad_kl = _incoming_kl(grads, step, latent_shape(q), dtype)
    grad_log_q = None if grads.logprob_q is None else _per_sample(grads.logprob_q, q.dim())

    # Gradients of z, of the means and of log v, each a sum of the terms whose incoming gradient is there.
    to_z = [] if grads.z is None else [grads.z.to(dtype)]
    to_mean: list[Tensor] = []
    to_log_q = [] if grad_log_q is None else [grad_log_q]
    to_q_log_var: list[Tensor] = []
    prior = p_mean = p_log_var = None
    if grad_kl is not None:
        prior = _prior(p, q, step, dtype)
        half_kl = 0.5 * grad_kl
        residual = prior.over_std((posterior.mean if step.kl == "analytic" else z) - prior.mean)
        pull = prior.over_std(grad_kl * residual)
        p_mean = -pull
        if step.kl == "analytic":
            ratio = variance_ratio(posterior, prior, step.stable).minus_one
            to_mean.append(pull)
            to_q_log_var.append(half_kl * ratio)
            p_log_var = -half_kl * ratio - half_kl * residual * residual
        else:
            to_z.append(pull)
            to_log_q.append(grad_kl)
            p_log_var = half_kl - half_kl * residual * residual

    if step.draw == "latent":
        # z is an input: log q depends on it, on the mean and on the std through eps = (z - mean) / std.
        if to_log_q:
            weight = _sum(to_log_q)
            score = posterior.over_std(weight * eps)
            to_mean.append(score)
            to_z.append(-score)
            to_q_log_var.append(0.5 * weight * (eps * eps - 1))
    else:
        # z = mean + std eps: eps is a constant, so log q depends on the std alone.
        if to_z:
            through_z = _sum(to_z)
            to_mean.append(through_z)
            if step.draw != "mode":
                to_q_log_var.append(0.5 * through_z * (eps * posterior.std))
        if to_log_q:
            to_q_log_var.append(-0.5 * _sum(to_log_q))

    grad_q = _packed_grad(to_mean, to_q_log_var, posterior, q, step) if needs[0] else None
    grad_p = None
    if needs[1] and p is not None and prior is not None and p_mean is not None and p_log_var is not None:
        grad_p = _packed_grad([p_mean], [p_log_var], prior, p, step)
    grad_latent = None
    if needs[2] and source is not None and to_z:
        grad_latent = dense(_sum(to_z).expand(source.shape).to(source.dtype), step.channels_last)
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


def _gaussian(packed: Tensor, step: Step, dtype: torch.dtype) -> Gaussian:
    mean, logvar = packed.to(dtype).chunk(2, dim=1)
    return Gaussian.from_raw(mean, logvar, step.logvar_max, step.stable)


def _prior(p: Tensor | None, q: Tensor, step: Step, dtype: torch.dtype) -> Gaussian:
    return Gaussian.standard(q.new_empty((), dtype=dtype)) if p is None else _gaussian(p, step, dtype)


def _draw(
    gaussian: Gaussian, packed: Tensor, source: Tensor | None, step: Step, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The standardised residual eps = (z - mean) / std, temperature included, and z."""
    if source is None:
        # A copy: z must not be a view of the parameters.
        return gaussian.mean.new_zeros(()), gaussian.mean.clone()
    if step.draw == "latent":
        z = source.to(dtype)
        return gaussian.over_std(z - gaussian.mean), z
    if step.draw == "seed":
        shape = latent_shape(packed)
        source = in_memory_order(philox_normal(source, math.prod(shape), dtype), shape, step.channels_last)
    eps = source.to(dtype)
    if step.temperature != 1.0:
        eps = eps * step.temperature
    return eps, gaussian.mean + gaussian.std * eps


def _incoming_kl(grads: StepGrads, step: Step, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The gradient of the elementwise KL, broadcastable to (B, C, *S); None if no KL output was used."""
    terms = []
    if grads.kl_samplewise is not None:
        terms.append(_per_sample(grads.kl_samplewise, len(shape)))
    if grads.kl_channelwise is not None:
        terms.append(grads.kl_channelwise.reshape(*shape[:2], *[1] * (len(shape) - 2)))
    if grads.kl_restricted is not None and step.window is not None:
        inside = inside_window(shape[2:], step.window, grads.kl_restricted.device)
        terms.append(torch.where(inside, _per_sample(grads.kl_restricted, len(shape)), 0.0))
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


def _packed_grad(
    to_mean: list[Tensor], to_log_var: list[Tensor], gaussian: Gaussian, packed: Tensor, step: Step
) -> Tensor:
    """Both halves of a packed gradient; `to_log_var` ends at log v and is led on to the raw log-variance."""
    grad_mean = _sum(to_mean) if to_mean else gaussian.mean.new_zeros(())
    grad_logvar = gaussian.mean.new_zeros(())
    if to_log_var:
        grad_logvar = _sum(to_log_var) * log_variance_slope(gaussian, step.stable)
        if step.logvar_max is not None:
            # Not `logvar <= max`: a NaN must stay one.
            raw = packed.chunk(2, dim=1)[1].to(gaussian.mean.dtype)  # the bound may have no 16-bit value
            grad_logvar = torch.where(raw > step.logvar_max, 0.0, grad_logvar)
    half = latent_shape(packed)
    halves = [_to_shape(grad, half).to(packed.dtype) for grad in (grad_mean, grad_logvar)]
    return dense(torch.cat(halves, dim=1), step.channels_last)


def _to_shape(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums a gradient over the batch if the parameter has batch 1, broadcasts it where it is smaller."""
    if shape[0] == 1 and grad.dim() and grad.shape[0] != 1:
        grad = grad.sum(0, keepdim=True)
    return grad.expand(shape)
