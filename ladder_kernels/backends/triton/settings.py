"""What a launch needs besides its tensors: it depends on how they look alone, and is found once for each look.

That is most of what a step costs the host, so that `operations.py` looks it up, allocates and launches.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ladder_kernels.backends.outputs import Look, New, flowing, gradient_looks, new, output_looks
from ladder_kernels.backends.step import Step, compute_dtype
from ladder_kernels.backends.triton.backward import backward_kernel
from ladder_kernels.backends.triton.formulas import Variance
from ladder_kernels.backends.triton.forward import forward_kernel
from ladder_kernels.backends.triton.launch import Launcher
from ladder_kernels.backends.triton.mode import Mode
from ladder_kernels.backends.triton.partials import number_of_partials
from ladder_kernels.backends.triton.plan import Plan, Strides, Tiles, make_plan
from ladder_kernels.backends.triton.reduce import reduce_kernel
from ladder_kernels.backends.triton.sample import sample_kernel
from ladder_kernels.backends.triton.tile import Layout
from ladder_kernels.geometry import latent_shape

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
WARP_SIZE = 64 if torch.version.hip else 32
NVIDIA = torch.version.cuda is not None
REDUCE_BLOCK = 256
# Of every launch: Triton is about to change the default, and warns where nothing is said.
FUSED = {"enable_fp_fusion": True}
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


class ForwardSettings(NamedTuple):
    """`outputs` in the order of `StepOutputs`; a step or a reduction is launched on its tensors."""

    q_strides: Strides
    p_strides: Strides | None
    source_strides: Strides | None
    outputs: tuple[New | None, ...]
    partials: New
    channels_inner: bool
    step: Launcher
    reduction: Launcher


class SampleSettings(NamedTuple):
    q_strides: Strides
    source_strides: Strides | None
    z: New
    step: Launcher


class BackwardSettings(NamedTuple):
    """`grads` are those of q, p and a given latent; a tensor that nothing flows through is not read."""

    reads_p: bool
    reads_source: bool
    q_strides: Strides
    p_strides: Strides | None
    source_strides: Strides | None
    grads: tuple[New | None, ...]
    channels_inner: bool
    step: Launcher


@functools.lru_cache(maxsize=1024)
def forward(q: Look, p: Look | None, source: Look | None, device: torch.device, step: Step) -> ForwardSettings:
    shape, dtype = latent_shape(q), compute_dtype(q, p, source)
    plan = _plan(q, p, source, step)
    batch, rows, columns = plan.sizes
    with_kl = step.kl != "none"
    partials = Look((number_of_partials(plan, with_kl=with_kl),), (1,), dtype)
    layout, variance = _layout(plan, plan.forward), Variance.of(step.variance)
    return ForwardSettings(
        plan.q_strides,
        plan.p_strides,
        plan.source_strides,
        outputs=tuple(look and new(look, device) for look in output_looks(q, p, source, step)),
        partials=new(partials, device),
        channels_inner=plan.channels_inner,
        step=Launcher(
            forward_kernel,
            plan.forward.grid(),
            (layout, _window(step, shape), _temperature(step), variance, tile_mode(step, plan, plan.forward, q, dtype)),
            _launch_options(plan.forward),
        ),
        reduction=Launcher(
            reduce_kernel,
            (batch + 1 + (_cdiv(batch * columns) + _cdiv(batch * rows) if with_kl else 0), 1, 1),
            (layout, variance),
            {"BLOCK": REDUCE_BLOCK, "COMPUTE": TRITON_DTYPE[dtype], **FUSED},
        ),
    )


@functools.lru_cache(maxsize=1024)
def sample(q: Look, source: Look | None, device: torch.device, step: Step) -> SampleSettings:
    plan = _plan(q, None, source, step)
    # Without partial sums to share, more programs are worth more than longer ones.
    tiles = plan.backward
    return SampleSettings(
        plan.q_strides,
        plan.source_strides,
        z=new(output_looks(q, None, source, step)[0], device),
        step=Launcher(
            sample_kernel,
            tiles.grid(),
            (
                _layout(plan, tiles),
                _temperature(step),
                Variance.of(step.variance),
                tile_mode(step, plan, tiles, q, compute_dtype(q, source)),
            ),
            _launch_options(tiles),
        ),
    )


@functools.lru_cache(maxsize=1024)
def backward(
    q: Look,
    p: Look | None,
    source: Look | None,
    device: torch.device,
    step: Step,
    incoming: tuple[Look | None, ...],
    needs: tuple[bool, bool, bool],
) -> BackwardSettings:
    """`incoming` are the gradients that arrive at z, at the five KLs and at logprob_q."""
    shape, dtype = latent_shape(q), compute_dtype(q, p, source)
    z, *kls, log_q = (grad is not None for grad in incoming)
    step, p, source = flowing(step, p, source, to_z=z, to_kl=any(kls), to_log_q=log_q)
    plan = _plan(q, p, source, step)
    shared_p = needs[1] and p is not None and p.shape[0] == 1 and shape[0] > 1
    tiles = plan.backward_shared if shared_p else plan.backward
    return BackwardSettings(
        p is not None,
        source is not None,
        plan.q_strides,
        plan.p_strides,
        plan.source_strides,
        grads=tuple(look and new(look, device) for look in gradient_looks(q, p, source, step, needs)),
        channels_inner=plan.channels_inner,
        step=Launcher(
            backward_kernel,
            tiles.grid(),
            (
                _layout(plan, tiles),
                _window(step, shape),
                _temperature(step),
                Variance.of(step.variance),
                tile_mode(step, plan, tiles, q, dtype, shared_p),
            ),
            _launch_options(tiles),
        ),
    )


def forget() -> None:
    """Whatever was found out; for whoever changes what it was found from."""
    for found in (forward, sample, backward):
        found.cache_clear()


def _plan(q: Look, p: Look | None, source: Look | None, step: Step) -> Plan:
    p_strides = None
    if p is not None:
        p_strides = p.strides if p.shape[0] == q.shape[0] else (0, *p.strides[1:])
    source_strides = source.strides if source is not None and step.draw != "seed" else None
    return make_plan(latent_shape(q), q.strides, p_strides, source_strides, step.channels_last)


def _layout(plan: Plan, tiles: Tiles) -> Layout:
    return Layout(plan.sizes, plan.space, tiles.tiles, tiles.row_blocks, tiles.column_blocks)


def tile_mode(step: Step, plan: Plan, tiles: Tiles, q: Look, dtype: torch.dtype, shared_p: bool = False) -> Mode:
    return Mode.of(
        draw=step.draw,
        kl=step.kl,
        channels_inner=plan.channels_inner,
        aligned=plan.aligned,
        # 16 bytes, but whole counters of Philox.
        vector=max(4, 16 // q.dtype.itemsize),
        masked=tiles.masked,
        wide=plan.wide,
        shared_p=shared_p,
        first_axis=tiles.first_axis(),
        block_rows=tiles.block_rows,
        block_columns=tiles.block_columns,
        compute=TRITON_DTYPE[dtype],
        fast=dtype == torch.float32 and NVIDIA and not INTERPRETED,
    )


def _launch_options(tiles: Tiles) -> dict[str, Any]:
    return {"num_warps": tiles.warps(WARP_SIZE), **FUSED}


def _window(step: Step, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The restricted window and the height and width of space that it lies in."""
    if step.window is None:
        return None
    return (*step.window, shape[-2] if len(shape) > 3 else 1, shape[-1])


def _temperature(step: Step) -> tuple[float, float] | None:
    """The temperature as two float32 summands."""
    if step.temperature == 1.0:
        return None
    rounded = torch.tensor(step.temperature, dtype=torch.float32, device="cpu").item()
    return rounded, step.temperature - rounded


def _cdiv(size: int) -> int:
    return -(-size // REDUCE_BLOCK)
