"""Which tensors a step makes, and how tensors look: the same for every backend, and for compilers.

`Look`s take the place of tensors here: a backend plans with those of its inputs, allocates what the step makes with
`new`, and the operators' fakes are as `output_looks` and `gradient_looks` say. Sizes may be symbolic.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from ladder_kernels.backends.step import Step, StepOutputs, compute_dtype
from ladder_kernels.geometry import latent_shape

OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)
Strides: TypeAlias = tuple[int, ...]
# Allocates a tensor, uninitialised.
New: TypeAlias = Callable[[], Tensor]


class Look(NamedTuple):
    """All of a tensor that a plan goes by."""

    shape: tuple[int, ...]
    strides: Strides
    dtype: torch.dtype
    aligned: bool = True  # its address is a multiple of 16

    @staticmethod
    def of(tensor: Tensor) -> "Look":
        # As its constructor does, in two thirds of the time.
        return tuple.__new__(Look, (tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16 == 0))


def look(tensor: Tensor | None) -> Look | None:
    return None if tensor is None else Look.of(tensor)


def resolved(tensor: OptionalTensor) -> OptionalTensor:
    """Kernels read memory, where a negative view (`z.conj().imag`) has the other sign, and zeros may have none."""
    if tensor is None or not (tensor.is_neg() or tensor._is_zerotensor()):
        return tensor
    return tensor.clone()


class _Typed(Protocol):
    """A tensor, or its look."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


def has_outputs(step: Step) -> tuple[bool, ...]:
    """Which of `StepOutputs`, in its order, a step has. The others are None."""
    kl = step.kl != "none"
    return _in_order(
        z=step.draw != "latent",
        kl_samplewise=kl,
        kl_samplewise_restricted=kl and step.window is not None,
        kl_channelwise=kl,
        kl_spatial=kl,
        logprob_q=True,
        logvar_max=True,
        kl_elementwise=kl and step.elementwise,
    )


def output_looks(q: _Typed, p: _Typed | None, source: _Typed | None, step: Step) -> tuple[Any, ...]:
    """The looks of `StepOutputs`, in its order, for packed parameters q (B, 2C, *S); None of those that it has not."""
    shape, dtype = latent_shape(q), compute_dtype(q, p, source)
    batch, channels, *space = shape
    every = _in_order(
        z=_dense(shape, q.dtype, step),
        kl_samplewise=_sums((batch,), dtype),
        kl_samplewise_restricted=_sums((batch,), dtype),
        kl_channelwise=_sums((batch, channels), dtype),
        kl_spatial=_sums((batch, *space), dtype),
        logprob_q=_sums((batch,), dtype),
        logvar_max=_sums((), dtype),
        kl_elementwise=_dense(shape, dtype, step),
    )
    return tuple(look if has else None for look, has in zip(every, has_outputs(step), strict=True))


def gradient_looks(
    q: _Typed, p: _Typed | None, source: _Typed | None, step: Step, needs: tuple[bool, bool, bool]
) -> tuple[Look | None, ...]:
    """The gradients of q, of p and of a given latent: those that are needed of what is there."""
    return tuple(
        _dense(like.shape, like.dtype, step) if need and like is not None else None
        for like, need in zip((q, p, source), needs, strict=True)
    )


def flowing(
    step: Step, p: Look | None, source: Look | None, *, to_z: bool, to_kl: bool, to_log_q: bool
) -> tuple[Step, Look | None, Look | None]:
    """The part of the step that gradients flow through, if they arrive at these outputs: the rest is not read.

    A term whose incoming gradient is absent does not exist: 0 times an infinity or a NaN would be a NaN.
    """
    if not to_kl:
        step, p = step._replace(kl="none"), None
    eps_used = to_log_q if step.draw == "latent" else to_z
    if not eps_used and step.kl != "monte_carlo":
        step, source = step._replace(draw="mode"), None
    return step, p, source


def new(look: Look, device: torch.device) -> New:
    # `torch.empty` takes twice the time, to find out strides.
    return functools.partial(torch.empty_strided, look.shape, look.strides, dtype=look.dtype, device=device)


def dense_look(shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Look:
    return Look(tuple(shape), dense_strides(shape, channels_last), dtype)


def dense_strides(shape: Sequence[int], channels_last: bool) -> Strides:
    """Those of a dense tensor; of a (B, C, *S) with its channels innermost if `channels_last`."""
    dims = list(range(len(shape)))
    if channels_last:
        dims.append(dims.pop(1))
    strides, stride = [1] * len(dims), 1
    for dim in reversed(dims):
        strides[dim] = stride
        stride *= max(shape[dim], 1)
    return tuple(strides)


# By name, so that no other place depends on the order.
_in_order: Callable[..., tuple[Any, ...]] = StepOutputs


def _dense(shape: Sequence[int], dtype: torch.dtype, step: Step) -> Look:
    """A (B, C, *S) in the step's element order."""
    return dense_look(shape, dtype, step.channels_last)


def _sums(shape: tuple[int, ...], dtype: torch.dtype) -> Look:
    return dense_look(shape, dtype, channels_last=False)
