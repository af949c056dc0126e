"""`python -m bench.hostcost`: microseconds that a step of a tiny latent takes, upstream's and every backend's.

There is next to nothing to compute, so what is left is what a call costs the host: small latents are bound by that. All
take turns, on one thread. The Triton kernels are launched into nothing.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import cli
from bench.careamics import bare_block
from bench.kernels.cases import LOGVAR_MAX
from bench.kernels.providers import SUMS, validation
from bench.measure.run_info import default_path, environment
from bench.measure.timing import quantile, take_turns
from bench.report.results import COLUMNS, COMPILED, HOST_COST, Table, rounded
from ladder_kernels import NormalStochasticBlock, VarianceMap, normal_sample_kl, use_backend
from ladder_kernels.backends import select

VARIANCE = VarianceMap("stable", raw_max=LOGVAR_MAX)  # made once, as a model does
WARM_UP, UNTIMED, TIMED = (
    200,
    5,
    50,
)  # calls before all; and in a turn, whose first ones find the caches full of others'
ROUNDS, QUICK_ROUNDS = 40, 5
CPU = torch.device("cpu")
Call = Callable[[], Any]


def our_block() -> nn.Module:
    block: Any = NormalStochasticBlock(1, 1, 1, vanilla_latent_hw=2)
    block.conv_in_p = block.conv_in_q = block.conv_out = nn.Identity()
    return block


def calls(backend: str | None, compiled: bool) -> dict[str, Call]:
    """Forward and backward of `normal_sample_kl` (ours alone) and of the block, and the block's prediction."""
    q, p = (torch.randn(1, 2, 2, 2, requires_grad=True) for _ in range(2))
    incoming = torch.randn(1, 1, 2, 2), torch.randn(1)
    block = our_block() if backend else bare_block(1, 2, 2)
    # Compiled, what our function returns: of upstream's the compiler then drops the rest.
    wanted = ("z", *SUMS, "qvar_max") if compiled else ("z", "kl_samplewise")

    def step(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX)
        return {name: data[name].detach() if name == "qvar_max" else data[name] for name in wanted}

    def predict(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX, mode_pred=True)
        return {name: data[name] for name in ("z", "logprob_q", "qvar_max")}

    def function(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        return normal_sample_kl(q, p, variance=VARIANCE, window=2)._asdict()

    def made(run: Callable[..., dict[str, Tensor]]) -> Call:
        run = torch.compile(run, dynamic=False) if compiled else run

        def once() -> None:
            out = run(q, p)
            if torch.is_grad_enabled():
                torch.autograd.grad((out["z"], out["kl_samplewise"]), (q, p), incoming)

        return once

    return ({"function": made(function)} if backend else {}) | {"block": made(step), "prediction": made(predict)}


def turn(call: Call, backend: str | None, name: str, count: int) -> list[float]:
    """The seconds of so many calls."""
    seconds = []
    with use_backend(backend or "torch"), torch.set_grad_enabled(name != "prediction"), validation(False):
        for _ in range(UNTIMED + count):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return seconds[UNTIMED:]


def launch_into_nothing() -> None:
    """From now on `use_backend("triton")` takes CPU tensors."""
    from ladder_kernels.backends import triton
    from tests.fake_gpu import install

    install("sm_90")
    backend: Any = triton
    backend.unavailable, backend.unsupported = lambda: None, lambda q, p: None
    select._find.cache_clear()


def main(arguments: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m bench.hostcost", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled")
    parser.add_argument("--results", type=Path, help=f"the CSV (bench/results/<machine>-<date>{HOST_COST}.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    launch_into_nothing()
    runs: dict[str, Callable[[int], list[float]]] = {}
    for backend in (None, "torch", "cpp", "triton"):
        for compiled in (False,) if options.quick else (False, True):
            who = backend + ", compiled" * compiled if backend else COMPILED if compiled else "upstream, validation off"
            print(f"{who}: {'compiling, ' * compiled}warming up", file=sys.stderr, flush=True)
            for name, call in calls(backend, compiled).items():
                runs[f"{who}: {name}"] = functools.partial(turn, call, backend, name)
                runs[f"{who}: {name}"](WARM_UP)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for each in take_turns(runs, [TIMED] * rounds, CPU):
        seconds[each.name] += each.result
    results, machine = options.results or default_path(CPU, HOST_COST, quick=options.quick), environment(CPU)
    table = Table(results, COLUMNS[HOST_COST])
    for key, found in seconds.items():
        figures = {
            f"{at}_us": rounded(1e6 * quantile(found, q)) for at, q in (("p20", 0.2), ("median", 0.5), ("p80", 0.8))
        }
        table.add(dict(zip(("who", "pass"), key.split(": "), strict=True)) | figures | {"rounds": rounds} | machine)
        print(f"{key:30}" + "".join(f"{value:10.1f}" for value in figures.values()))
    table.done()
    print(f"microseconds: 20th percentile, median, 80th percentile; written: {table.path}")
    return 0


if __name__ == "__main__":
    # The interpreter would run the Triton kernels instead of launching them.
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
