"""Made-up results files, a case of each kind, to draw figures and tables from."""

import csv
from pathlib import Path

ENVIRONMENT = {
    "device": "an abacus",
    "threads": "2",
    "torch": "2.0",
    "triton": "",
    "careamics": "0.3",
    "ladder_kernels": "0.1",
    "commit": "abcdef",
    "date": "2026-01-31",
}
SHAPES = {"level 8x8 b2": (2, 8), "level 4x4 b2": (2, 4), "sweep 2^8": (2, 8), "sweep 2^10": (2, 16)}
SECONDS = {"upstream": 100.0, "upstream, compiled": 40.0, "torch": 50.0, "cpp": 10.0}
VARIANTS = {"upstream": 100.0, "upstream, compiled": 80.0, "patched": 50.0}


def kernel_rows() -> list[dict[str, str]]:
    """Every pass of every provider at every shape: a microsecond times SECONDS for each latent."""
    rows = []
    for case, (batch, side) in SHAPES.items():
        for provider, cost in SECONDS.items():
            for name, factor in (("forward", 1), ("backward", 2), ("step", 3)):
                latents = batch * 2 * side * side
                median = cost * factor * latents
                cells = {
                    "case": case,
                    "provider": provider,
                    "pass": name,
                    "mode": "eager",
                    "status": "ok",
                    "reason": "",
                }
                cells |= {"batch": str(batch), "channels": "2", "space": f"{side}x{side}", "dtype": "float32"}
                cells |= {"layout": "nchw", "kl": "mc", "latents": str(latents), "median_us": str(median)}
                cells |= {"p20_us": str(0.9 * median), "p80_us": str(1.2 * median), "bytes": str(20 * latents)}
                cells |= {"copy_gb_per_s": "10", "copy_share": str(1 / cost), "peak_mib": ""}
                rows.append(cells | {"kept_mib": str(cost * latents / 1024)} | ENVIRONMENT)
    return rows


def training_rows() -> list[dict[str, str]]:
    rows = []
    for variant, median in VARIANTS.items():
        for name in ("train", "predict"):
            cells = {"variant": variant, "precision": "fp32", "pass": name, "status": "ok", "reason": ""}
            cells |= {"batch": "2", "patch": "64", "median_ms": str(median), "p20_ms": str(0.9 * median)}
            cells |= {"p80_ms": str(1.2 * median), "steps_per_s": "", "peak_mib": "", "final_loss": "-0.5"}
            rows.append(cells | ENVIRONMENT)
    return rows


def loss_rows() -> list[dict[str, str]]:
    return [
        {"step": str(step), "variant": variant, "precision": "fp32", "loss": str(1 / step)}
        for step in (1, 2, 3)
        for variant in ("patched", "upstream")
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def changed(rows: list[dict[str, str]], wanted: dict[str, str], cells: dict[str, str]) -> list[dict[str, str]]:
    """The rows, those with the `wanted` cells changed."""
    assert any(wanted.items() <= row.items() for row in rows)
    return [row | cells if wanted.items() <= row.items() else row for row in rows]
