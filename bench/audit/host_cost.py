"""`python -m bench.audit.host_cost`: microseconds that a step of a tiny latent takes, upstream's and every backend's.

There is next to nothing to compute, so what is left is what a call costs the host: small latents are bound by that. The
kernels of the GPU backends are launched into nothing; no GPU is needed. All take turns, on one thread. Prints a table
and writes a CSV.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from bench import cli
from bench.audit import nothing
from bench.kernels.cases import LOGVAR_MAX
from bench.kernels.providers import SUMS
from bench.measure.run_info import default_path, environment
from bench.measure.timing import quantile, take_turns
from bench.report.results import COLUMNS, COMPILED, FAILED, HOST_COST, OK, Table, one_line, rounded
from ladder_kernels import NormalStochasticBlock, VarianceMap, normal_sample_kl, use_backend

SIDE = 2
SHAPE = (1, 1, SIDE, SIDE)
VARIANCE = VarianceMap("stable", raw_max=LOGVAR_MAX)  # made once, as a model does
FUNCTION, BLOCK, PREDICTION = PASSES = ("function", "block", "prediction")
"""Forward and backward of `normal_sample_kl`, of a block without its convolutions, and that block's prediction."""
UNTIMED = 5  # calls before those of a turn that are timed
CPU = torch.device("cpu")

Call = Callable[[], Any]
Run = Callable[[int], list[float]]
"""How many calls -> the seconds of each."""


class Effort(NamedTuple):
    """So many calls of each before anything is timed; so many rounds, and calls of each in every round."""

    warm_up: int = 200
    rounds: int = 40
    calls: int = 50


QUICK = Effort(rounds=5)


class Inputs(NamedTuple):
    """Packed parameters of q and p, and the gradients that arrive at z and the KL of each sample."""

    q: Tensor
    p: Tensor
    incoming: tuple[Tensor, Tensor]

    def backward(self, z: Tensor, kl: Tensor) -> None:
        torch.autograd.grad((z, kl), (self.q, self.p), self.incoming)


class Provider(NamedTuple):
    """A row: its calls by pass, and what has to be done before there are any."""

    name: str
    make: Callable[[Inputs], dict[str, Call]]
    backend: str | None = None
    compiled: bool = False
    install: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        """What a pass of it is called in."""
        backend = use_backend(self.backend) if self.backend else contextlib.nullcontext()
        with backend, torch.set_grad_enabled(name != PREDICTION):
            yield


def _blocks(block: Callable[..., Any], inputs: Inputs) -> dict[str, Call]:
    """The block as it is called in a model that reads the KL of each sample."""

    def step() -> None:
        out, data = block(inputs.p, inputs.q, var_clip_max=LOGVAR_MAX)
        inputs.backward(out, data["kl_samplewise"])

    return {BLOCK: step, PREDICTION: lambda: block(inputs.p, inputs.q, var_clip_max=LOGVAR_MAX, mode_pred=True)}


def _compiled_blocks(block: nn.Module, inputs: Inputs) -> dict[str, Call]:
    """Compiled to return what our function does; of upstream's the compiler then drops the rest."""

    @torch.compile(dynamic=False)
    def forward(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX)
        # Detached as ours is, or the compiled backward has its gradient to compute.
        return {name: data[name] for name in ("z", *SUMS)} | {"qvar_max": data["qvar_max"].detach()}

    @torch.compile(dynamic=False)
    def predict(q: Tensor, p: Tensor) -> dict[str, Tensor]:
        _, data = block(p, q, var_clip_max=LOGVAR_MAX, mode_pred=True)
        return {name: data[name] for name in ("z", "logprob_q", "qvar_max")}

    def step() -> None:
        data = forward(inputs.q, inputs.p)
        inputs.backward(data["z"], data["kl_samplewise"])

    return {BLOCK: step, PREDICTION: lambda: predict(inputs.q, inputs.p)}


def _upstream_block() -> nn.Module:
    from bench.careamics import bare_block  # here: it takes seconds, and who wants ours alone need not have it

    return bare_block(SHAPE[1], 2, SIDE)


def _our_block() -> nn.Module:
    block: Any = NormalStochasticBlock(1, SHAPE[1], 1, vanilla_latent_hw=SIDE)
    block.conv_in_p = block.conv_in_q = block.conv_out = nn.Identity()
    return block


def _upstream(inputs: Inputs) -> dict[str, Call]:
    return _blocks(_upstream_block(), inputs)


def _upstream_compiled(inputs: Inputs) -> dict[str, Call]:
    return _compiled_blocks(_upstream_block(), inputs)


def _upstream_compiled_whole(inputs: Inputs) -> dict[str, Call]:
    """The prediction, compiled as it is, with all that it returns."""
    block = torch.compile(_upstream_block(), dynamic=False)
    return {PREDICTION: _blocks(block, inputs)[PREDICTION]}


def _step(q: Tensor, p: Tensor) -> Any:
    return normal_sample_kl(q, p, variance=VARIANCE, window=SIDE)


def _function(step: Callable[[Tensor, Tensor], Any], inputs: Inputs) -> dict[str, Call]:
    def call() -> None:
        result = step(inputs.q, inputs.p)
        inputs.backward(result.z, result.kl_samplewise)

    return {FUNCTION: call}


def _ours(inputs: Inputs) -> dict[str, Call]:
    return _function(_step, inputs) | _blocks(_our_block(), inputs)


def _ours_compiled(inputs: Inputs) -> dict[str, Call]:
    return _function(torch.compile(_step, dynamic=False), inputs) | _compiled_blocks(_our_block(), inputs)


