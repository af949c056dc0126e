"""The mixture likelihood in Triton: one kernel forward, one backward, as `backends/torch/mixture.py` has it.

A program has one sample's block of positions of one channel, whose weights are the same numbers for all of them. Loops
over components and coefficients are written out, and what two of them compute alike the compiler computes once.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladder_kernels.backends.outputs import Look, New, dense_look, new, resolved
from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.backends.torch import mixture as torch_backend
from ladder_kernels.backends.triton import settings
from ladder_kernels.backends.triton.launch import Launcher
from ladder_kernels.backends.triton.math import HALF_LOG_TWO_PI, exp, log, maximum, reciprocal, rsqrt
from ladder_kernels.backends.triton.operations import on_device_of
from ladder_kernels.backends.triton.plan import Strides, collapse, power_of_two
from ladder_kernels.backends.triton.tile import Strided, in_space, widened
from ladder_kernels.geometry import is_channels_last

# Four elements a thread: a component has about four numbers of each in registers.
MAX_BLOCK, ELEMENTS_PER_WARP = 512, 128
SQRT_TWO_PI = tl.constexpr(math.sqrt(2 * math.pi))
LOWEST = tl.constexpr(-3.4028234e38)


class Mode(NamedTuple):
    """What the kernels are compiled for, as the step's `mode.Mode`: constants, each for itself."""

    n: Any
    c: Any
    block: Any
    masked: Any
    wide: Any
    compute: Any
    fast: Any


class Layout(NamedTuple):
    channels: Any
    positions: Any
    space: Any  # sizes of all but the first collapsed spatial dim
    blocks: Any  # of a sample's channel


class Place(NamedTuple):
    sample: Any  # int64
    channel: Any  # int64
    position: Any
    mask: Any  # not used if all blocks are whole


class Pixels(NamedTuple):
    """What a program's mixtures are made of."""

    weight: Any  # the channel's
    t: Any
    residual: Any  # of x from the signal
    min_sigma: Any
    log_tolerance: Any


class Component(NamedTuple):
    offset: Any
    var: Any
    free: Any  # whether it is above the smallest variance
    logit: Any


class Mixture(NamedTuple):
    """As in `backends/torch/mixture.py`, with the largest logit and exponent, which exponentials are taken from."""

    largest_logit: Any
    inverse_shares: Any
    centre: Any
    largest: Any
    densities: Any


@triton.jit
def forward_mixture_kernel(
    x,  # Strided, as all but weight (C, 3n, c) and constants (6, C)
    signal,
    weight,
    constants,
    out,
    layout,  # Layout
    mode,  # Mode
):
    place = _place(layout, mode)
    pixels = _pixels(x, signal, weight, constants, layout, place, mode)
    of = _mixture(pixels, mode)
    value = log(of.densities * of.inverse_shares, mode.fast) + (of.largest - HALF_LOG_TWO_PI)
    _store(out, value, layout, place, mode)


