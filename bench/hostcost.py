"""`python -m bench.hostcost`: microseconds that a step of a tiny latent takes, upstream's and every backend's.

There is next to nothing to compute, so what is left is what a call costs the host: small latents are bound by that. All
take turns, on one thread. The Triton kernels are launched into nothing.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import cli
from bench.careamics import bare_block
from bench.kernels.cases import LOGVAR_MAX
from bench.kernels.providers import SUMS, validation
from bench.measure.run_info import environment
from bench.measure.timing import seconds_by_name, spread, take_turns
from bench.report.results import COLUMNS, COMPILED, HOST_COST, Table
from ladder_kernels import NormalStochasticBlock, VarianceMap, normal_sample_kl, use_backend
from ladder_kernels.backends import select, triton
from tests import fake_gpu

CPU = torch.device("cpu")
VARIANCE = VarianceMap("stable", raw_max=LOGVAR_MAX)  # made once, as a model does
WARM_UP, UNTIMED, TIMED = 200, 5, 50  # calls before all; and in a turn, whose first find the caches full of others'
WHO = {
    "upstream, validation off": None,
    COMPILED: None,
    **{name: name.partition(",")[0] for name in ("torch", "torch, compiled", "cpp", "cpp, compiled", "triton")},
}
"""And the backend. Triton last: Inductor must not meet a GPU that is not there."""


def calls(backend: str | None, compiled: bool) -> dict[str, Callable[[], None]]:
    """Forward and backward of `normal_sample_kl` (ours alone) and of the block, and the block's prediction."""
    q, p = (torch.randn(1, 2, 2, 2, requires_grad=True) for _ in range(2))
    incoming = torch.randn(1, 1, 2, 2), torch.randn(1)
    block: Any = NormalStochasticBlock(1, 1, 1, vanilla_latent_hw=2) if backend else bare_block(1, 2, 2)
    block.conv_in_p = block.conv_in_q = block.conv_out = nn.Identity()
    # Compiled, what our function returns: of upstream's the compiler then drops the rest.
    wanted = ("z", *SUMS, "qvar_max") if compiled else ("z", "kl_samplewise")

    def function(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        return normal_sample_kl(q, p, variance=VARIANCE, window=2)._asdict()

    def step(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX)
        return {name: data[name].detach() if name == "qvar_max" else data[name] for name in wanted}

    def predict(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX, mode_pred=True)
        return {name: data[name] for name in ("z", "logprob_q", "qvar_max")}

    def call(run: Callable[..., dict[str, Tensor]]) -> None:
        out = run(q, p)
        if torch.is_grad_enabled():
            torch.autograd.grad((out["z"], out["kl_samplewise"]), (q, p), incoming)

    runs = ({"function": function} if backend else {}) | {"block": step, "prediction": predict}
    compiler = partial(torch.compile, dynamic=False) if compiled else lambda run: run
    return {name: partial(call, compiler(run)) for name, run in runs.items()}


def repeat(call: Callable[[], None], backend: str | None, name: str, count: int) -> None:
    with use_backend(backend or "torch"), torch.set_grad_enabled(name != "prediction"), validation(False):
        for _ in range(count):
            call()


def launch_into_nothing() -> None:
    """From now on `use_backend("triton")` takes CPU tensors."""
    fake_gpu.install("sm_90")
    backend: Any = triton
    backend.unavailable, backend.unsupported = lambda: None, lambda q, p: None
    select._find.cache_clear()


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m bench.hostcost", description=__doc__.splitlines()[0])
    options = cli.table_options(parser, arguments, HOST_COST, quick="few rounds, nothing compiled")
    torch.set_num_threads(1)
    runs: dict[str, Callable[[int], None]] = {}
    for who, backend in WHO.items():
        if options.quick and "compiled" in who:
            continue
        if backend == "triton":
            launch_into_nothing()
        print(f"{who}: warming up", file=sys.stderr, flush=True)
        for name, call in calls(backend, "compiled" in who).items():
            runs[f"{who}: {name}"] = partial(repeat, call, backend, name)
            runs[f"{who}: {name}"](WARM_UP)
    rounds = 5 if options.quick else 40
    turns = take_turns(runs, [TIMED] * rounds, CPU, lambda key, _: runs[key](UNTIMED))
    table, machine = Table(options.results, COLUMNS[HOST_COST]), environment(CPU)
    for key, found in seconds_by_name(turns).items():
        who, name = key.split(": ")
        figures = spread([each / TIMED for each in found], "us")
        table.add({"who": who, "pass": name, "rounds": rounds, **figures, **machine})
        print(f"{key:40}" + "".join(f"{value:8.1f}" for value in figures.values()))
    table.done()
    print(f"microseconds: 20th percentile, median, 80th; written: {table.path}")
    return 0


if __name__ == "__main__":
    # The interpreter would run the Triton kernels instead of launching them.
    os.environ.pop("TRITON_INTERPRET", None)
    cli.run(main)
