"""The audit's rows about Triton: every variant that the block-size table can choose, compiled for four targets."""

import itertools
import tempfile
from typing import Any

from bench.audit_table import VALUES, Variant, row
from bench.sass import WARP, WAVE, amd_cost, nvidia_costs

# A level of the default CAREamics model, batch 32: long enough that programs take several tiles.
LATENT = (32, 128, 64, 64)
TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": "gfx942"}
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")
KERNELS = ("forward mc", "forward analytic", "backward mc", "backward analytic", "sample")


def variants() -> list[Variant]:
    options = [f"stable, philox, p, {layout}" for layout in LAYOUTS]
    return [Variant("triton", *fields) for fields in itertools.product(TARGETS, KERNELS, DTYPES, options)]


def audit(variant: Variant) -> dict[str, Any]:
    """Compiles one variant and returns its row of the table."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from bench.fake_gpu import FakeDriver

    amd = variant.target.startswith("gfx")
    target = GPUTarget("hip" if amd else "cuda", TARGETS[variant.target], WAVE if amd else WARP)
    driver.set_active(FakeDriver(target, list(TARGETS).index(variant.target)))
    compiled, elements, warps = _compile(variant, fast=not amd, warp_size=target.warp_size)
    if amd:
        cost = amd_cost(compiled.asm["amdgcn"], compiled.metadata.shared)
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            (cost,) = nvidia_costs(file.name).values()
        # Given at launch, so that the file does not know it.
        cost = cost._replace(shared=compiled.metadata.shared)
    latents = elements / (warps * target.warp_size)
    size = 4 if variant.dtype == "float32" else 2
    bytes_per_latent = VALUES[variant.kernel.split()[0]] * size
    return row(variant, cost, latents, bytes_per_latent, f"triton {triton.__version__}")


def _compile(variant: Variant, fast: bool, warp_size: int) -> tuple[Any, int, int]:
    """The compiled kernel, the elements of its tile, and its warps."""
    import torch
    from triton.runtime.jit import MockTensor

    from ladder_kernels.backends.step import Step
    from ladder_kernels.backends.triton import backward_kernel, forward_kernel, sample_kernel, tile_constants
    from ladder_kernels.backends.triton.plan import make_plan

    dtype = getattr(torch, variant.dtype)
    values, sums, seed = MockTensor(dtype), MockTensor(torch.float32), MockTensor(torch.int64)
    batch, channels, height, width = LATENT
    packed = torch.empty(batch, 2 * channels, height, width, device="meta")
    channels_last = variant.options.endswith("channels_last")
    if channels_last:
        packed = packed.to(memory_format=torch.channels_last)
    plan = make_plan(LATENT, packed.stride(), packed.stride(), None, channels_last)
    direction, _, kl = variant.kernel.partition(" ")
    tiles = plan.forward if direction == "forward" else plan.backward
    space = (plan.space, plan.sizes)
    loop = (tiles.steps, tiles.column_blocks, tiles.row_blocks)
    step = Step("seed", logvar_max=20.0)
    # The target's, not this machine's.
    launch = {"FAST": fast, "num_warps": tiles.warps(warp_size), "grid": (1,)}
    constants = tile_constants(step, plan, tiles, torch.float32) | launch
    strides = (plan.q_strides, plan.p_strides, None)
    arguments: tuple[Any, ...]
    if direction == "forward":
        arguments = (values, values, seed, values, None, sums, *strides, *space, None, None, *loop)
        compiled = forward_kernel.warmup(*arguments, ANALYTICAL=kl == "analytic", **constants)
    elif direction == "backward":
        grads = (values, (sums, None, None, None, None), None, values, values, None)
        arguments = (values, values, seed, *grads, *strides, (1, 0, 0), *space, None, None, *loop)
        constants |= {"ANALYTICAL": kl == "analytic", "HAS_KL": True, "SHARED_P": False}
        compiled = backward_kernel.warmup(*arguments, **constants)
    else:
        arguments = (values, seed, values, plan.q_strides, None, *space, None, *loop)
        compiled = sample_kernel.warmup(*arguments, **constants)
    return compiled, tiles.block_rows * tiles.block_columns, tiles.warps(warp_size)
