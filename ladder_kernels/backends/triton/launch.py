"""What the Triton backend launches: outputs, arguments, grids."""

import contextlib
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.backends.triton.backward import Incoming, backward_kernel
from ladder_kernels.backends.triton.formulas import Variance
from ladder_kernels.backends.triton.forward import forward_kernel
from ladder_kernels.backends.triton.partials import number_of_partials
from ladder_kernels.backends.triton.plan import Plan, Tiles, make_plan
from ladder_kernels.backends.triton.reduce import reduce_kernel
from ladder_kernels.backends.triton.sample import sample_kernel
from ladder_kernels.backends.triton.tile import Layout, Strided
from ladder_kernels.geometry import dense, latent_shape

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

    def latent(dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(shape, plan.latent_strides, dtype=dtype, device=q.device)

    def sums(*sizes: int) -> Tensor:
        return q.new_empty(sizes, dtype=dtype)

    z = None if step.draw == "latent" else latent(q.dtype)
    logprob_q, qvar_max = sums(batch), sums()
    samplewise = restricted = channelwise = spatial = kl_elementwise = None
    programs = batch + 1
    if step.kl != "none":
        samplewise, channelwise, spatial = sums(batch), sums(*shape[:2]), sums(batch, *shape[2:])
        restricted = None if step.window is None else sums(batch)
        kl_elementwise = latent(dtype) if step.elementwise else None
        programs += _cdiv(batch * columns) + _cdiv(batch * rows)
    partials = sums(number_of_partials(plan, with_kl=step.kl != "none"))
    column_sums, row_sums = (channelwise, spatial) if plan.channels_inner else (spatial, channelwise)
    layout, variance = _layout(plan, tiles), Variance.of(step.variance)
    with _on_device_of(q):
        forward_kernel[(_programs(plan, tiles),)](
            Strided(q, plan.q_strides),
            None if p is None else Strided(p, plan.p_strides),
            _strided_source(source, plan),
            z,
            kl_elementwise,
            partials,
            layout,
            _window(step, shape),
            _temperature(step),
            variance,
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
            layout,
            variance,
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
    # Without partial sums to share, more programs are worth more than longer ones.
    tiles = plan.backward
    z = torch.empty_strided(shape, plan.latent_strides, dtype=q.dtype, device=q.device)
    with _on_device_of(q):
        sample_kernel[(_programs(plan, tiles),)](
            Strided(q, plan.q_strides),
            _strided_source(source, plan),
            z,
            _layout(plan, tiles),
            _temperature(step),
            Variance.of(step.variance),
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

    def contiguous(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else grad.contiguous()

    def in_order(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else dense(grad, step.channels_last)

    def of_samples(grad: Tensor | None) -> Strided | None:
        return None if grad is None else Strided(grad, (grad.stride(0),))

    over_channels, over_space = contiguous(grads.kl_spatial), contiguous(grads.kl_channelwise)
    over_rows, over_columns = (over_space, over_channels) if plan.channels_inner else (over_channels, over_space)
    incoming = Incoming(
        in_order(grads.z),
        of_samples(grads.kl_samplewise),
        of_samples(grads.kl_restricted),
        over_rows,
        over_columns,
        in_order(grads.kl_elementwise),
        of_samples(grads.logprob_q),
    )
    with _on_device_of(q):
        backward_kernel[(_programs(plan, tiles) // (shape[0] if shared_p else 1),)](
            Strided(q, plan.q_strides),
            None if p is None else Strided(p, plan.p_strides),
            _strided_source(source, plan),
            incoming,
            grad_q,
            grad_p,
            grad_latent,
            _layout(plan, tiles),
            _window(step, shape),
            _temperature(step),
            Variance.of(step.variance),
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


def _layout(plan: Plan, tiles: Tiles) -> Layout:
    return Layout(plan.sizes, plan.space, tiles.tiles, tiles.row_blocks, tiles.column_blocks)


def _programs(plan: Plan, tiles: Tiles) -> int:
    return plan.sizes[0] * tiles.row_blocks * tiles.column_blocks


def _strided_source(source: Tensor | None, plan: Plan) -> Strided | None:
    return None if source is None else Strided(source, plan.source_strides)


def tile_constants(step: Step, plan: Plan, tiles: Tiles, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments that all three tile kernels share, and the launch options."""
    return {
        "DRAW": step.draw,
        "CHANNELS_INNER": plan.channels_inner,
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
