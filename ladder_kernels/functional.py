"""The public functions: arguments are checked, the noise is chosen, the backend is called."""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder_kernels.autograd import Route, route, run_sample, run_step
from ladder_kernels.backends.step import Step
from ladder_kernels.geometry import is_channels_last, latent_shape, restricted_window
from ladder_kernels.variance import VarianceMap, as_number

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Python's and a compiler's symbolic ones.
_INTEGERS = (int, torch.SymInt)


_DEFAULT = VarianceMap()


class SampleKL(NamedTuple):
    """What `normal_sample_kl` returns. Sums are float32, float64 for float64 inputs."""

    z: Tensor
    """The sample, the mode or the given latent (B, C, *S), in q's dtype (a given latent in its own)."""
    kl_samplewise: Tensor
    """KL summed over the latent (B,), in nats."""
    kl_samplewise_restricted: Tensor
    """KL summed over all channels and the centred window of `vanilla_latent_hw` (B,)."""
    kl_channelwise: Tensor
    """KL summed over space (B, C)."""
    kl_spatial: Tensor
    """KL summed over channels (B, *S)."""
    logprob_q: Tensor
    """log q(z), summed over the latent (B,)."""
    qvar_max: Tensor
    """The largest log-variance of q (), without a gradient. -inf for an empty batch."""
    kl_elementwise: Tensor | None
    """The KL of every element (B, C, *S), or None if it was not asked for."""


