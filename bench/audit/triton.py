"""The audit's rows about Triton: compiled here, for GPUs that are not there."""

import itertools
import tempfile
from typing import Any, Literal

from bench.audit.machine_code import kernel_costs
from bench.audit.table import BUDGETS_TARGET, TARGETS, Variant, row
from ladder_kernels.variance import KINDS, VarianceMap
from tests.fake_gpu import compiled_launches, install
from tests.pairwise import Factors, covering_rows

# A level of the default CAREamics model, batch 32: long enough that programs take several tiles.
LATENT = (32, 128, 64, 64)
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")
# "forward none" is prediction's one pass.
KERNELS = ("forward mc", "forward analytic", "forward none", "backward mc", "backward analytic", "sample")
KL: dict[str, Literal["monte_carlo", "analytic", "none"]] = {
    "mc": "monte_carlo",
    "analytic": "analytic",
    "none": "none",
}
# Components and coefficients of a mixture likelihood, of a batch of denoiSplit.
MIXTURES = ((1, 1), (3, 2), (4, 3))
MIXTURE_KERNELS = ("mixture forward", "mixture backward", "mixture backward, weight")
PIXELS = (32, 2, 64, 64)


def variants() -> list[Variant]:
    """Every pair of choices on the target of the budgets, and once more on the others together."""
    choices: Factors = {"kernel": KERNELS, "kind": KINDS, "dtype": DTYPES, "layout": LAYOUTS}
    others = sorted(TARGETS - {BUDGETS_TARGET})
    rows: list[Any] = [row | {"target": BUDGETS_TARGET} for row in covering_rows(choices, lambda row: True)]
    rows += covering_rows({"target": others, **choices}, lambda row: True)
    mixtures = itertools.product(MIXTURE_KERNELS, DTYPES[:2], MIXTURES)
    return [_variant(**row) for row in rows] + [
        Variant("triton", BUDGETS_TARGET, kernel, dtype, f"{n} components, {c} coefficients")
        for kernel, dtype, (n, c) in mixtures
    ]


def _variant(target: str, kernel: str, kind: str, dtype: str, layout: str) -> Variant:
    p = "no p" if kernel in ("forward none", "sample") else "p"
    return Variant("triton", target, kernel, dtype, f"{kind}, philox, {p}, {layout}")


def audit(variant: Variant) -> dict[str, Any]:
    """Compiles one variant and returns its row of the table."""
    import triton

    install(variant.target)
    mixture = variant.kernel in MIXTURE_KERNELS
    # The first launch: after forward's comes that of its reduction.
    compiled, (*_, mode) = compiled_launches(lambda: _call_mixture(variant) if mixture else _call(variant))[0]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (cost,) = kernel_costs(file.name).values()
    # Given at launch, so that the file does not know it.
    cost = cost._replace(shared=compiled.metadata.shared)
    threads = compiled.metadata.num_warps * compiled.metadata.target.warp_size
    at_once = mode.block.value if mixture else mode.block_rows.value * mode.block_columns.value
    return row(variant, cost, at_once / threads, f"triton {triton.__version__}")


def _call(variant: Variant) -> None:
    """The backend is asked for what the variant names, on tensors without memory."""
    import torch

    from ladder_kernels.backends import triton as backend
    from ladder_kernels.backends.step import Step, StepGrads

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        layout = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

    channels_last = variant.options.endswith("channels_last")
    kind = variant.options.partition(",")[0]
    dtype = getattr(torch, variant.dtype)
    batch, channels, *space = LATENT
    q, p = (empty(batch, 2 * channels, *space, dtype=dtype) for _ in range(2))
    seed = empty(dtype=torch.int64)
    direction, _, kl = variant.kernel.partition(" ")
    step = Step("seed", KL[kl or "none"], variance=VarianceMap(kind, raw_max=20.0), channels_last=channels_last)
    if direction == "sample":
        backend.sample(q, seed, step)
    elif direction == "forward":
        backend.forward(q, None if kl == "none" else p, seed, step)
    else:
        grads = StepGrads(z=empty(*LATENT, dtype=dtype), kl_samplewise=empty(batch, dtype=torch.float32))
        backend.backward(q, p, seed, step, grads, (True, True, False))


def _call_mixture(variant: Variant) -> None:
    import torch

    from ladder_kernels.backends.torch.mixture import CONSTANTS
    from ladder_kernels.backends.triton import mixture

    n, c = (int(option.split()[0]) for option in variant.options.split(", "))
    x = torch.empty(PIXELS, dtype=getattr(torch, variant.dtype), device="meta")
    channels = PIXELS[1]
    weight = torch.empty((channels, 3 * n, c), device="meta")
    constants = torch.empty((len(CONSTANTS), channels), device="meta")
    if variant.kernel == "mixture forward":
        mixture.forward(x, x, weight, constants)
    else:
        needs = (False, True, variant.kernel.endswith("weight"))
        mixture.backward(x.float(), x, x, weight, constants, needs)