PROVIDERS = (
    Provider("upstream, validation off", _upstream),
    Provider(COMPILED, _upstream_compiled, compiled=True),
    Provider(f"{COMPILED}, returning all", _upstream_compiled_whole, compiled=True),
    Provider("torch", _ours, "torch"),
    Provider("torch, compiled", _ours_compiled, "torch", compiled=True),
    Provider("cpp", _ours, "cpp"),
    Provider("cpp, compiled", _ours_compiled, "cpp", compiled=True),
    Provider("triton", _ours, "triton", install=nothing.triton),
    Provider("cuda", _ours, "cuda", install=nothing.cuda),
)


def measure(providers: Sequence[Provider], effort: Effort) -> Iterator[dict[str, Any]]:
    """A row for each pass of each provider: how long a call takes, or why there is none."""
    inputs = _inputs()
    runs: dict[str, dict[str, Run]] = {}
    reasons: dict[str, str] = {}
    for provider in providers:
        try:
            runs[provider.name] = _prepared(provider, inputs, effort)
        except Exception as error:  # whatever a compiler or a broken build raises: the others are timed all the same
            reasons[provider.name] = one_line(error)
    seconds = _seconds(runs, effort)
    for provider in providers:
        if provider.name in reasons:
            yield {"who": provider.name, "status": FAILED, "reason": reasons[provider.name]}
        for name in runs.get(provider.name, ()):
            yield {"who": provider.name, "pass": name, "status": OK} | _figures(seconds[provider.name, name], effort)


def _inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    packed = (SHAPE[0], 2 * SHAPE[1], *SHAPE[2:])
    q, p, grad_z, grad_kl = (torch.randn(s, generator=generator) for s in (packed, packed, SHAPE, SHAPE[:1]))
    return Inputs(q.requires_grad_(), p.requires_grad_(), (grad_z, grad_kl))


def _prepared(provider: Provider, inputs: Inputs, effort: Effort) -> dict[str, Run]:
    """Its turns by pass, warm."""
    provider.install()
    turns: dict[str, Run] = {}
    for name, call in provider.make(inputs).items():
        turns[name] = functools.partial(_turn, functools.partial(provider.context, name), call)
        turns[name](effort.warm_up)
    return turns


def _turn(context: Callable[[], AbstractContextManager[None]], call: Call, count: int) -> list[float]:
    """The seconds of so many calls, after a few that find the caches full of what the others left."""
    times = []
    with context():
        for _ in range(UNTIMED):
            call()
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return times


def _seconds(runs: Mapping[str, Mapping[str, Run]], effort: Effort) -> dict[tuple[str, str], list[float]]:
    """Of every call, by provider and pass, all taking turns."""
    places = {f"{who}: {name}": (who, name) for who, turns in runs.items() for name in turns}
    turns = {key: runs[who][name] for key, (who, name) in places.items()}
    seconds: dict[tuple[str, str], list[float]] = {place: [] for place in places.values()}
    for turn in take_turns(turns, [effort.calls] * effort.rounds, CPU):
        seconds[places[turn.name]] += turn.result
    return seconds


def _figures(seconds: Sequence[float], effort: Effort) -> dict[str, Any]:
    at = {"median_us": 0.5, "p20_us": 0.2, "p80_us": 0.8}
    figures = {name: rounded(1e6 * quantile(seconds, q)) for name, q in at.items()}
    return figures | {"rounds": effort.rounds, "calls": effort.calls}


def main(arguments: Sequence[str] | None = None, providers: Sequence[Provider] = PROVIDERS) -> int:
    """Run the comparison; returns the exit code."""
    parser = cli.Parser(prog="python -m bench.audit.host_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled by torch.compile")
    parser.add_argument("--results", type=Path, help=f"the CSV (bench/results/<machine>-<date>{HOST_COST}.csv)")
    options = parser.parse_args(arguments)
    results = options.results or default_path(CPU, HOST_COST, quick=options.quick)
    cli.check_folder(parser, "--results", results.parent)
    # torch.compile does so by itself, for the whole process: else eager steps would cost more before it than after.
    Distribution.set_default_validate_args(False)
    torch.set_num_threads(1)

    chosen = [each for each in providers if not (options.quick and each.compiled)]
    machine, table = environment(CPU), Table(results, COLUMNS[HOST_COST])
    rows = []
    for row in measure(chosen, QUICK if options.quick else Effort()):
        table.add(row | machine)
        rows.append(row)
    _print(rows, machine)
    print(f"written: {results}")
    return 0


def _print(rows: Sequence[dict[str, Any]], machine: dict[str, Any]) -> None:
    print(f"{machine['device']}, latent {' x '.join(map(str, SHAPE))}: microseconds of a call, median (p20, p80)\n")
    print(f"{'':32}" + "".join(f"{name:>24}" for name in PASSES))
    for who in dict.fromkeys(row["who"] for row in rows):
        own = [row for row in rows if row["who"] == who]
        cells = {row["pass"]: row for row in own if row["status"] == OK}
        print(f"{who:32}" + ("".join(_cell(cells.get(name)) for name in PASSES) if cells else f"  {own[0]['reason']}"))


def _cell(row: dict[str, Any] | None) -> str:
    return f"{row['median_us']:10.1f} ({row['p20_us']:.0f}, {row['p80_us']:.0f})".rjust(24) if row else " " * 24


if __name__ == "__main__":
    # The interpreter would run the Triton kernels instead of launching them.
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
