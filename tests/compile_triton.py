"""`python -m tests.compile_triton [TARGET]`: compiles what the Triton backend launches, without a GPU.

The rows are a covering array for each operation: every choice that makes another kernel of it, with every other one.
The tensors have shapes, strides and dtypes, but no memory. Not with TRITON_INTERPRET=1, which compiles nothing.
"""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import sys
import traceback
from typing import Any

import torch

from ladder_kernels.backends.step import Step, StepGrads, compute_dtype
from ladder_kernels.variance import KINDS
from tests.fake_gpu import TARGETS, install
from tests.maps import MAPS
from tests.pairwise import Row, covering_rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
EITHER = (False, True)

# Factors with rules (below) first, as `covering_rows` asks for.
SAMPLE = {
    "draw": ("noise", "seed", "mode"),
    "source": (None, *DTYPES),
    "temperature": (1.0, 0.7),
    # cut: a slice that cannot be collapsed, from an odd address; mixed: p and source lie otherwise than q.
    "layout": ("nchw", "channels_last", "cut", "mixed"),
    # Whole tiles; not whole ones, in multiples of four or not; all sizes 1; several tiles a program.
    "size": ("whole", "ragged", "odd", "one", "many"),
    "dims": (1, 2, 3),
    "wide": EITHER,
    "q": DTYPES,
    # Another beta or floor is another constant, and no other code.
    "map": (*KINDS, "softplus, beta and floor"),
    "raw_min": (None, -30.0),
    "raw_max": (None, 20.0, 0.1, 1e-50),
}
FORWARD = {
    "kl": ("monte_carlo", "analytic", "none"),
    "prior": ("learned", "shared", None),
    "p": (None, *DTYPES),
    "window": EITHER,
    "elementwise": EITHER,
    **SAMPLE,
    "draw": ("noise", "seed", "latent", "mode"),
}
# The gradients that arrive; that of z by its dtype.
SUMS = ("kl_samplewise", "kl_samplewise_restricted", "kl_channelwise", "kl_spatial", "kl_elementwise", "logprob_q")
BACKWARD = {
    "grad_z": (None, *DTYPES),
    **dict.fromkeys(SUMS, EITHER),
    "needs": ("q", "p", "latent", "q p", "q latent", "p latent", "q p latent"),
    **FORWARD,
}
MIXTURE = {
    "n": (1, 2, 3, 4),
    "c": (1, 2, 3),
    "x": DTYPES,
    "signal": DTYPES,
    "needs": ("x", "signal", "weight", "x signal", "x weight", "signal weight", "x signal weight"),
    **{name: SAMPLE[name] for name in ("layout", "size", "dims", "wide")},
}
OPERATIONS = {"forward": FORWARD, "backward": BACKWARD, "sample": SAMPLE, "mixture": MIXTURE}


def _no_kl(kl: str, value: Any) -> bool:
    return kl != "none" or not value


def _needs_p(needs: str, value: Any) -> bool:
    return "p" not in needs.split() or value not in (None, "none")


def _needs_latent(needs: str, value: bool) -> bool:
    return "latent" not in needs.split() or value


# What the public functions and autograd never ask for: factors, and whether their values can meet.
RULES = [
    (("draw", "source"), lambda draw, source: (source is not None) == (draw in ("noise", "latent"))),
    (("draw", "temperature"), lambda draw, temperature: temperature == 1.0 or draw in ("noise", "seed")),
    (("prior", "p"), lambda prior, p: (prior is None) == (p is None)),
    (("layout", "dims"), lambda layout, dims: layout != "cut" or dims > 1),
    (("layout", "size"), lambda layout, size: layout != "cut" or size != "one"),
    (("prior", "size"), lambda prior, size: prior != "shared" or size != "one"),
    *((("kl", name), _no_kl) for name in ("prior", "p", "window", "elementwise", *SUMS[:5])),
    (("window", "kl_samplewise_restricted"), lambda window, arrives: window or not arrives),
    (("elementwise", "kl_elementwise"), lambda elementwise, arrives: elementwise or not arrives),
    *((("needs", name), _needs_p) for name in ("kl", "prior", "p")),
    (("needs", "draw"), lambda needs, draw: _needs_latent(needs, draw == "latent")),
    (("needs", "source"), lambda needs, source: _needs_latent(needs, source is not None)),
    (("needs", "temperature"), lambda needs, temperature: _needs_latent(needs, temperature == 1.0)),
    (("needs", "grad_z"), lambda needs, grad_z: _needs_latent(needs, grad_z is None)),
    (("draw", "grad_z"), lambda draw, grad_z: draw != "latent" or grad_z is None),
    # Something arrives; and a KL that nothing arrives at is no KL.
    (("kl", "grad_z", "logprob_q"), lambda kl, *arrive: kl != "none" or arrive != (None, False)),
    (("kl", *SUMS[:5]), lambda kl, *arrive: kl == "none" or any(arrive)),
]


def possible(row: Row) -> bool:
    """Whether no rule forbids these values."""
    return all(rule(*map(row.get, names)) for names, rule in RULES if row.keys() >= set(names))


@functools.cache
def rows() -> list[tuple[str, Row]]:
    """Operation and choices."""
    return [(operation, row) for operation, factors in OPERATIONS.items() for row in covering_rows(factors, possible)]


def few_rows() -> list[tuple[str, Row]]:
    """Those of `rows` with a choice that none before has: every choice is in one of them."""
    found: list[tuple[str, Row]] = []
    met: set[tuple[Any, ...]] = set()
    for operation, row in rows():
        choices = {(operation, *item) for item in row.items()}
        if choices - met:
            found.append((operation, row))
            met |= choices
    return found


