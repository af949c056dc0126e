"""The likelihood of a noise model, a mixture of Gaussians whose parameters are polynomials of the signal.

On the road of the step (`autograd`): one Function over the backends, which is also the autograd of the operators that
compilers write down. The backends that have it, `torch` and `triton`, say what they take in a module `mixture`.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ladder_kernels import ops
from ladder_kernels.autograd import is_batched, is_plain
from ladder_kernels.backends.outputs import dense_look
from ladder_kernels.backends.select import reason_unavailable, serving
from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.backends.torch import mixture as torch_backend
from ladder_kernels.functional import check_tensor
from ladder_kernels.geometry import is_channels_last
from ladder_kernels.ops import is_recorded

PerChannel: TypeAlias = float | Tensor | Sequence[float | Tensor]
"""A number or tensor of one element for all channels, or as many as there are channels."""
Needs: TypeAlias = tuple[bool, bool, bool]


def mixture_log_likelihood(
    x: Tensor,
    signal: Tensor,
    weight: Tensor,
    *,
    min_signal: PerChannel,
    max_signal: PerChannel,
    min_sigma: PerChannel,
    tolerance: PerChannel = 1e-10,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
) -> Tensor:
    """log p(x | signal) of every pixel (B, C, *S), in nats, under a mixture of n Gaussians per channel.

    As CAREamics' GaussianMixtureNoiseModel: with the signal's place in its range,
    `t = (signal - min_signal) / (max_signal - min_signal)`, a row of weights is a polynomial of t. Variances are
    `v_k = max(sum_i exp(w_ki) t^i, min_sigma)`, mixing weights `a = softmax(logits)`, means
    `m_k = signal + poly_k - sum_j a_j poly_j`, and the density is `sum_k a_k N(x; m_k, v_k) + tolerance`. Nothing in
    it over- or underflows where its logarithm does not.

    Parameters
    ----------
    x, signal
        The noisy image and what is thought to be under it, (B, C, *S): float16, bfloat16, float32 or float64; S has
        up to 3 dims; any strides. Differentiable in both.
    weight
        (C, 3n, c), or (1, 3n, c) for all channels: n rows of means, n of logarithms of the variance's coefficients,
        n of logits; c coefficients, that of t^0 first. Differentiable.
    min_signal, max_signal
        The range of the signal, in intensities. Signals beyond it are taken as they are.
    min_sigma
        The smallest variance, as CAREamics means it: no square root is taken.
    tolerance
        Added to the density, as a component of its own. 0 is the exact mixture.
    mean, std
        Where x and signal are normalised: what takes them back to intensities, `x * std + mean`. None: they are
        intensities.

    The last six are constants for each channel: numbers, tensors or sequences of them; with tensors on the GPU
    nothing waits for it. Returns float32, float64 for float64 inputs, in the signal's memory order.

    Raises
    ------
    ValueError
        Shapes that do not fit, tensors on several devices, a constant that requires a gradient.
    TypeError
        A dtype that is not one of the four.
    BackendUnavailableError
        A backend forced by `use_backend` that cannot take these tensors.
    """
    _check(x, signal, weight)
    given = (min_signal, max_signal, min_sigma, tolerance, 0.0 if mean is None else mean, 1.0 if std is None else std)
    dtype = compute_dtype(x, signal)
    rows = [_row(name, value, x, dtype) for name, value in zip(torch_backend.CONSTANTS, given, strict=True)]
    # One stack of single numbers, which on a GPU is one launch for all of them.
    constants = torch.stack([each for row in rows for each in row]).view(len(rows), x.shape[1])
    return run(x, signal, weight.expand(x.shape[1], -1, -1), constants)


def run(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor) -> Tensor:
    """The log-likelihood, differentiable; `constants` is a table of `CONSTANTS` (6, C)."""
    backend = _backend(serving(signal, x), weight)
    inputs = (x, signal, weight)
    if is_plain(backend, *inputs):
        return torch_backend.forward(*inputs, constants)
    if is_recorded(inputs):
        return Operators(backend).forward(*inputs, constants)
    return MixtureLikelihood.apply(*inputs, constants, backend, _module(backend))


class MixtureLikelihood(torch.autograd.Function):
    """apply(x, signal, weight, constants, backend, functions) -> the log-likelihood. Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor, backend: str, functions: Any
    ) -> Tensor:
        ctx.save_for_backward(x, signal, weight, constants)
        ctx.backend = backend
        return functions.forward(x, signal, weight, constants)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs: Any = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        functions = _functions(ctx.backend, grad, *inputs)
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                return (*_differentiable_backward(grad, inputs, needs), None, None, None)
            if torch._C._are_functorch_transforms_active() or is_batched(grad):
                functions = torch_backend
        return (*functions.backward(grad, *inputs, needs), None, None, None)


def _differentiable_backward(grad: Tensor, given: tuple[Tensor, ...], needs: Needs) -> list[Tensor | None]:
    """By autograd of the plain formula, so that the gradients have gradients themselves."""
    # Fresh aliases, so that x computed from the signal does not count the signal's gradient twice.
    *differentiable, constants = given
    x, signal, weight = inputs = [each.view_as(each) for each in differentiable]
    wanted = [each for each, need in zip(inputs, needs, strict=True) if need]
    out = torch_backend.forward(x, signal, weight, constants)
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


