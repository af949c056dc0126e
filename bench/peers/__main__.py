"""`python -m bench.peers`: other VAEs' step beside ours, how far they agree and what forward + backward costs.

Each VAE's own code, eager and compiled, and ours, eager and compiled, take turns. Prints a table and writes a CSV.
Distributions do not validate, which only helps theirs; compiled, theirs draw the compiler's own noise.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench import cli
from bench.measure.run_info import default_path, environment
from bench.measure.timing import take_turns
from bench.peers import formulas
from bench.peers.formulas import Peer
from bench.report.results import COLUMNS, PEERS, Table
from ladder_kernels import DiagonalGaussianDistribution, VarianceMap, normal_sample_kl

SHAPE = (8, 32, 32, 32)
SEED = 0
WARM_UP = 3
RUNS = ("theirs", "theirs, compiled", "ours", "ours, compiled")
MEDIANS = {name: f"{name.replace(', ', '_')}_us" for name in RUNS}
DIFFERENCES = ("z_difference", "kl_difference", "gradient_difference")

Heads = tuple[Tensor, ...]
StepFunction = Callable[..., tuple[Tensor, Tensor]]
"""(*heads, noise or None: drawn) -> z (B, C, *S) and the KL of each sample (B,)."""


class Comparison(NamedTuple):
    """The two implementations of a step, and how many heads it has: q, or q and p."""

    peer: str
    ours_is: str
    variance: VarianceMap
    kl: str
    heads: int
    theirs: StepFunction
    ours: StepFunction


def comparisons() -> Iterator[Comparison]:
    """diffusers' class against ours and against the function, then the formulas."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Upstream

    def sampled(cls: Any) -> StepFunction:
        def step(q: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
            posterior = cls(q)
            return posterior.sample(), posterior.kl()

        return step

    def in_one_pass(q: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        step = normal_sample_kl(q, None, variance=variance, analytical_kl=True, noise=noise)
        return step.z, step.kl_samplewise

    variance = VarianceMap.diffusers()
    for name, ours in (("the class", sampled(DiagonalGaussianDistribution)), ("the function", in_one_pass)):
        yield Comparison("diffusers, LDM", name, variance, "analytic", 1, sampled(Upstream), ours)
    for name, peer in formulas.PEERS.items():
        kl = "analytic" if peer.analytical_kl else "mc"
        yield Comparison(name, "the function", peer.variance, kl, 2, peer.step, fused(peer))


def fused(peer: Peer) -> StepFunction:
    """The peer's step by `normal_sample_kl`, regrouping of its channels included."""

    def step(q: Tensor, p: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        q, p = peer.prepare(q, p)
        result = normal_sample_kl(q, p, variance=peer.variance, analytical_kl=peer.analytical_kl, noise=noise)
        return result.z, result.kl_samplewise

    return step


def differences(comparison: Comparison, heads: Heads, incoming: Heads) -> dict[str, float]:
    """The largest difference of z, KL and gradients with the same noise, each relative to the largest value."""
    found = []
    for step in (comparison.theirs, comparison.ours):
        torch.manual_seed(SEED)
        noise = torch.randn_like(incoming[0])
        torch.manual_seed(SEED)  # the classes draw the same by themselves
        outputs = step(*heads, noise)
        gradients = torch.autograd.grad(outputs, heads, incoming)
        found.append((*outputs, torch.cat(gradients)))
    relative = [(ours - theirs).abs().max() / theirs.abs().max() for theirs, ours in zip(*found, strict=True)]
    return dict(zip(DIFFERENCES, (float(f"{value.item():.2g}") for value in relative), strict=True))


def medians(comparison: Comparison, heads: Heads, incoming: Heads, rounds: int, compiled: bool) -> dict[str, float]:
    """Microseconds of forward + backward by name of the run; the noise is drawn in it."""
    steps: dict[str, StepFunction] = {"theirs": comparison.theirs, "ours": comparison.ours}
    if compiled:
        steps |= {f"{name}, compiled": torch.compile(step) for name, step in steps.items()}
    runs = {
        name: lambda _, step=step: torch.autograd.grad(step(*heads, None), heads, incoming)
        for name, step in steps.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in take_turns(runs, range(WARM_UP + rounds), heads[0].device):
        seconds[turn.name].append(turn.seconds)
    return {name: 1e6 * statistics.median(values[WARM_UP:]) for name, values in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = cli.Parser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="nothing compiled")
    parser.add_argument("--rounds", type=cli.positive_int, default=50, help="timed steps of each (50)")
    parser.add_argument("--device", type=cli.device, default=cli.default_device(), help="default: the GPU, if any")
    parser.add_argument("--results", type=Path, help=f"the CSV (bench/results/<machine>-<date>{PEERS}.csv)")
    options = parser.parse_args(arguments)
    results = options.results or default_path(options.device, PEERS, quick=options.quick)
    cli.check_folder(parser, "--results", results.parent)
    # torch.compile does so by itself, for the whole process: else eager steps would cost more before it than after.
    torch.distributions.Distribution.set_default_validate_args(False)

    table, machine = Table(results, COLUMNS[PEERS]), environment(options.device)
    generator = torch.Generator().manual_seed(SEED)
    batch, channels, *space = SHAPE
    q, p = (torch.randn(batch, 2 * channels, *space, generator=generator).to(options.device) for _ in range(2))
    incoming = tuple(torch.randn(shape, generator=generator).to(options.device) for shape in (SHAPE, (batch,)))
    lines = []
    for comparison in tqdm(list(comparisons()), disable=None):
        torch.compiler.reset()
        heads = tuple(head.requires_grad_() for head in (q, p)[: comparison.heads])
        row: dict[str, Any] = {
            "peer": comparison.peer,
            "ours": comparison.ours_is,
            "variance": comparison.variance,
            "kl": comparison.kl,
            "shape": "x".join(map(str, SHAPE)),
            "rounds": options.rounds,
            **differences(comparison, heads, incoming),
            **machine,
        }
        found = medians(comparison, heads, incoming, options.rounds, compiled=not options.quick)
        table.add(row | {MEDIANS[name]: f"{value:.4g}" for name, value in found.items()})
        lines.append(_line(row, found))
    print(_heading(machine))
    print("\n".join(lines))
    print(f"written: {results}")
    return 0


def _heading(machine: dict[str, Any]) -> str:
    columns = ["", "ours", "KL", *(name.removesuffix("_difference") for name in DIFFERENCES), *RUNS]
    return "\n".join(
        [
            f"{machine['device']}, {' x '.join(map(str, SHAPE))}, float32: largest differences relative to the largest "
            "value, and forward + backward, in brackets theirs (compiled: theirs, compiled) over it\n",
            "| " + " | ".join(columns) + " |",
            "| " + " | ".join(["---"] * len(columns)) + " |",
        ]
    )


def _line(row: dict[str, Any], found: dict[str, float]) -> str:
    times = []
    for name in RUNS:
        if name not in found:
            times.append("")
            continue
        ratio = found[name.replace("ours", "theirs")] / found[name]
        times.append(f"{found[name]:.0f} µs" + (f" ({ratio:.2f}x)" if name.startswith("ours") else ""))
    cells = [row["peer"], row["ours"], row["kl"], *(f"{row[name]:.0e}" for name in DIFFERENCES), *times]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
