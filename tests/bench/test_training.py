"""The end-to-end benchmark on tiny steps: its rows, its checks, and the steps that it times."""

from pathlib import Path

import pytest
import torch

from bench.careamics import build_loss, build_model, build_unchecked_loss
from bench.measure.counts import count_calls
from bench.report.results import read_rows
from bench.training import __main__ as training
from bench.training import run as measuring
from bench.training import steps
from bench.training.steps import BF16_MIXED, FP32, VARIANTS, Training, one_cycle
from ladder_kernels import patch_model

TINY = ["--quick", "--batch", "1", "--patch", "32", "--rounds", "2", "--device", "cpu", "--precision", FP32]


def run(folder: Path) -> dict[tuple[str, str], dict]:
    """The rows by variant and pass."""
    results = folder / "x.csv"
    assert training.main([*TINY, "--results", str(results)]) == 0
    return {(row["variant"], row["pass"]): row for row in read_rows(results)}


def test_every_variant_has_a_row_for_every_kind_of_step(tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert rows.keys() == {(variant.name, kind) for variant in VARIANTS for kind in measuring.KINDS}
    for (variant, _), row in rows.items():
        if variant in ("upstream", "upstream, no validation", "patched"):
            assert (row["status"], row["reason"], row["rounds"]) == ("ok", "", "2")
            assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        else:
            assert (row["status"], row["median_ms"]) == ("skipped", "")
            assert row["reason"]
    ours, upstream = rows["patched", "train"], rows["upstream", "train"]
    assert 10 < float(ours["peak_mib"]) < float(upstream["peak_mib"])
    assert float(ours["final_loss"]) == pytest.approx(float(upstream["final_loss"]), rel=1e-3)
    split = (rows[variant, "denoisplit"]["final_loss"] for variant in ("patched", "upstream"))
    assert float(next(split)) == pytest.approx(float(next(split)), rel=1e-3)
    assert rows["patched", "predict"]["final_loss"] == ""


def spoilt(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)


def own_noise(model):
    patch_model(model, rng="philox")


def raising(model):
    raise RuntimeError("out of luck\nand of more")


@pytest.mark.parametrize(
    ("patch", "status", "reason"),
    [
        (spoilt, "wrong", "at step 1, upstream's is"),
        (own_noise, "wrong", "at step 1, upstream's is"),
        (raising, "failed", "RuntimeError: out of luck"),
    ],
)
def test_a_variant_that_is_wrong_or_raises_has_no_time_and_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch, status: str, reason: str
) -> None:
    monkeypatch.setattr(measuring, "KINDS", {"train": Training})
    monkeypatch.setattr(measuring, "CHECKED_STEPS", 1)
    monkeypatch.setattr(steps, "patch_model", patch)
    rows = run(tmp_path)
    row = rows["patched", "train"]
    assert (row["status"], row["median_ms"]) == (status, "")
    assert reason in row["reason"]
    assert rows["upstream", "train"]["status"] == "ok"


def test_mixed_precision_reaches_the_model() -> None:
    model, seen = build_model(32), set()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    Training(model, precision=BF16_MIXED)(torch.randn(1, 1, 32, 32))
    assert seen == {torch.bfloat16}


def test_the_learning_rate_rises_and_falls_where_the_length_is_known() -> None:
    factors = [one_cycle(step, 100) for step in range(100)]
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert (factors[9], one_cycle(0, 1), round(factors[-1], 3)) == (1, 1, 0)
    step = Training(build_model(32), steps=20)
    step(torch.randn(1, 1, 32, 32))
    assert step.optimizer.param_groups[0]["lr"] == steps.PEAK_LEARNING_RATE * one_cycle(0, 20)


def test_nothing_keeps_a_patched_step_out_of_a_graph() -> None:
    """A graph holds no step in which the host waits for the device; upstream's blocks and loss make it wait."""
    patches, found = torch.randn(2, 1, 32, 32), {}

    def synchronisations(patched, build):
        model, loss = build_model(32), build(0.5)
        if patched:
            patch_model(model, rng="philox")
        else:
            found[build] = loss(model(patches), patches)["loss"]
        return count_calls(lambda: loss(model(patches), patches)["loss"].backward()).synchronisations

    # The loss's one is log(2 pi) of a tensor on the CPU, for which nothing waits.
    constant = synchronisations(True, build_unchecked_loss)
    assert constant <= 1
    assert synchronisations(True, build_loss) == constant + 2
    assert synchronisations(False, build_unchecked_loss) > constant + 10
    synchronisations(False, build_loss)
    assert torch.equal(found[build_loss], found[build_unchecked_loss])
