"""The demo's numbers as rows of text, for the console and the figure."""

from collections.abc import Callable
from typing import NamedTuple

from bench.demo.block import BlockCost
from bench.demo.run import CONTROL, NAMES, OURS, UPSTREAM, WARM_UP_STEPS, Findings


class Row(NamedTuple):
    """A quantity, its value for upstream and for ladder_kernels, and what that comes to."""

    label: str
    upstream: str
    ours: str
    verdict: str


def training_rows(findings: Findings) -> list[Row]:
    """The training step."""
    return [_row("median time of a step", findings.step_seconds(), _milliseconds, "faster", "slower")]


def block_rows(findings: Findings) -> list[Row]:
    """One stochastic block."""

    def of(quantity: Callable[[BlockCost], float]) -> dict[str, float]:
        return {name: quantity(cost) for name, cost in findings.block.items()}

    return [
        _row("forward + backward, median", of(lambda cost: cost.seconds), _milliseconds, "faster", "slower"),
        _row("ATen calls, forward", of(lambda cost: cost.calls_forward), _count, "fewer", "more"),
        _row("ATen calls, backward", of(lambda cost: cost.calls_backward), _count, "fewer", "more"),
        _row("host synchronisations", of(lambda cost: cost.synchronisations), _count, "fewer", "more"),
        _row("kept for backward", of(lambda cost: cost.bytes_kept), _mebibytes, "less", "more"),
    ]


def equality_rows(findings: Findings) -> list[Row]:
    """The distance of the loss curves, then the PSNRs."""
    labels = {OURS: "loss curves", CONTROL: "control: rounding alone"}
    rows = [
        Row(labels[name], "", "", f"differ by {relative[0]:.0e} at step 1, {max(relative):.0e} at most")
        for name, relative in findings.differences().items()
    ]
    upstream, ours = (f"{findings.psnr[name]:.2f} dB" for name in NAMES)
    return [*rows, Row("PSNR, denoised", upstream, ours, f"noisy {findings.psnr['noisy']:.2f} dB")]


def groups(findings: Findings) -> list[tuple[str, list[Row]]]:
    """The whole table: headings, and the rows under each."""
    timed = len(findings.losses[UPSTREAM]) - WARM_UP_STEPS
    steps = f"{timed} steps after {WARM_UP_STEPS} of warm-up" if timed > 0 else "all steps, too few for a warm-up"
    latent = " x ".join(map(str, findings.block_latent))
    return [
        (f"whole training step, convolutions, loss and optimizer included ({steps})", training_rows(findings)),
        (f"one stochastic block, its convolutions included, latent {latent}", block_rows(findings)),
        ("are the results equal?", equality_rows(findings)),
    ]


def console_table(findings: Findings) -> str:
    """The table for a terminal."""
    lines = [f"{'':32}{UPSTREAM:>12}{OURS:>18}"]
    for heading, rows in groups(findings):
        lines += [heading, *(f"  {row.label:30}{row.upstream:>12}{row.ours:>18}   {row.verdict}" for row in rows)]
    return "\n".join(lines)


def _row(label: str, values: dict[str, float], text: Callable[[float], str], less: str, more: str) -> Row:
    upstream, ours = values[UPSTREAM], values[OURS]
    if ours == 0:
        verdict = "none left" if upstream else ""
    elif ours <= upstream:
        verdict = f"{upstream / ours:.3g}x {less}"
    else:
        verdict = f"{ours / upstream:.3g}x {more}" if upstream else ""
    return Row(label, text(upstream), text(ours), verdict)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:.2f} MiB"


def _count(count: float) -> str:
    return str(int(count))
