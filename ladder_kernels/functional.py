"""The public functions: arguments are checked and say what is wanted; `autograd` does it."""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder_kernels.autograd import run
from ladder_kernels.backends.step import DTYPES, Step, StepOutputs
from ladder_kernels.geometry import is_channels_last, latent_shape, restricted_window
from ladder_kernels.variance import VarianceMap, as_number, as_variance

# Python's and a compiler's symbolic ones.
_INTEGERS = (int, torch.SymInt)


class SampleKL(NamedTuple):
    """What `normal_sample_kl` returns. Sums are float32, float64 for float64 inputs."""

    z: Tensor
    """The sample, the mode or the given latent (B, C, *S), in q's dtype (a given latent in its own)."""
    kl_samplewise: Tensor
    """KL summed over the latent (B,), in nats."""
    kl_samplewise_restricted: Tensor
    """KL summed over all channels and the centred window (B,)."""
    kl_channelwise: Tensor
    """KL summed over space (B, C)."""
    kl_spatial: Tensor
    """KL summed over channels (B, *S)."""
    logprob_q: Tensor
    """log q(z), summed over the latent (B,)."""
    logvar_max: Tensor
    """The largest log-variance of q (), without a gradient. -inf for an empty batch."""
    kl_elementwise: Tensor | None
    """The KL of every element (B, C, *S), or None if it was not asked for."""


def normal_sample_kl(
    q_params: Tensor,
    p_params: Tensor | None = None,
    *,
    variance: VarianceMap | str = "exp",
    analytical_kl: bool = False,
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    mode: bool = False,
    temperature: float | Tensor = 1.0,
    window: int | None = None,
    elementwise: bool = False,
) -> SampleKL:
    """Sample z ~ q and compute KL(q || p) with all its reductions, in one pass forward and one backward.

    Parameters
    ----------
    q_params
        Raw parameters of q, packed (B, 2C, *S): means, then raw spreads. float16, bfloat16, float32 or float64;
        S has up to 3 dims; any strides.
    p_params
        The same of the prior p, with batch B or 1 (broadcast). None is the standard normal N(0, I).
    variance
        How the raw spreads of q and p become variances, clamps included; a kind's name is the map without clamps. By
        default the raw spread is the log-variance.
    analytical_kl
        Closed form, `1/2 [vq/vp + (qm - pm)^2/vp - 1 - log(vq/vp)]`; else the one-sample Monte-Carlo estimate
        `log q(z) - log p(z)`, whose gradient includes the score term.
    noise, latent, seed, mode
        Where z comes from; at most one of them. `noise` (B, C, *S): z = mean + temperature * std * noise.
        `latent` (B, C, *S): it is z. `seed`: Philox noise of any integer (modulo 2^64), or of an int64 tensor with
        one element on q's device: the same z on every backend. Another seed for every level and every step: the
        same one gives the same noise. `mode`: z is the mean. None of them: fresh noise, from a seed that torch's
        generator draws where the backend makes Philox noise in its kernel (triton, cuda), else torch's own, the
        numbers that `torch.randn` draws.
    generator
        What fresh noise is drawn from, instead of torch's default generator.
    temperature
        Factor on the noise, a number or a tensor of one element, which gets no gradient. The KL stays that of q and p,
        at the z drawn.
    window
        Side of the centred window in the last two dims for `kl_samplewise_restricted`. None: the whole latent.
    elementwise
        Whether to return `kl_elementwise`.

    Raises
    ------
    ValueError
        Shapes that do not fit, several sources of z, tensors on several devices.
    TypeError
        A dtype that is not one of the four, or an argument that is not what its name asks for.
    BackendUnavailableError
        A backend forced by `use_backend` that cannot take these tensors.
    """
    _check_packed(q_params, "q_params")
    if p_params is not None:
        _check_prior(p_params, q_params)
    draw, source = _source(q_params, noise, latent, seed, mode, generator)
    # By position, here and below: names cost as much as what they name.
    step = Step(
        draw,
        "analytic" if analytical_kl else "monte_carlo",
        as_variance(variance),
        _as_temperature(temperature),
        None if window is None else restricted_window(q_params.shape[2:], _window_side(window)),
        elementwise,
        is_channels_last(q_params),
    )
    z, samplewise, restricted, *others = _run(q_params, p_params, source, step, generator)
    if latent is not None:
        z = latent
    return SampleKL(z, samplewise, samplewise if restricted is None else restricted, *others)