def _functions(backend: str, *tensors: Tensor) -> Any:
    """The backend's `forward` and `backward`: its own, or the operators where somebody records the call."""
    return Operators(backend) if is_recorded(tensors) else _module(backend)


@functools.cache
def _module(backend: str) -> Any:
    return importlib.import_module(f"ladder_kernels.backends.{backend}.mixture")


# Loops over components and coefficients are written out in its kernels.
_MOST_OF_TRITON = (8, 5)


def _backend(serving: str, weight: Tensor) -> str:
    """The name of the backend for this mixture where that one serves: with the CUDA kernels Triton's, else torch's."""
    if serving == "cuda" and reason_unavailable("triton") is None:
        serving = "triton"
    most_components, most_coefficients = _MOST_OF_TRITON
    fits = weight.shape[1] <= 3 * most_components and weight.shape[2] <= most_coefficients
    return serving if serving == "triton" and fits else "torch"


_INPUTS = "Tensor x, Tensor signal, Tensor weight, Tensor constants"
_NEEDS = "bool needs_x, bool needs_signal, bool needs_weight"
torch.library.define(f"{ops.NAMESPACE}::mixture", f"({_INPUTS}, str backend) -> Tensor")
torch.library.define(
    f"{ops.NAMESPACE}::mixture_backward",
    f"(Tensor grad, {_INPUTS}, {_NEEDS}, str backend) -> (Tensor grad_x, Tensor grad_signal, Tensor grad_weight)",
)


class Operators:
    """The functions of a backend, through the operators. What is not needed is an empty tensor there."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def forward(self, x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor) -> Tensor:
        return torch.ops.ladder_kernels.mixture.default(x, signal, weight, constants, self._backend)

    def backward(
        self, grad: Tensor, x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor, needs: Needs
    ) -> tuple[Tensor | None, ...]:
        inputs = (grad, x, signal, weight, constants)
        found = torch.ops.ladder_kernels.mixture_backward.default(*inputs, *needs, self._backend)
        return tuple(each if need else None for each, need in zip(found, needs, strict=True))


def _mixture(*arguments: Any) -> Tensor:
    *inputs, backend = arguments
    return _module(backend).forward(*ops.bare(*inputs))


def _mixture_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, needs_x, needs_signal, needs_weight, backend = arguments
    found = _module(backend).backward(*ops.bare(*inputs), (needs_x, needs_signal, needs_weight))
    return tuple(ops.or_empty(each, inputs[0]) for each in found)


def _fake_mixture(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor, backend: str) -> Tensor:
    return ops.empty(dense_look(x.shape, compute_dtype(x, signal), is_channels_last(signal)), x)


def _fake_mixture_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    x, signal, weight, _, *needs, _ = rest
    channels_last = is_channels_last(signal)
    looks = (
        dense_look(x.shape, x.dtype, channels_last),
        dense_look(signal.shape, signal.dtype, channels_last),
        dense_look(weight.shape, weight.dtype, False),
    )
    return tuple(ops.empty(look if need else None, grad) for look, need in zip(looks, needs, strict=True))


def _mixture_operator(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor, backend: str) -> Tensor:
    """The autograd of the operator, which is that of an eager call."""
    return MixtureLikelihood.apply(x, signal, weight, constants, backend, _functions(backend, x, signal, weight))


ops.register("mixture", _mixture, _fake_mixture)
ops.register("mixture_backward", _mixture_backward, _fake_mixture_backward)
ops.register_autograd("mixture", _mixture_operator)


def _check(x: Tensor, signal: Tensor, weight: Tensor) -> None:
    for name, tensor in (("x", x), ("signal", signal), ("weight", weight)):
        check_tensor(tensor, name)
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}")
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"x must be (batch, channels, up to 3 spatial dims), got {tuple(x.shape)}")
    if signal.shape != x.shape:
        raise ValueError(f"signal must have x's shape {tuple(x.shape)}, got {tuple(signal.shape)}")
    shape = tuple(weight.shape)
    if len(shape) != 3 or (shape[0] != 1 and shape[0] != x.shape[1]) or shape[1] % 3 or shape[1] * shape[2] == 0:
        raise ValueError(f"weight must be ({x.shape[1]} or 1 channels, 3 * components, coefficients), got {shape}")


def _row(name: str, value: PerChannel, x: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """A constant as a tensor of no dims for every channel."""
    channels = x.shape[1]
    values = value.reshape(-1).unbind() if isinstance(value, Tensor) else value
    if not isinstance(values, Sequence):
        values = (values,)
    if len(values) != 1 and len(values) != channels:  # no `in`, which compilers cannot ask of a symbolic size
        raise ValueError(f"{name} must have one value, or one for each of {channels} channels; got {len(values)}")
    if any(isinstance(each, Tensor) and (each.requires_grad or each.numel() != 1) for each in values):
        raise ValueError(f"{name} is a constant: numbers, or tensors of one element that need no gradient")
    found = [
        each.reshape(()).to(x.device, dtype) if isinstance(each, Tensor) else x.new_full((), each, dtype=dtype)
        for each in values
    ]
    return found if len(found) == channels else found * channels