def normal_sample_kl(
    q_params: Tensor,
    p_params: Tensor | None,
    *,
    variance: VarianceMap = _DEFAULT,
    analytical_kl: bool = False,
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    seed: Tensor | int | None = None,
    mode: bool = False,
    temperature: float = 1.0,
    vanilla_latent_hw: int | None = None,
    elementwise: bool = False,
) -> SampleKL:
    """Sample z ~ q and compute KL(q || p) with all its reductions, in one pass forward and one backward.

    Parameters
    ----------
    q_params
        Raw parameters of q, packed (B, 2C, *S): means, then raw spreads. float16, bfloat16, float32 or float64;
        S has 1 to 3 dims; any strides.
    p_params
        The same of the prior p, with batch B or 1 (broadcast). None is the standard normal N(0, I).
    variance
        How the raw spreads of q and p become variances, clamps included.
    analytical_kl
        Closed form, `1/2 [vq/vp + (qm - pm)^2/vp - 1 - log(vq/vp)]`; else the one-sample Monte-Carlo estimate
        `log q(z) - log p(z)`, whose gradient includes the score term.
    noise, latent, seed, mode
        Where z comes from; at most one of them. `noise` (B, C, *S): z = mean + temperature * std * noise.
        `latent` (B, C, *S): it is z. `seed`: Philox noise of any integer (modulo 2^64), or of an int64 tensor with
        one element on q's device: the same z on every backend. `mode`: z is the mean. None of them: fresh noise,
        from a seed that torch's generator draws where the backend makes Philox noise in its kernel (triton, cuda),
        else torch's own, the numbers that `torch.randn` draws.
    temperature
        Factor on the noise. The KL stays that of q and p, at the z drawn.
    vanilla_latent_hw
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
    way = route(q_params, p_params)
    draw, source = _source(q_params, way, noise=noise, latent=latent, seed=seed, mode=mode)
    window = None
    if vanilla_latent_hw is not None:
        window = restricted_window(q_params.shape[2:], _window_side(vanilla_latent_hw))
    # By position, here and below: names cost as much as what they name.
    step = Step(
        draw,
        "analytic" if analytical_kl else "monte_carlo",
        _checked(variance),
        as_number(temperature, "temperature"),
        window,
        elementwise,
        is_channels_last(q_params),
    )
    z, samplewise, restricted, *others = run_step(way, q_params, p_params, source, step)
    if latent is not None:
        z = latent
    return SampleKL(z, samplewise, samplewise if restricted is None else restricted, *others)


def normal_sample(
    params: Tensor,
    *,
    variance: VarianceMap = _DEFAULT,
    noise: Tensor | None = None,
    seed: Tensor | int | None = None,
    mode: bool = False,
    temperature: float = 1.0,
) -> Tensor:
    """Sample z (B, C, *S) from packed parameters (B, 2C, *S): prediction and prior sampling, two reads, one write.

    The arguments are those of `normal_sample_kl`, and so are the errors.
    """
    return run_sample(*_sampling(params, noise, None, seed, mode, temperature, variance))


class Sample(NamedTuple):
    """What `sample_with_log_density` returns."""

    z: Tensor
    logprob_q: Tensor
    qvar_max: Tensor


def sample_with_log_density(
    params: Tensor,
    *,
    variance: VarianceMap = _DEFAULT,
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    seed: Tensor | int | None = None,
    mode: bool = False,
    temperature: float = 1.0,
) -> Sample:
    """z, log q(z) (B,) and the largest log-variance () in one pass: a block's prediction. Else as `normal_sample`.

    Of the same draw `normal_sample_kl` gives z bit by bit, and log q(z) to rounding: it is another kernel.
    """
    way, params, source, step = _sampling(params, noise, latent, seed, mode, temperature, variance)
    z, *_, logprob_q, qvar_max, _ = run_step(way, params, None, source, step)
    return Sample(z if latent is None else latent, logprob_q, qvar_max)


def _sampling(
    params: Tensor,
    noise: Tensor | None,
    latent: Tensor | None,
    seed: Tensor | int | None,
    mode: bool,
    temperature: float,
    variance: VarianceMap,
) -> tuple[Route, Tensor, Tensor | None, Step]:
    """The arguments of a sample without a KL, checked, as `autograd` wants them."""
    _check_packed(params, "params")
    way = route(params)
    draw, source = _source(params, way, noise=noise, latent=latent, seed=seed, mode=mode)
    step = Step(
        draw=draw,
        kl="none",
        variance=_checked(variance),
        temperature=as_number(temperature, "temperature"),
        channels_last=is_channels_last(params),
    )
    return way, params, source, step


def _check_packed(packed: Tensor, name: str) -> None:
    _check_tensor(packed, name)
    shape = packed.shape
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"{name} must be (batch, 2 * channels, 1 to 3 spatial dims), got {tuple(shape)}")
    if shape[1] % 2 or shape[1] == 0:
        raise ValueError(f"{name} packs means and raw spreads, so its channels are even; got {tuple(shape)}")


def _check_tensor(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")


def _check_prior(p: Tensor, q: Tensor) -> None:
    _check_tensor(p, "p_params")
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


def _checked(variance: VarianceMap) -> VarianceMap:
    if not isinstance(variance, VarianceMap):
        raise TypeError(f"variance must be a VarianceMap, got {type(variance).__name__} {variance!r}")
    return variance


def _window_side(vanilla_latent_hw: int) -> int:
    side = _as_integer(vanilla_latent_hw, "vanilla_latent_hw", "a positive integer or None")
    if side < 1:
        raise ValueError(f"vanilla_latent_hw must be a positive integer or None, got {side}")
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
    way: Route,
    *,
    noise: Tensor | None,
    latent: Tensor | None,
    seed: Tensor | int | None,
    mode: bool,
) -> tuple[Any, Tensor | None]:
    """`Step.draw` and its tensor; None for fresh noise too."""
    if noise is None and latent is None and seed is None and not mode:
        return "seed" if way.makes_noise else "noise", None
    given = [name for name, value in (("noise", noise), ("latent", latent), ("seed", seed)) if value is not None]
    given += ["mode"] if mode else []
    if len(given) > 1:
        raise ValueError(f"z has one source: give at most one of noise, latent, seed, mode; got {', '.join(given)}")
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
    _check_tensor(tensor, name)
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