@triton.jit
def backward_mixture_kernel(
    grad,  # Strided, as all but weight, constants and partials (programs, C, 3n, c)
    x,
    signal,
    weight,
    constants,
    grad_x,
    grad_signal,
    partials,
    layout,  # Layout
    mode,  # Mode
):
    place = _place(layout, mode)
    pixels = _pixels(x, signal, weight, constants, layout, place, mode)
    of = _mixture(pixels, mode)
    arriving = _load(grad, layout, place, mode) * reciprocal(of.densities, mode.fast)
    to_x = tl.zeros_like(pixels.t)
    all_responsible = tl.zeros_like(pixels.t)
    for k in tl.static_range(mode.n):
        component = _component(pixels, k, mode)
        inverse_std, eps, exponent = _standardised(pixels, component, of, mode)
        responsible = arriving * exp(exponent - of.largest, mode.fast) * inverse_std
        all_responsible += responsible
        to_x -= responsible * eps * inverse_std
    to_share = to_x * of.inverse_shares
    all_responsible *= of.inverse_shares
    to_t = tl.zeros_like(pixels.t)
    for k in tl.static_range(mode.n):
        component = _component(pixels, k, mode)
        inverse_std, eps, exponent = _standardised(pixels, component, of, mode)
        responsible = arriving * exp(exponent - of.largest, mode.fast) * inverse_std
        pull = responsible * eps * inverse_std
        share = exp(component.logit - of.largest_logit, mode.fast)
        to_mean = share * to_share
        to_offset = pull + to_mean
        to_var = tl.where(component.free, 0.5 * inverse_std * (pull * eps - responsible * inverse_std), 0.0)
        to_logit = responsible + to_mean * (component.offset - of.centre) - share * all_responsible
        to_t += to_offset * _slope(pixels, k, False, mode)
        to_t += to_var * _slope(pixels, mode.n + k, True, mode)
        to_t += to_logit * _slope(pixels, 2 * mode.n + k, False, mode)
        if partials is not None:
            program = place.sample * layout.blocks + tl.program_id(0) // layout.channels % layout.blocks
            own = partials + (program * layout.channels + place.channel) * (3 * mode.n * mode.c)
            _store_sums(own, to_offset, pixels, k, False, place, mode)
            _store_sums(own, to_var, pixels, mode.n + k, True, place, mode)
            _store_sums(own, to_logit, pixels, 2 * mode.n + k, False, place, mode)
    std = _constant(constants, 5, layout, place, mode)
    if grad_x is not None:
        _store(grad_x, to_x * std, layout, place, mode)
    if grad_signal is not None:
        of_range = _constant(constants, 1, layout, place, mode) - _constant(constants, 0, layout, place, mode)
        _store(grad_signal, (to_t / of_range - to_x) * std, layout, place, mode)


