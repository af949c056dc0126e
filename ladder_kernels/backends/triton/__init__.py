"""Triton kernels for any GPU that Triton knows: one pass forward, one backward.

On a CPU they run in Triton's interpreter, if TRITON_INTERPRET=1 was set before Triton was imported: for tests.
"""

import contextlib
from typing import Any, TypeVar

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
from ladder_kernels.geometry import dense, latent_shape

NAME = "triton"
OptionalTensor = TypeVar("OptionalTensor", Tensor, Tensor | None)

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
WARP_SIZE = 64 if torch.version.hip else 32
NVIDIA = torch.version.cuda is not None
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
    if q.numel() == 0:
        return torch_backend.forward(q, p, source, step)
    q, p, source = _resolved(q), _resolved(p), _resolved(source)
    dtype = compute_dtype(q, p, source)
    plan = _plan(q, p, source, step)
    batch, rows, columns = plan.sizes
    tiles = plan.forward
    blocks = tiles.row_blocks * tiles.column_blocks

    def latent(dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(shape, plan.latent_strides, dtype=dtype, device=q.device)

    def sums(*sizes: int) -> Tensor:
        return q.new_empty(sizes, dtype=dtype)

    z = None if step.draw == "latent" else latent(q.dtype)
    logprob_q, qvar_max = sums(batch), sums()
    samplewise = restricted = channelwise = spatial = kl_elementwise = None
    partial_sums, programs = 2 * batch * blocks, batch + 1
    if step.kl != "none":
        samplewise, channelwise, spatial = sums(batch), sums(*shape[:2]), sums(batch, *shape[2:])
        restricted = None if step.window is None else sums(batch)
        kl_elementwise = latent(dtype) if step.elementwise else None
        partial_sums += batch * (2 * blocks + tiles.row_blocks * columns + tiles.column_blocks * rows)
        programs += _cdiv(batch * columns) + _cdiv(batch * rows)
    partials = sums(partial_sums)
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
            KL=step.kl,
            **tile_constants(step, plan, tiles, dtype),
        )
        reduce_kernel[(programs,)](
            partials,
            column_sums,
            row_sums,
            samplewise,
            restricted,
            logprob_q,
            qvar_max,
            plan.sizes,
            tiles.column_blocks,
            tiles.row_blocks,
            STABLE=step.variance.kind == "stable",
            BLOCK=REDUCE_BLOCK,
            COMPUTE=_TRITON_DTYPE[dtype],
        )
    return StepOutputs(
        z=z,
        kl_samplewise=samplewise,
        kl_restricted=restricted,
        kl_channelwise=channelwise,
        kl_spatial=spatial,
        logprob_q=logprob_q,
        qvar_max=qvar_max,
        kl_elementwise=kl_elementwise,
    )


def sample(q: Tensor, source: Tensor | None, step: Step) -> Tensor:
    shape = latent_shape(q)
    if q.numel() == 0:
        return torch_backend.sample(q, source, step)
    q, source = _resolved(q), _resolved(source)
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
    if q.numel() == 0:
        return torch_backend.backward(q, p, source, step, grads, needs)
    dtype = compute_dtype(q, p, source)
    q, p, source = _resolved(q), _resolved(p), _resolved(source)
    grads = StepGrads._make(map(_resolved, grads))
    step, p, source = _flowing(step, p, source, grads)
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

    def contiguous(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else grad.contiguous()

    def in_order(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else dense(grad, step.channels_last)

    over_channels, over_space = contiguous(grads.kl_spatial), contiguous(grads.kl_channelwise)
    over_rows, over_columns = (over_space, over_channels) if plan.columns_are_channels else (over_channels, over_space)
    per_sample = (grads.kl_samplewise, grads.kl_restricted, grads.logprob_q)
    with _on_device_of(q):
        backward_kernel[(programs,)](
            q,
            p,
            source,
            in_order(grads.z),
            (*per_sample[:2], over_rows, over_columns, per_sample[2]),
            in_order(grads.kl_elementwise),
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
            KL=step.kl,
            SHARED_P=shared_p,
            **tile_constants(step, plan, tiles, dtype),
        )
    return grad_q, grad_p, grad_latent


def _flowing(
    step: Step, p: Tensor | None, source: Tensor | None, grads: StepGrads
) -> tuple[Step, Tensor | None, Tensor | None]:
    """The part of the step that gradients flow through: what nothing arrives at is not read."""
    if not grads.have_kl():
        step, p = step._replace(kl="none"), None
    eps_used = (grads.logprob_q if step.draw == "latent" else grads.z) is not None
    if not eps_used and step.kl != "monte_carlo":
        step, source = step._replace(draw="mode"), None
    return step, p, source


def _resolved(tensor: OptionalTensor) -> OptionalTensor:
    """Kernels read memory, where a negative view (`z.conj().imag`) has the other sign."""
    return None if tensor is None else tensor.resolve_neg()


def _plan(q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> Plan:
    p_strides = None
    if p is not None:
        p_strides = p.stride() if p.shape[0] == q.shape[0] else (0, *p.stride()[1:])
    source_strides = source.stride() if source is not None and step.draw != "seed" else None
    return make_plan(latent_shape(q), q.stride(), p_strides, source_strides, step.channels_last)


def tile_constants(step: Step, plan: Plan, tiles: Tiles, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments that all three tile kernels share, and the launch options."""
    return {
        "DRAW": step.draw,
        "STABLE": step.variance.kind == "stable",
        "LOGVAR_MAX": step.variance.raw_max,
        "CHANNELS_LAST": plan.columns_are_channels,
        "ALIGNED": plan.aligned,
        "MASKED": tiles.masked,
        "WIDE": plan.wide,
        "BLOCK_ROWS": tiles.block_rows,
        "BLOCK_COLUMNS": tiles.block_columns,
        "COMPUTE": _TRITON_DTYPE[dtype],
        "FAST": dtype == torch.float32 and NVIDIA and not INTERPRETED,
        "num_warps": tiles.warps(WARP_SIZE),
        # Explicit: Triton is about to change its default.
        "enable_fp_fusion": True,
    }


def _window(step: Step, shape: tuple[int, ...]) -> tuple[int, ...] | None:
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
