"""`python -m bench.audit`: what the GPU kernels cost, read from their machine code on a machine without a GPU.

Every variant that the block-size table can choose is compiled for four architectures: registers, stack, spills,
shared memory, width of the global accesses, and instructions per latent in the main loop. From these follows which
bound an H200 meets first. `--check` compares with the stored table and fails where a kernel got worse.
"""

import argparse
import csv
import itertools
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).parent / "results" / "audit.csv"
ALLOWED_GROWTH = 1.05
WIDE_SHARE = 0.95

# A level of the default CAREamics model, batch 32: long enough that programs take several tiles.
LATENT = (32, 128, 64, 64)
TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": "gfx942"}
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")
KERNELS = ("forward mc", "forward analytic", "backward mc", "backward analytic", "sample")

# DESIGN section 7, an H200: copy bandwidth, and thread instructions issued per second.
COPY_BYTES_PER_SECOND = 4.3e12
INSTRUCTIONS_PER_SECOND = 215e9 * 135
# Values moved per latent: q and p read, z written; q, p, grad z read, both gradients written; q read, z written.
VALUES = {"forward": 5, "backward": 9, "sample": 3}


class Variant(NamedTuple):
    target: str
    kernel: str
    dtype: str
    layout: str


def audit(variant: Variant) -> dict[str, Any]:
    """Compiles one variant and returns its row of the table."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from bench.fake_gpu import FakeDriver
    from bench.sass import WARP, WAVE, amd_cost, cuda_cost

    amd = variant.target.startswith("gfx")
    target = GPUTarget("hip" if amd else "cuda", TARGETS[variant.target], WAVE if amd else WARP)
    driver.set_active(FakeDriver(target, list(TARGETS).index(variant.target)))
    compiled, elements, warps = _compile(variant, fast=not amd, warp_size=target.warp_size)
    if amd:
        cost = amd_cost(compiled.asm["amdgcn"], compiled.metadata.shared)
    else:
        tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
        cost = cuda_cost(compiled.asm["cubin"], tools, compiled.metadata.shared)
    per_latent = cost.instructions / (elements / (warps * target.warp_size))
    size = 4 if variant.dtype == "float32" else 2
    memory = VALUES[variant.kernel.split()[0]] * size / COPY_BYTES_PER_SECOND
    issue = per_latent / INSTRUCTIONS_PER_SECOND
    return {
        **variant._asdict(),
        "registers": cost.registers,
        "stack": cost.stack,
        "spills": cost.spills,
        "shared": cost.shared,
        "wide_access_share": round(cost.wide_share, 3),
        "instructions_per_latent": round(per_latent, 1),
        # The prediction is about NVIDIA's H200 alone.
        "h200_bound": ("memory" if memory >= issue else "issue") if variant.target == "sm_90" else "",
        "triton": triton.__version__,
    }


def _compile(variant: Variant, fast: bool, warp_size: int) -> tuple[Any, int, int]:
    """The compiled kernel, the elements of its tile, and its warps."""
    import torch
    import triton.language as tl
    from triton.runtime.jit import MockTensor

    from ladder_kernels.backends.triton import backward_kernel, forward_kernel, sample_kernel
    from ladder_kernels.backends.triton.plan import make_plan

    dtype = getattr(torch, variant.dtype)
    values, sums, seed = MockTensor(dtype), MockTensor(torch.float32), MockTensor(torch.int64)
    batch, channels, height, width = LATENT
    packed = torch.empty(batch, 2 * channels, height, width, device="meta")
    if variant.layout == "channels_last":
        packed = packed.to(memory_format=torch.channels_last)
    plan = make_plan(LATENT, packed.stride(), packed.stride(), None, variant.layout == "channels_last")
    direction, _, kl = variant.kernel.partition(" ")
    tiles = plan.forward if direction == "forward" else plan.backward
    space = (plan.space, plan.sizes)
    loop = (tiles.steps, tiles.column_blocks, tiles.row_blocks)
    constants: dict[str, Any] = {
        "DRAW": "seed",
        "STABLE": True,
        "LOGVAR_MAX": 20.0,
        "CHANNELS_LAST": plan.columns_are_channels,
        "ALIGNED": plan.aligned,
        "MASKED": tiles.masked,
        "WIDE": plan.wide,
        "BLOCK_ROWS": tiles.block_rows,
        "BLOCK_COLUMNS": tiles.block_columns,
        "COMPUTE": tl.float32,
        "FAST": fast,
        "num_warps": tiles.warps(warp_size),
        "enable_fp_fusion": True,
        "grid": (1,),
    }
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


def faults(rows: list[dict[str, Any]], stored: list[dict[str, str]]) -> list[str]:
    """What is wrong with these kernels, and where they got worse than the stored ones."""
    before = {_key(row): row for row in stored}
    found = []
    for row in rows:
        name = " ".join(_key(row))
        if int(row["stack"]) or int(row["spills"]):
            found.append(f"{name}: {row['stack']} bytes of stack, {row['spills']} spills")
        if float(row["wide_access_share"]) < WIDE_SHARE:
            found.append(f"{name}: only {row['wide_access_share']} of the traffic in 128-bit accesses")
        old = before.get(_key(row))
        if old is None:
            found.append(f"{name}: not in the stored table; run `make audit`")
        elif float(row["instructions_per_latent"]) > ALLOWED_GROWTH * float(old["instructions_per_latent"]):
            change = f"{old['instructions_per_latent']} -> {row['instructions_per_latent']}"
            found.append(f"{name}: instructions per latent {change}")
    return found


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[field] for field in Variant._fields)


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {field: max(len(field), *(len(str(row[field])) for row in rows)) for field in rows[0]}
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(value).ljust(widths[field]) for field, value in row.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored table instead of writing it")
    check = parser.parse_args().check
    variants = [Variant(*fields) for fields in itertools.product(TARGETS, KERNELS, DTYPES, LAYOUTS)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        rows = pool.map(audit, variants, chunksize=1)
    print_table(rows)
    if check:
        with TABLE.open(newline="") as file:
            found = faults(rows, list(csv.DictReader(file)))
        print("\n".join(found) or f"{len(rows)} kernels: no stack, no spills, wide accesses, no growth")
        return int(bool(found))
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
