"""The audit's rows about CUDA C++: every kernel in the built library, for every architecture."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from bench.audit.machine_code import KernelCost, kernel_costs, run_tool
from bench.audit.table import TARGETS, Variant, row
from ladder_kernels.backends.native import path_of
from tests.pairwise import Row, covering_rows

CHOICES = ("target", "kernel", "dtype")  # and up to three options
# csrc/cuda/plan.h, vector_width: the elements of a thread in one turn of the loop.
WIDTH = 8
# In mangled names. Kernels that move single elements look every dtype up as they run.
DTYPES = {
    "VectorsIf": "float32",
    "VectorsI6__half": "float16",
    "VectorsI13__nv_bfloat16": "bfloat16",
    "SinglesIf": "any, in float32",
    "SinglesId": "any, in float64",
    "sums_kernelIf": "float32",
    "sums_kernelId": "float64",
}


def extract_cubins(folder: str) -> list[str]:
    """Takes the library's files of machine code out into `folder`; exits if there is no library."""
    library = path_of("cuda")
    if not library.exists():
        sys.exit("the CUDA kernels are not built; run: make cuda")
    run_tool("cuobjdump", "-xelf", "all", str(library.absolute()), folder=folder)
    return sorted(map(str, Path(folder).glob("*.cubin")))


def audit(cubin: str) -> list[dict[str, Any]]:
    """The rows of one file."""
    version = re.search(rb"release [\d.]+, V([\d.]+)", Path(cubin).read_bytes())
    compiler = f"nvcc {version.group(1).decode()}" if version else "nvcc"
    return [_row(_target(cubin), symbol, cost, compiler) for symbol, cost in kernel_costs(cubin).items()]


def _target(cubin: str) -> str:
    return re.findall(r"sm_\d+", os.path.basename(cubin))[-1]


def _row(target: str, symbol: str, cost: KernelCost, compiler: str) -> dict[str, Any]:
    kernel = re.search(r"\d(forward|backward|sample|sums)_kernel", symbol)
    dtype = re.search("|".join(DTYPES), symbol)
    if kernel is None or dtype is None:
        raise ValueError(f"unknown kernel {symbol}")
    direction, name = kernel[1], DTYPES[dtype[0]]
    one_p = direction == "backward" and re.search(r"ELb1EEEv", symbol) is not None
    path = re.search(r"OptionsILNS_4DrawE(\d)ELNS_2KLE(\d)ELNS_8VarianceE(\d)EEELb(\d)E", symbol)
    if path is None:
        return row(Variant("cuda", target, direction + ", one p" * one_p, name, ""), cost, None, compiler)
    draw, kl, variance, p = map(int, path.groups())
    options = [("stable", "exp", "logstd", "softplus")[variance], ("noise", "latent", "mode")[draw]]
    if direction != "sample":  # which never has a KL; a forward pass without one is a block's prediction
        options.append("one p" if one_p else "p" if p else "no p")
        direction += f" {('none', 'mc', 'analytic')[kl]}"
    # With one p for all samples, a turn of the loop begins anew with another sample.
    latents = None if one_p else WIDTH
    return row(Variant("cuda", target, direction, name, ", ".join(options)), cost, latents, compiler)


def covering(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """So few of the rows that any two choices that meet in one of all rows meet in one of these.

    Exits unless every target has been built.
    """
    if missing := TARGETS - {row["target"] for row in rows}:
        sys.exit(f"the CUDA kernels are not built for {', '.join(sorted(missing))}; run: make cuda")
    named = {tuple(row[field] for field in CHOICES) + _three(row["options"]): row for row in rows}
    factors = {str(place): list(dict.fromkeys(values)) for place, values in enumerate(zip(*named, strict=True))}

    def possible(some: Row) -> bool:
        return any(all(choices[int(place)] == value for place, value in some.items()) for choices in named)

    return [named[tuple(str(some[place]) for place in factors)] for some in covering_rows(factors, possible)]


def _three(options: str) -> tuple[str, ...]:
    return (*options.split(", "), "", "")[:3]
