"""The demo's numbers as text, as the console and the figure show them."""

from bench.demo.run import CONTROL, NAMES, OURS, UPSTREAM, WARM_UP_STEPS, Findings

LINE = "  {:30}{:>12}{:>18}   {}"
MILLISECONDS, COUNT, MEBIBYTES = "{:.1f} ms", "{:.0f}", "{:.2f} MiB"
# What is told of a block: the quantity, its label, how it is written, and what less and more of it are.
OF_BLOCK = (
    ("ms", "forward + backward, median", MILLISECONDS, "faster", "slower"),
    ("calls_forward", "ATen calls, forward", COUNT, "fewer", "more"),
    ("calls_backward", "ATen calls, backward", COUNT, "fewer", "more"),
    ("synchronisations", "host synchronisations", COUNT, "fewer", "more"),
    ("kept_mib", "kept for backward", MEBIBYTES, "less", "more"),
)


def console_table(findings: Findings) -> str:
    """Headings, and under each the quantities: upstream's, ours, and what that comes to."""
    timed = len(findings.losses[UPSTREAM]) - WARM_UP_STEPS
    steps = f"{timed} steps after {WARM_UP_STEPS} of warm-up" if timed > 0 else "all steps, too few for a warm-up"
    lines = [f"{'':32}{UPSTREAM:>12}{OURS:>18}"]
    lines.append(f"whole training step, convolutions, loss and optimizer included ({steps})")
    lines.append(_compared("median time of a step", findings.step_ms(), MILLISECONDS, "faster", "slower"))
    latent = " x ".join(map(str, findings.block_latent))
    lines.append(f"one stochastic block, its convolutions included, latent {latent}")
    for quantity, label, *words in OF_BLOCK:
        lines.append(_compared(label, {name: findings.block[name][quantity] for name in NAMES}, *words))
    lines.append("are the results equal?")
    labels = {OURS: "loss curves", CONTROL: "control: rounding alone"}
    for name, relative in findings.differences().items():
        differ = f"differ by {relative[0]:.0e} at step 1, {max(relative):.0e} at most"
        lines.append(LINE.format(labels[name], "", "", differ))
    noisy, upstream, ours = (f"{findings.psnr_db[name]:.2f} dB" for name in ("noisy", *NAMES))
    lines.append(LINE.format("PSNR, denoised", upstream, ours, f"noisy {noisy}"))
    return "\n".join(lines)


def _compared(label: str, values: dict[str, float], text: str, less: str, more: str) -> str:
    upstream, ours = values[UPSTREAM], values[OURS]
    if ours == 0:
        verdict = "none left" if upstream else ""
    elif ours <= upstream:
        verdict = f"{upstream / ours:.3g}x {less}"
    else:
        verdict = f"{ours / upstream:.3g}x {more}" if upstream else ""
    return LINE.format(label, text.format(upstream), text.format(ours), verdict)
