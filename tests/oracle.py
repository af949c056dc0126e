"""The plain formula, written with torch.distributions and differentiated by autograd: exact in float64.

Independent of the package on purpose, but for the names of the variance maps.
Evaluated in float64 it is the truth, in float32 it is "plain PyTorch".
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from ladder_kernels.variance import VarianceMap

# How many roundings of the largest value a result may be off by, beyond plain PyTorch's own error. On a GPU exp, log
# and the roots are single instructions, each of which is off by up to two, and a gradient is made of several.
SLACK = 16.0 if torch.cuda.is_available() else 4.0

OUTPUTS = (
    "z",
    "kl_samplewise",
    "kl_samplewise_restricted",
    "kl_channelwise",
    "kl_spatial",
    "logprob_q",
    "kl_elementwise",
)


def normal(packed: Tensor, variance: VarianceMap) -> Normal:
    mean, raw = packed.chunk(2, dim=1)
    # Not clamp: its gradient at the bound depends on torch's version.
    if variance.raw_min is not None:
        raw = torch.where(raw < variance.raw_min, variance.raw_min, raw)
    if variance.raw_max is not None:
        raw = torch.where(raw > variance.raw_max, variance.raw_max, raw)
    return Normal(mean, std(raw, variance), validate_args=False)


def std(raw: Tensor, variance: VarianceMap) -> Tensor:
    """Of the raw parameter after the clamp."""
    match variance.kind:
        case "stable":
            return (torch.where(raw > 0, 1 + raw, torch.where(raw > 0, 0.0, raw).exp()) + variance.floor).sqrt()
        case "exp":
            return (raw / 2).exp()
        case "logstd":
            return raw.exp()
        case "softplus":
            # Not torch.nn.functional.softplus, which the package uses, and which is linear beyond a threshold.
            return torch.logaddexp(torch.zeros_like(raw), variance.beta * raw) / variance.beta + variance.floor
    raise AssertionError(variance.kind)


def step(
    q_params: Tensor,
    p_params: Tensor | None,
    *,
    analytical_kl: bool = False,
    variance: VarianceMap = VarianceMap("exp"),  # noqa: B008  # frozen, so one default may serve all
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    mode: bool = False,
    temperature: float = 1.0,
    window: int | None = None,
) -> dict[str, Tensor]:
    """The differentiable outputs of `normal_sample_kl`, and `logvar_max`."""
    q = normal(q_params, variance)
    zero = torch.zeros_like(q.mean)
    p = normal(p_params, variance) if p_params is not None else Normal(zero, zero + 1, validate_args=False)
    if latent is not None:
        z, eps = latent, (latent - q.mean) / q.stddev
    else:
        eps = zero if mode else temperature * noise
        z = q.mean + q.stddev * eps
    log_q = -(eps**2) / 2 - q.stddev.log() - torch.tensor(2 * torch.pi, dtype=torch.float64).log().item() / 2
    kl = kl_divergence(q, p) if analytical_kl else log_q - p.log_prob(z)
    return {
        "z": z,
        "kl_samplewise": kl.flatten(1).sum(1),
        "kl_samplewise_restricted": centred(kl, window).flatten(1).sum(1),
        "kl_channelwise": kl.flatten(2).sum(2),
        "kl_spatial": kl.sum(1),
        "logprob_q": log_q.flatten(1).sum(1),
        "kl_elementwise": kl,
        "logvar_max": (2 * q.stddev.log()).max().detach() if kl.numel() else torch.tensor(-torch.inf),
    }


def centred(kl: Tensor, window: int | None) -> Tensor:
    """The centred window, a dim at a time."""
    if window is None:
        return kl
    for dim in range(max(2, kl.dim() - 2), kl.dim()):
        pad = max(0, (kl.shape[dim] - window) // 2)
        kl = kl.narrow(dim, pad, kl.shape[dim] - 2 * pad)
    return kl


def mixture_log_likelihood(
    x: Tensor,
    signal: Tensor,
    weight: Tensor,
    *,
    min_signal: Any,
    max_signal: Any,
    min_sigma: Any,
    tolerance: float = 1e-10,
    mean: Any = 0.0,
    std: Any = 1.0,
) -> Tensor:
    """Channel by channel; the constants are numbers, or lists of one for each channel."""
    constants = (min_signal, max_signal, min_sigma, mean, std)
    per_channel = zip(*(c if isinstance(c, list) else [c] * x.shape[1] for c in constants), strict=True)
    found = []
    for channel, (low, high, floor, mean, std) in enumerate(per_channel):
        of_x, of_signal = (each[:, channel, ..., None] * std + mean for each in (x, signal))
        t = (of_signal - low) / (high - low)
        means, log_vars, logits = (rows.unbind(-1) for rows in weight[channel].chunk(3))
        offset = sum(c * t**i for i, c in enumerate(means))
        variance = sum(c.exp() * t**i for i, c in enumerate(log_vars))
        variance = torch.where(variance < floor, floor, variance)
        mixing = Categorical(logits=sum(c * t**i for i, c in enumerate(logits)) + 0 * t, validate_args=False)
        centre = (mixing.probs * offset).sum(-1, keepdim=True)
        components = Normal(of_signal + offset - centre, variance.sqrt(), validate_args=False)
        density = MixtureSameFamily(mixing, components, validate_args=False).log_prob(of_x[..., 0])
        found.append(torch.logaddexp(density, torch.tensor(tolerance, dtype=density.dtype).log()))
    return torch.stack(found, 1)


def gradients(outputs: dict[str, Tensor], inputs: list[Tensor], incoming: dict[str, Tensor]) -> list[Tensor]:
    """The gradients at `inputs` (zero where nothing arrives) of the outputs named in `incoming`."""
    found = torch.autograd.grad(
        [outputs[name] for name in incoming],
        inputs,
        [incoming[name].to(outputs[name].dtype) for name in incoming],
        allow_unused=True,
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def cast(tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Leaf copies in another dtype; whatever is no tensor as it is."""
    return {k: v.detach().to(dtype) if isinstance(v, Tensor) else v for k, v in tensors.items()}


def truncated(tensor: Tensor) -> Tensor:
    """To bfloat16 without rounding, as Triton's interpreter stores it (a GPU rounds)."""
    return (tensor.float().view(torch.int32) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def assert_as_exact_as_plain(
    name: str, ours: Tensor, plain: Tensor, exact: Tensor, slack: float = SLACK, truncates: bool = False
) -> None:
    """The bound of every fast path: at most twice plain PyTorch's error, plus `slack` roundings of the largest value.

    `plain` is rounded to our dtype first, so that a 16-bit output is not charged for its own rounding.
    """
    stored = truncated(plain) if truncates and ours.dtype == torch.bfloat16 else plain.to(ours.dtype)
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    exact = exact.double()
    finite = exact.isfinite()
    assert torch.equal(ours[~finite].double(), exact[~finite]), f"{name}: differs where the truth is not finite"
    if not finite.any():
        return
    ours, stored, exact = ours[finite], stored[finite], exact[finite]
    error = (ours.double() - exact).abs().max().item()
    plain_error = (stored.double() - exact).abs().max().item()
    scale = exact.abs().max().item()
    bound = 2 * plain_error + slack * torch.finfo(plain.dtype).eps * scale
    assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g} (plain {plain_error:.3g}, scale {scale:.3g})"