@triton.jit
def _place(layout, mode):
    """Channels are next to each other: where memory has them so, they share its sectors in the cache."""
    program = tl.program_id(0).to(tl.int64)
    block = program // layout.channels
    position = widened((block % layout.blocks).to(tl.int32), mode.wide) * mode.block + tl.arange(0, mode.block)
    return Place(block // layout.blocks, program % layout.channels, position, position < layout.positions)


@triton.jit
def _pointers(tensor, layout, place):
    base = tensor.data + place.sample * tensor.strides[0] + place.channel * tensor.strides[1]
    return base + in_space(place.position, tensor.strides, layout.space)


@triton.jit
def _load(tensor, layout, place, mode):
    if mode.masked:
        return tl.load(_pointers(tensor, layout, place), mask=place.mask, other=0.0).to(mode.compute)
    else:
        return tl.load(_pointers(tensor, layout, place)).to(mode.compute)


@triton.jit
def _store(tensor, value, layout, place, mode):
    value = value.to(tensor.data.dtype.element_ty)
    if mode.masked:
        tl.store(_pointers(tensor, layout, place), value, mask=place.mask)
    else:
        tl.store(_pointers(tensor, layout, place), value)


@triton.jit
def _constant(constants, row, layout, place, mode):
    return tl.load(constants + row * layout.channels + place.channel).to(mode.compute)


@triton.jit
def _pixels(x, signal, weight, constants, layout, place, mode):
    min_signal = _constant(constants, 0, layout, place, mode)
    of_range = _constant(constants, 1, layout, place, mode) - min_signal
    mean, std = _constant(constants, 4, layout, place, mode), _constant(constants, 5, layout, place, mode)
    of_signal = _load(signal, layout, place, mode)
    residual = (_load(x, layout, place, mode) - of_signal) * std
    t = of_signal * (std / of_range) + (mean - min_signal) / of_range
    log_tolerance = log(_constant(constants, 3, layout, place, mode) * SQRT_TWO_PI, mode.fast)
    own = weight + place.channel * (3 * mode.n * mode.c)
    return Pixels(own, t, residual, _constant(constants, 2, layout, place, mode), log_tolerance)


@triton.jit
def _coefficient(pixels, row, power, EXPONENTIAL: tl.constexpr, mode):
    value = tl.load(pixels.weight + (row * mode.c + power)).to(mode.compute)
    return exp(value, mode.fast) if EXPONENTIAL else value


@triton.jit
def _polynomial(pixels, row, EXPONENTIAL: tl.constexpr, mode):
    value = tl.zeros_like(pixels.t)
    for i in tl.static_range(mode.c):
        value = value * pixels.t + _coefficient(pixels, row, mode.c - 1 - i, EXPONENTIAL, mode)
    return value


@triton.jit
def _slope(pixels, row, EXPONENTIAL: tl.constexpr, mode):
    value = tl.zeros_like(pixels.t)
    for i in tl.static_range(mode.c - 1):
        power = mode.c - 1 - i
        value = value * pixels.t + power * _coefficient(pixels, row, power, EXPONENTIAL, mode)
    return value


@triton.jit
def _component(pixels, k, mode):
    offset = _polynomial(pixels, k, False, mode)
    var = _polynomial(pixels, mode.n + k, True, mode)
    logit = _polynomial(pixels, 2 * mode.n + k, False, mode)
    return Component(offset, maximum(var, pixels.min_sigma), var > pixels.min_sigma, logit)


@triton.jit
def _standardised(pixels, component, of, mode):
    inverse_std = rsqrt(component.var, mode.fast)
    eps = (pixels.residual - (component.offset - of.centre)) * inverse_std
    return inverse_std, eps, (component.logit - of.largest_logit) - 0.5 * eps * eps


@triton.jit
def _mixture(pixels, mode):
    largest_logit = _component(pixels, 0, mode).logit
    for k in tl.static_range(1, mode.n):
        largest_logit = maximum(largest_logit, _component(pixels, k, mode).logit)
    shares = tl.zeros_like(pixels.t)
    centre = tl.zeros_like(pixels.t)
    for k in tl.static_range(mode.n):
        component = _component(pixels, k, mode)
        share = exp(component.logit - largest_logit, mode.fast)
        shares += share
        centre += share * component.offset
    inverse_shares = reciprocal(shares, mode.fast)
    # To rounding: where a component has all the weight, its offset, which may be large, cancels.
    inverse_shares += inverse_shares * (1 - shares * inverse_shares)
    of = Mixture(largest_logit, inverse_shares, centre * inverse_shares, shares, shares)
    log_tolerance = pixels.log_tolerance + log(shares, mode.fast)
    # Finite, so that where all are -inf so is their sum.
    largest = maximum(log_tolerance, LOWEST)
    for k in tl.static_range(mode.n):
        _, _, exponent = _standardised(pixels, _component(pixels, k, mode), of, mode)
        largest = maximum(largest, exponent)
    densities = exp(log_tolerance - largest, mode.fast)
    for k in tl.static_range(mode.n):
        inverse_std, _, exponent = _standardised(pixels, _component(pixels, k, mode), of, mode)
        densities += exp(exponent - largest, mode.fast) * inverse_std
    return Mixture(largest_logit, inverse_shares, of.centre, largest, densities)


@triton.jit
def _store_sums(own, to_row, pixels, row, EXPONENTIAL: tl.constexpr, place, mode):
    """The gradients of a row's coefficients, summed over the program's positions."""
    term = tl.where(place.mask, to_row, 0.0) if mode.masked else to_row
    for power in tl.static_range(mode.c):
        total = tl.sum(term)
        if EXPONENTIAL:
            total *= _coefficient(pixels, row, power, True, mode)
        tl.store(own + (row * mode.c + power), total)
        term *= pixels.t


class Settings(NamedTuple):
    """What a launch needs besides its tensors: `strides` of those that are given and of a dense one, and new ones."""

    strides: tuple[Strides, ...]
    outputs: tuple[New | None, ...]
    launch: Launcher


def forward(x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor) -> Tensor:
    if x.numel() == 0:
        return torch_backend.forward(x, signal, weight, constants)
    x, signal, weight, constants = (resolved(each) for each in (x, signal, weight.contiguous(), constants))
    looks = tuple(map(Look.of, (x, signal, weight, constants)))
    (of_x, of_signal, dense), (new_out,), launch = prepared(looks, x.device, is_channels_last(signal), None)
    assert new_out is not None
    out = new_out()
    with on_device_of(x):
        launch(Strided(x, of_x), Strided(signal, of_signal), weight, constants, Strided(out, dense))
    return out


def backward(
    grad: Tensor, x: Tensor, signal: Tensor, weight: Tensor, constants: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if x.numel() == 0:
        return torch_backend.backward(grad, x, signal, weight, constants, needs)
    weight = weight.contiguous()
    grad, x, signal, weight, constants = (resolved(each) for each in (grad, x, signal, weight, constants))
    looks = tuple(map(Look.of, (grad, x, signal, weight, constants)))
    (of_grad, of_x, of_signal, dense), outputs, launch = prepared(looks, x.device, is_channels_last(signal), needs)
    grad_x, grad_signal, partials = (each and each() for each in outputs)
    with on_device_of(x):
        launch(
            Strided(grad, of_grad),
            Strided(x, of_x),
            Strided(signal, of_signal),
            weight,
            constants,
            grad_x if grad_x is None else Strided(grad_x, dense),
            grad_signal if grad_signal is None else Strided(grad_signal, dense),
            partials,
        )
    grad_weight = None if partials is None else partials.sum(0).to(weight.dtype)
    return grad_x, grad_signal, grad_weight


@functools.lru_cache(maxsize=1024)
def prepared(
    looks: tuple[Look, ...], device: torch.device, channels_last: bool, needs: tuple[bool, bool, bool] | None
) -> Settings:
    """`looks` of the gradient, x, signal, weight and constants; forward has no gradient and no needs."""
    *pixels, weight, _ = looks
    x, signal = pixels[-2:]
    dtype = compute_dtype(x, signal)
    batch, channels, *space = x.shape
    dense = dense_look(x.shape, dtype, channels_last)
    tensors = [each.strides for each in (*pixels, dense)]
    sizes, strides = collapse(space, tensors)
    positions = math.prod(sizes)
    block = min(MAX_BLOCK, power_of_two(positions))
    blocks = -(-positions // block)
    if needs is None:
        outputs: tuple[Look | None, ...] = (dense,)
    else:
        outputs = tuple(
            like._replace(shape=dense.shape, strides=dense.strides) if need else None
            for like, need in zip((x, signal), needs[:2], strict=True)
        )
        partials = dense_look((batch * blocks, *weight.shape), dtype, False)
        outputs = (*outputs, partials if needs[2] else None)
    largest_offset = max(sum(abs(s) * n for s, n in zip(each[2:], space, strict=True)) for each in tensors)
    fast = dtype == torch.float32 and settings.NVIDIA and not settings.INTERPRETED
    n, c, compute = weight.shape[1] // 3, weight.shape[2], settings.TRITON_DTYPE[dtype]
    mode = (n, c, block, positions % block != 0, largest_offset >= 2**31, compute, fast)
    launch = Launcher(
        forward_mixture_kernel if needs is None else backward_mixture_kernel,
        (batch * channels * blocks, 1, 1),
        (
            Layout(channels, positions, tuple(sizes[1:]), blocks),
            Mode._make(map(tl.constexpr, mode)),
        ),
        {"num_warps": max(1, block // ELEMENTS_PER_WARP), **settings.FUSED},
    )
    return Settings(tuple(strides), tuple(each and new(each, device) for each in outputs), launch)
