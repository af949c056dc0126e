"""The audit's rows about Triton: compiled here, for GPUs that are not there."""

import itertools
import tempfile
from typing import Any

import torch

from bench.audit.machine_code import kernel_costs
from bench.audit.table import BUDGETS_TARGET, TARGETS, Variant, row
from ladder_kernels.variance import KINDS
from tests.compile_triton import SUMS, launch
from tests.fake_gpu import compiled_launches, install
from tests.pairwise import Factors, Row, covering_rows

# What the kernels have in common, as rows of the tests: seeds, a clamp, a learned prior, a KL's gradient and z's; many
# latents, so that programs take several tiles.
STEP: Row = {
    **{"draw": "seed", "source": None, "temperature": 1.0, "raw_min": None, "raw_max": 20.0, "prior": "learned"},
    **{"size": "many", "dims": 2, "wide": False, "window": False, "elementwise": False, "needs": "q p"},
    **dict.fromkeys(SUMS, False),
    "kl_samplewise": True,
}
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("nchw", "channels_last")
# "forward none" is prediction's one pass.
KERNELS = ("forward mc", "forward analytic", "forward none", "backward mc", "backward analytic", "sample")
KL = {"mc": "monte_carlo", "analytic": "analytic", "none": "none"}
# Components and coefficients of a mixture likelihood.
MIXTURES = ((1, 1), (3, 2), (4, 3))
MIXTURE_KERNELS = ("mixture forward", "mixture backward", "mixture backward, weight")


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
    # After a forward pass comes the launch of its reduction; after a mixture's the one of its backward pass.
    place = 1 if variant.kernel.startswith("mixture backward") else 0
    compiled, (*_, mode) = compiled_launches(lambda: _launch(variant))[place]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (cost,) = kernel_costs(file.name).values()
    # Given at launch, so that the file does not know it.
    cost = cost._replace(shared=compiled.metadata.shared)
    threads = compiled.metadata.num_warps * compiled.metadata.target.warp_size
    at_once = mode.block.value if mixture else mode.block_rows.value * mode.block_columns.value
    return row(variant, cost, at_once / threads, f"triton {triton.__version__}")


def _launch(variant: Variant) -> None:
    """Has the backend launch what the variant names, on tensors without memory."""
    dtype: Any = getattr(torch, variant.dtype)
    options = variant.options.split(", ")
    if variant.kernel in MIXTURE_KERNELS:
        n, c = (int(option.split()[0]) for option in options)
        needs = "signal weight" if variant.kernel.endswith("weight") else "signal"
        launch("mixture", STEP | {"n": n, "c": c, "x": dtype, "signal": dtype, "needs": needs, "layout": "nchw"})
        return
    operation, _, kl = variant.kernel.partition(" ")
    p = None if kl == "none" else dtype
    choices = {"kl": KL.get(kl), "q": dtype, "p": p, "grad_z": dtype, "map": options[0], "layout": options[-1]}
    launch(operation, STEP | choices)