SPACE = {
    "whole": ((256,), (16, 16), (4, 8, 8)),
    "ragged": ((36,), (6, 6), (2, 3, 6)),
    "odd": ((7,), (3, 5), (3, 1, 5)),
    "one": ((1,), (1, 1), (1, 1, 1)),
    "many": ((4096,), (64, 64), (16, 16, 16)),
}
BATCH_AND_CHANNELS = {"whole": (2, 16), "ragged": (3, 6), "odd": (3, 5), "one": (1, 1), "many": (32, 128)}


def launch(operation: str, row: Row) -> None:
    """Has the backend launch what a row asks for."""
    from ladder_kernels.backends import triton as backend

    batch, channels = BATCH_AND_CHANNELS[row["size"]]
    space = SPACE[row["size"]][row["dims"] - 1]
    last = row["layout"] == "channels_last"
    if operation == "mixture":
        launch_mixture(row, (batch, channels, *space), last)
        return
    # How all but q lies.
    others_last = last or row["layout"] == "mixed"
    variance = dataclasses.replace(MAPS[row["map"]], raw_min=row["raw_min"], raw_max=row["raw_max"])
    step = Step(row["draw"], variance=variance, temperature=row["temperature"], channels_last=last)
    q = without_memory(row, row["q"], (batch, 2 * channels, *space), last)
    source = torch.empty((), dtype=torch.int64, device="meta") if row["draw"] == "seed" else None
    if row["source"] is not None:
        source = without_memory(row, row["source"], (batch, channels, *space), others_last)
    if operation == "sample":
        backend.sample(q, source, step)
        return
    p = None
    if row["p"] is not None:
        p_batch = 1 if row["prior"] == "shared" else batch
        p = without_memory(row, row["p"], (p_batch, 2 * channels, *space), others_last)
    window = (0, 1, 0, max(1, space[-1] // 2)) if row["window"] else None
    step = step._replace(kl=row["kl"], window=window, elementwise=row["elementwise"])
    if operation == "forward":
        backend.forward(q, p, source, step)
    else:
        grads = incoming(row, (batch, channels, *space), compute_dtype(q, p, source))
        needs: Any = tuple(name in row["needs"].split() for name in ("q", "p", "latent"))
        backend.backward(q, p, source, step, grads, needs)


def launch_mixture(row: Row, shape: tuple[int, ...], last: bool) -> None:
    """Forward and backward of the mixture likelihood; the gradient that arrives is a mean's, one number for all."""
    from ladder_kernels.backends.triton import mixture

    x = without_memory(row, row["x"], shape, last or row["layout"] == "mixed")
    signal = without_memory(row, row["signal"], shape, last)
    weight = torch.empty((shape[1], 3 * row["n"], row["c"]), device="meta")
    constants = torch.empty((6, shape[1]), dtype=compute_dtype(x, signal), device="meta")
    out = mixture.forward(x, signal, weight, constants)
    needs: Any = tuple(name in row["needs"].split() for name in ("x", "signal", "weight"))
    mixture.backward(out.new_empty(()).expand(shape), x, signal, weight, constants, needs)


def without_memory(row: Row, dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    """A tensor of the row's layout: shape, strides, dtype and address, but no memory."""
    cut = row["layout"] == "cut"
    space = list(range(2, len(shape)))
    strides, stride = [0] * len(shape), 1
    for dim in reversed([0, *space, 1] if channels_last else [0, 1, *space]):
        strides[dim] = stride
        stride *= shape[dim] + cut  # longer by one than what is used of it
    if row["wide"]:
        for dim in (0, *space) if channels_last else (0, 1):
            strides[dim] *= 2**31
    # Meta tensors take any strides, and the distance from the first element is their address.
    return torch.empty(0, dtype=dtype, device="meta").as_strided(shape, strides, storage_offset=int(cut))


def incoming(row: Row, latent: tuple[int, ...], sums: torch.dtype) -> StepGrads:
    """The gradients that arrive; that of the samplewise KL as a mean's, one number for all."""
    batch, channels, *space = latent
    shapes = {
        "kl_samplewise_restricted": (batch,),
        "kl_channelwise": (batch, channels),
        "kl_spatial": (batch, *space),
        "logprob_q": (batch,),
        "kl_elementwise": latent,
    }
    grads: dict[str, Any] = {
        name: torch.empty(shape, dtype=sums, device="meta") for name, shape in shapes.items() if row[name]
    }
    if row["kl_samplewise"]:
        grads["kl_samplewise"] = torch.empty((), dtype=sums, device="meta").expand(batch)
    if row["grad_z"] is not None:
        grads["z"] = torch.empty(latent, dtype=row["grad_z"], device="meta")
    return StepGrads(**grads)


def fault(target: str, operation: str, row: Row) -> str | None:
    """What the compiler says against a row, or None."""
    from triton.backends.nvidia.compiler import CUDABackend

    install(target)
    # PTX is enough: what comes after it is the same assembler's for every kernel.
    CUDABackend.make_cubin = lambda *_: b""
    try:
        launch(operation, row)
    except Exception:
        return f"{target} {operation} {row}\n{traceback.format_exc(limit=0)}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compile_triton", description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", choices=TARGETS, default="sm_90")
    parser.add_argument("--few", action="store_true", help="every choice in one row only, four rows of other targets")
    arguments = parser.parse_args()
    if arguments.few:  # done before other processes would have started
        others = [target for target in TARGETS if target != arguments.target]
        work = [(arguments.target, *row) for row in few_rows()]
        work += [(target, *row) for target in others for row in rows()[:: len(rows()) // 4]]
        found = [fault(*each) for each in work]
    else:
        work = [(arguments.target, *row) for row in rows()]
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            found = pool.starmap(fault, work, chunksize=1)
    faults = [text for text in found if text is not None]
    print(*faults, f"{len(work)} rows, {len(faults)} do not compile", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
