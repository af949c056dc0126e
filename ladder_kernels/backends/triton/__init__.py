"""Triton kernels for any GPU that Triton knows: one pass forward, one backward.

On a CPU they run in Triton's interpreter, if TRITON_INTERPRET=1 was set before Triton was imported: for tests.
"""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.backends.triton.backward import backward_kernel
from ladder_kernels.backends.triton.forward import forward_kernel
from ladder_kernels.backends.triton.plan import Plan, Tiles, make_plan
from ladder_kernels.backends.triton.reduce import reduce_kernel
from ladder_kernels.backends.triton.sample import sample_kernel
from ladder_kernels.geometry import dense_as, is_channels_last, latent_shape

NAME = "triton"

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
WARP_SIZE = 64 if torch.version.hip else 32
REDUCE_BLOCK = 256
_TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


def unavailable() -> str | None:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 3):
        return f"it needs Triton 3.3 or newer, found {triton.__version__}"
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no GPU (for tests on a CPU set TRITON_INTERPRET=1 before the import)"
    return None


def unsupported(q: Tensor, p: Tensor | None, source: Tensor | None) -> str | None:
    if q.device.type != "cuda" and not INTERPRETED:
        return f"the tensors are on {q.device}, not on a GPU"
    return None


def forward(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
    shape = latent_shape(q)
    if shape.numel() == 0:
        return torch_backend.forward(q, p, source, step)
    dtype = compute_dtype(q, p, source)
    plan = _plan(q, p, source, step)
    batch, rows, columns = plan.sizes
    tiles = plan.forward

    def latent(dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(shape, plan.latent_strides, dtype=dtype, device=q.device)

    z = None if step.draw == "latent" else latent(q.dtype)
    kl_elementwise = latent(dtype) if step.elementwise else None
    blocks = tiles.row_blocks * tiles.column_blocks
    partials = q.new_empty(batch * (tiles.row_blocks * columns + tiles.column_blocks * rows + 4 * blocks), dtype=dtype)
    samplewise, restricted, logprob_q = (q.new_empty(batch, dtype=dtype) for _ in range(3))
    channelwise, spatial = q.new_empty(shape[:2], dtype=dtype), q.new_empty((batch, *shape[2:]), dtype=dtype)
    qvar_max = q.new_empty((), dtype=dtype)
    column_sums, row_sums = (channelwise, spatial) if plan.columns_are_channels else (spatial, channelwise)
    with _on_device_of(q):
        forward_kernel[(blocks * batch,)](
            q,
            p,
            source,
            z,
            kl_elementwise,
            partials,
            plan.q_strides,
            plan.p_strides,
            plan.source_strides,
            plan.space,
            plan.sizes,
            _window(step, shape),
            _temperature(step),
            tiles.steps,
            tiles.column_blocks,
            tiles.row_blocks,
            ANALYTICAL=step.analytical,
            **tile_constants(step, plan, tiles, dtype),
        )
        reduce_kernel[(_cdiv(batch * columns) + _cdiv(batch * rows) + batch + 1,)](
            partials,
            column_sums,
            row_sums,
            samplewise,
            None if step.window is None else restricted,
            logprob_q,
            qvar_max,
            plan.sizes,
            tiles.column_blocks,
            tiles.row_blocks,
            STABLE=step.stable,
            BLOCK=REDUCE_BLOCK,
            COMPUTE=_TRITON_DTYPE[dtype],
        )
    return StepOutputs(
        z=z,
        kl_samplewise=samplewise,
        kl_restricted=None if step.window is None else restricted,
        kl_channelwise=channelwise,
        kl_spatial=spatial,
        logprob_q=logprob_q,
        qvar_max=qvar_max,
        kl_elementwise=kl_elementwise,
    )


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    shape = latent_shape(q)
    if shape.numel() == 0:
        return torch_backend.sample(q, source, step)
    plan = _plan(q, None, source, step)
    tiles = plan.backward
    z = torch.empty_strided(shape, plan.latent_strides, dtype=q.dtype, device=q.device)
    with _on_device_of(q):
        sample_kernel[(tiles.row_blocks * tiles.column_blocks * shape[0],)](
            q,
            source,
            z,
            plan.q_strides,
            plan.source_strides,
            plan.space,
            plan.sizes,
            _temperature(step),
            tiles.steps,
            tiles.column_blocks,
            tiles.row_blocks,
            **tile_constants(step, plan, tiles, compute_dtype(q, source)),
        )
    return z


def backward(
    q: Tensor,
    p: Tensor | None,
    source: Tensor | None,
    step: Step,
    grads: StepGrads,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    shape = latent_shape(q)
    if shape.numel() == 0:
        return torch_backend.backward(q, p, source, step, grads, needs)
    dtype = compute_dtype(q, p, source)
    has_kl = any(g is not None for g in (*grads[1:5], grads.kl_elementwise))
    if not has_kl:
        p = None
    plan = _plan(q, p, source, step)

    def packed(like: Tensor) -> Tensor:
        return torch.empty_strided(
            (like.shape[0], *q.shape[1:]), plan.packed_strides, dtype=like.dtype, device=q.device
        )

    grad_q = packed(q) if needs[0] else None
    grad_p = packed(p) if needs[1] and p is not None else None
    grad_latent = None
    if needs[2] and source is not None:
        grad_latent = torch.empty_strided(shape, plan.latent_strides, dtype=source.dtype, device=q.device)
    shared_p = grad_p is not None and grad_p.shape[0] == 1 and shape[0] > 1
    tiles = plan.backward_shared if shared_p else plan.backward
    programs = tiles.row_blocks * tiles.column_blocks * (1 if shared_p else shape[0])

    def dense(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else grad.contiguous()

    over_channels, over_space = dense(grads.kl_spatial), dense(grads.kl_channelwise)
    over_rows, over_columns = (over_space, over_channels) if plan.columns_are_channels else (over_channels, over_space)
    per_sample = (grads.kl_samplewise, grads.kl_restricted, grads.logprob_q)
    with _on_device_of(q):
        backward_kernel[(programs,)](
            q,
            p,
            source,
            None if grads.z is None else dense_as(grads.z, q),
            (*per_sample[:2], over_rows, over_columns, per_sample[2]),
            None if grads.kl_elementwise is None else dense_as(grads.kl_elementwise, q),
            grad_q,
            grad_p,
            grad_latent,
            plan.q_strides,
            plan.p_strides,
            plan.source_strides,
            tuple(0 if grad is None else grad.stride(0) for grad in per_sample),
            plan.space,
            plan.sizes,
            _window(step, shape),
            _temperature(step),
            tiles.steps,
            tiles.column_blocks,
            tiles.row_blocks,
            ANALYTICAL=step.analytical,
            HAS_KL=has_kl,
            SHARED_P=shared_p,
            **tile_constants(step, plan, tiles, dtype),
        )
    return grad_q, grad_p, grad_latent


def _plan(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> Plan:
    p_strides = None
    if p is not None:
        p_strides = p.stride() if p.shape[0] == q.shape[0] else (0, *p.stride()[1:])
    source_strides = source.stride() if source is not None and step.draw != "seed" else None
    return make_plan(latent_shape(q), q.stride(), p_strides, source_strides, is_channels_last(q))


def tile_constants(step: Step, plan: Plan, tiles: Tiles, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments that all three tile kernels share, and the launch options."""
    return {
        "DRAW": step.draw,
        "STABLE": step.stable,
        "LOGVAR_MAX": step.logvar_max,
        "CHANNELS_LAST": plan.columns_are_channels,
        "ALIGNED": plan.aligned,
        "MASKED": tiles.masked,
        "WIDE": plan.wide,
        "BLOCK_ROWS": tiles.block_rows,
        "BLOCK_COLUMNS": tiles.block_columns,
        "COMPUTE": _TRITON_DTYPE[dtype],
        "FAST": dtype == torch.float32 and not INTERPRETED and torch.version.cuda is not None,
        "num_warps": tiles.warps(WARP_SIZE),
        # Explicit: Triton is about to change its default.
        "enable_fp_fusion": True,
    }


def _window(step: Step, shape: torch.Size) -> tuple[int, ...] | None:
    """The restricted window and the height and width of space that it lies in."""
    if step.window is None:
        return None
    return (*step.window, shape[-2] if len(shape) > 3 else 1, shape[-1])


def _temperature(step: Step) -> tuple[float, float] | None:
    """The temperature as two float32 summands."""
    if step.temperature == 1.0:
        return None
    rounded = torch.tensor(step.temperature, dtype=torch.float32).item()
    return rounded, step.temperature - rounded


def _on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def _cdiv(size: int) -> int:
    return -(-size // REDUCE_BLOCK)