def normal_sample(
    params: Tensor,
    *,
    variance: VarianceMap | str = "exp",
    noise: Tensor | None = None,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    mode: bool = False,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """Sample z (B, C, *S) from packed parameters (B, 2C, *S): prediction and prior sampling, two reads, one write.

    The arguments are those of `normal_sample_kl`, and so are the errors.
    """
    step, source = _sampling(params, noise, None, seed, generator, mode, temperature, variance)
    return _run(params, None, source, step, generator, only_z=True).z


class SampleLogProb(NamedTuple):
    """What `normal_sample_log_prob` returns. The sum is float32, float64 for float64 inputs."""

    z: Tensor
    """The sample, the mode or the given latent (B, C, *S)."""
    logprob: Tensor
    """log N(z), summed over the latent (B,)."""
    logvar_max: Tensor
    """The largest log-variance (), without a gradient. -inf for an empty batch."""


def normal_sample_log_prob(
    params: Tensor,
    *,
    variance: VarianceMap | str = "exp",
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    mode: bool = False,
    temperature: float | Tensor = 1.0,
) -> SampleLogProb:
    """z, its log-density and the largest log-variance in one pass.

    Arguments and errors as of `normal_sample_kl`, which of the same draw gives z bit by bit and log q(z) to rounding:
    it is another kernel.
    """
    step, source = _sampling(params, noise, latent, seed, generator, mode, temperature, variance)
    outputs = _run(params, None, source, step, generator)
    return SampleLogProb(outputs.z if latent is None else latent, outputs.logprob_q, outputs.logvar_max)


def normal_log_prob(params: Tensor, z: Tensor, *, variance: VarianceMap | str = "exp") -> Tensor:
    """log N(z) (B,) of a latent z (B, C, *S), summed over it, in nats; differentiable in both.

    Arguments and errors as of `normal_sample_kl`.
    """
    return normal_sample_log_prob(params, variance=variance, latent=z).logprob


def normal_kl(q_params: Tensor, p_params: Tensor | None = None, *, variance: VarianceMap | str = "exp") -> Tensor:
    """KL(q || p) (B,) in closed form, summed over the latent, in nats; nothing is sampled.

    Arguments and errors as of `normal_sample_kl`, which gives the other sums of it.
    """
    # In the mode, whose z costs a copy of the mean and no number.
    return normal_sample_kl(q_params, p_params, variance=variance, analytical_kl=True, mode=True).kl_samplewise


def _sampling(
    params: Tensor,
    noise: Tensor | None,
    latent: Tensor | None,
    seed: Tensor | int | None,
    generator: torch.Generator | None,
    mode: bool,
    temperature: float | Tensor,
    variance: VarianceMap | str,
) -> tuple[Step, Tensor | None]:
    """The arguments of a sample without a KL, checked, as a step and its source."""
    _check_packed(params, "params")
    draw, source = _source(params, noise, latent, seed, mode, generator)
    step = Step(
        draw,
        "none",
        as_variance(variance),
        _as_temperature(temperature),
        channels_last=is_channels_last(params),
    )
    return step, source


def _run(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    generator: torch.Generator | None,
    only_z: bool = False,
) -> Any:
    """`StepOutputs`; which of them there are is known to whoever made the step."""
    if q.dim() > 2:
        return run(q, p, source, step, generator, only_z)
    # Kernels know at least one spatial dim.
    q, p, source = (None if each is None else each.unsqueeze(-1) for each in (q, p, source))  # type: ignore[assignment]
    outputs = run(q, p, source, step, generator, only_z)._asdict()
    for name in ("z", "kl_spatial", "kl_elementwise"):
        if outputs[name] is not None:
            outputs[name] = outputs[name].squeeze(-1)
    return StepOutputs(**outputs)


def _check_packed(packed: Tensor, name: str) -> None:
    check_tensor(packed, name)
    shape = packed.shape
    if not 2 <= len(shape) <= 5:
        raise ValueError(f"{name} must be (batch, 2 * channels, up to 3 spatial dims), got {tuple(shape)}")
    if shape[1] % 2 or shape[1] == 0:
        raise ValueError(f"{name} packs means and raw spreads, so its channels are even; got {tuple(shape)}")


def check_tensor(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")


def _check_prior(p: Tensor, q: Tensor) -> None:
    check_tensor(p, "p_params")
    # All that can be wrong with a shape is wrong with both, or makes them differ.
    if p.shape != q.shape and (p.shape[1:] != q.shape[1:] or p.shape[0] != 1):
        _check_packed(p, "p_params")
        raise ValueError(
            f"p_params must have q_params' shape, or batch 1; got p_params {tuple(p.shape)}, q_params {tuple(q.shape)}"
        )
    _check_device(p, "p_params", q)


def _check_device(tensor: Tensor, name: str, packed: Tensor) -> None:
    if tensor.device != packed.device:
        raise ValueError(f"{name} is on {tensor.device}, the parameters are on {packed.device}")


def _as_temperature(temperature: float | Tensor) -> float:
    if not isinstance(temperature, Tensor):
        return as_number(temperature, "temperature", "a number or a tensor of one element")
    if temperature.numel() != 1 or temperature.requires_grad:
        raise ValueError(
            "temperature must be a number or a tensor of one element that needs no gradient, got one of shape "
            f"{tuple(temperature.shape)}"
            + (" that requires a gradient: detach it" if temperature.requires_grad else "")
        )
    # A graph keeps the tensor; there, its number is not known yet.
    return temperature.reshape(()) if torch.compiler.is_compiling() else temperature.item()  # type: ignore[return-value]


def _window_side(window: int) -> int:
    side = _as_integer(window, "window", "a positive integer or None")
    if side < 1:
        raise ValueError(f"window must be a positive integer or None, got {side}")
    return side


def _as_integer(value: Any, name: str, expected: str) -> int:
    if isinstance(value, _INTEGERS):
        return value  # type: ignore[return-value]  # a symbolic number acts as one
    try:
        return operator.index(value)  # NumPy's integers
    except TypeError:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__} {value!r}") from None


def _source(
    packed: Tensor,
    noise: Tensor | None,
    latent: Tensor | None,
    seed: Tensor | int | None,
    mode: bool,
    generator: torch.Generator | None,
) -> tuple[Any, Tensor | None]:
    """`Step.draw` and its tensor."""
    if noise is None and latent is None and seed is None and not mode:
        return "fresh", None
    given = [name for name, value in (("noise", noise), ("latent", latent), ("seed", seed)) if value is not None]
    given += ["mode"] if mode else [] if generator is None else ["generator"]
    if len(given) > 1:
        names = "noise, latent, seed, generator, mode"
        raise ValueError(f"z has one source: give at most one of {names}; got {', '.join(given)}")
    if mode:
        return "mode", None
    if seed is not None:
        return "seed", _seed_tensor(seed, packed)
    if noise is not None:
        _check_latent(noise, "noise", packed)
        return "noise", noise
    assert latent is not None  # what is left
    _check_latent(latent, "latent", packed)
    return "latent", latent


def _check_latent(tensor: Tensor, name: str, packed: Tensor) -> None:
    check_tensor(tensor, name)
    if tensor.shape != latent_shape(packed):
        raise ValueError(
            f"{name} must have the latent's shape {latent_shape(packed)} (parameters {tuple(packed.shape)}), "
            f"got {tuple(tensor.shape)}"
        )
    _check_device(tensor, name, packed)
    if name == "noise" and tensor.requires_grad:
        raise ValueError("noise is a constant and gets no gradient: detach it")


def _seed_tensor(seed: Tensor | int, packed: Tensor) -> Tensor:
    if not isinstance(seed, Tensor):
        value = _as_integer(seed, "seed", "an integer or an int64 tensor with one element")
        if not -(2**63) <= value < 2**63:
            value = (value + 2**63) % 2**64 - 2**63
        return torch.tensor(value, dtype=torch.int64, device=packed.device)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ValueError(
            f"seed must be one int64 element, got {seed.numel()} of {seed.dtype} with shape {tuple(seed.shape)}"
        )
    _check_device(seed, "seed", packed)
    return seed
