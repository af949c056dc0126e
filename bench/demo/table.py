"""The demo's numbers as rows of text, as the console and the figure show them."""

from typing import NamedTuple

from bench.demo.run import CONTROL, NAMES, OURS, UPSTREAM, WARM_UP_STEPS, Findings

MILLISECONDS, COUNT, MEBIBYTES = "{:.1f} ms", "{:.0f}", "{:.2f} MiB"
# What is told of a block: the quantity, its label, how it is written, and what less and more of it are.
OF_BLOCK = (
    ("ms", "forward + backward, median", MILLISECONDS, "faster", "slower"),
    ("calls_forward", "ATen calls, forward", COUNT, "fewer", "more"),
    ("calls_backward", "ATen calls, backward", COUNT, "fewer", "more"),
    ("synchronisations", "host synchronisations", COUNT, "fewer", "more"),
    ("kept_mib", "kept for backward", MEBIBYTES, "less", "more"),
)


class Row(NamedTuple):
    """A quantity, its value for upstream and for ladder_kernels, and what that comes to."""

    label: str
    upstream: str
    ours: str
    verdict: str


def groups(findings: Findings) -> list[tuple[str, list[Row]]]:
    """The whole table: headings, and the rows under each."""
    timed = len(findings.losses[UPSTREAM]) - WARM_UP_STEPS
    steps = f"{timed} steps after {WARM_UP_STEPS} of warm-up" if timed > 0 else "all steps, too few for a warm-up"
    latent = " x ".join(map(str, findings.block_latent))
    step = _row("median time of a step", findings.step_ms(), MILLISECONDS, "faster", "slower")
    block = [
        _row(label, {name: findings.block[name][quantity] for name in NAMES}, *words)
        for quantity, label, *words in OF_BLOCK
    ]
    labels = {OURS: "loss curves", CONTROL: "control: rounding alone"}
    equality = [
        Row(labels[name], "", "", f"differ by {relative[0]:.0e} at step 1, {max(relative):.0e} at most")
        for name, relative in findings.differences().items()
    ]
    psnr = {name: f"{value:.2f} dB" for name, value in findings.psnr.items()}
    equality.append(Row("PSNR, denoised", psnr[UPSTREAM], psnr[OURS], f"noisy {psnr['noisy']}"))
    return [
        (f"whole training step, convolutions, loss and optimizer included ({steps})", [step]),
        (f"one stochastic block, its convolutions included, latent {latent}", block),
        ("are the results equal?", equality),
    ]


def console_table(findings: Findings) -> str:
    """The table for a terminal."""
    lines = [f"{'':32}{UPSTREAM:>12}{OURS:>18}"]
    for heading, rows in groups(findings):
        lines += [heading, *(f"  {row.label:30}{row.upstream:>12}{row.ours:>18}   {row.verdict}" for row in rows)]
    return "\n".join(lines)


def _row(label: str, values: dict[str, float], text: str, less: str, more: str) -> Row:
    upstream, ours = values[UPSTREAM], values[OURS]
    if ours == 0:
        verdict = "none left" if upstream else ""
    elif ours <= upstream:
        verdict = f"{upstream / ours:.3g}x {less}"
    else:
        verdict = f"{ours / upstream:.3g}x {more}" if upstream else ""
    return Row(label, text.format(upstream), text.format(ours), verdict)
