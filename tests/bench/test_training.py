"""The end-to-end benchmark on tiny steps: its rows, its checks, and the steps that it times."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.careamics import build_loss, build_model, build_unchecked_loss
from bench.measure.launches import count_calls
from bench.report.results import read
from bench.training import __main__ as training
from bench.training import run as measuring
from bench.training import steps
from bench.training.steps import BF16_MIXED, FP16_MIXED, FP32, VARIANTS, Prediction, Training, one_cycle
from ladder_kernels import patch_model

CPU = torch.device("cpu")
TINY = ["--quick", "--batch", "1", "--patch", "32", "--rounds", "2", "--device", "cpu", "--precision", FP32]
TIMED = ("upstream", "upstream, no validation", "patched")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "here-2026-01-31-train.csv"


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(path: Path, variant: str, kind: str = "train") -> dict:
    (found,) = (each for each in rows(path) if (each["variant"], each["pass"]) == (variant, kind))
    return found


def run(results: Path) -> int:
    return training.main([*TINY, "--results", str(results)])


@pytest.fixture
def training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as shows what the group does with its variants."""
    monkeypatch.setattr(measuring, "KINDS", ("train",))
    monkeypatch.setattr(measuring, "CHECKED_STEPS", 1)


def test_every_variant_has_a_row_for_every_kind_of_step(results: Path) -> None:
    assert run(results) == 0
    assert {(each["variant"], each["pass"]) for each in read(results).rows} == {
        (variant.name, kind) for variant in VARIANTS for kind in ("train", "predict", "denoisplit")
    }
    for each in rows(results):
        assert (each["batch"], each["patch"], each["precision"]) == ("1", "32", FP32)
        if each["variant"] in TIMED:
            assert (each["status"], each["reason"], each["rounds"]) == ("ok", "", "2")
            assert 0 < float(each["p20_ms"]) <= float(each["median_ms"]) <= float(each["p80_ms"])
            assert float(each["steps_per_s"]) == pytest.approx(1e3 / float(each["median_ms"]), rel=1e-2)
            assert float(each["peak_mib"]) > 10
        else:
            assert each["status"] == "skipped"
            assert each["reason"]
            assert each["median_ms"] == ""
    ours, upstream = row(results, "patched"), row(results, "upstream")
    assert float(ours["peak_mib"]) < float(upstream["peak_mib"])
    assert float(ours["final_loss"]) == pytest.approx(float(upstream["final_loss"]), rel=1e-3)
    assert row(results, "patched", "predict")["final_loss"] == ""


def test_a_variant_that_computes_something_else_is_wrong_and_has_no_time(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model, rng):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.02)

    monkeypatch.setattr(steps, "patch_model", spoil)
    assert run(results) == 0
    for kind in ("train", "predict", "denoisplit"):
        assert row(results, "patched", kind)["status"] == "wrong"
        assert "at step 1, upstream's is" in row(results, "patched", kind)["reason"]
        assert row(results, "patched", kind)["median_ms"] == ""
    assert row(results, "upstream")["status"] == "ok"


@pytest.mark.usefixtures("training_only")
def test_noise_of_its_own_is_wrong_where_it_should_be_upstreams(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "patch_model", lambda model, rng: patch_model(model, rng="philox"))
    run(results)
    assert row(results, "patched")["status"] == "wrong"


@pytest.mark.usefixtures("training_only")
@pytest.mark.parametrize("step", [0, 2], ids=["at once", "in its turn"])
def test_a_variant_that_raises_fails_alone(results: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def raising(*_):
        raise RuntimeError("out of luck\nand of more")

    prepare = measuring.Runner.prepare

    def planting(runner, given):
        prepare(runner, given)
        if runner.variant.patched and given[0] == step:
            runner.step = raising

    monkeypatch.setattr(measuring.Runner, "prepare", planting)
    assert run(results) == 0
    assert row(results, "patched")["status"] == "failed"
    assert row(results, "patched")["reason"].endswith("RuntimeError: out of luck")
    assert row(results, "patched")["median_ms"] == ""
    assert row(results, "upstream, no validation")["status"] == "ok"


@pytest.mark.usefixtures("training_only")
def test_without_upstream_nothing_is_taken_for_right(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = measuring.build

    def broken(kind, variant, *arguments):
        if not variant.patched:
            raise RuntimeError("no upstream")
        return build(kind, variant, *arguments)

    monkeypatch.setattr(measuring, "build", broken)
    run(results)
    assert {each["status"] for each in rows(results)} == {"failed", "skipped"}


@pytest.mark.usefixtures("training_only")
def test_an_interruption_keeps_the_rounds_there_were(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = measuring.Runner.prepare

    def interrupted(runner, given):
        if given[0] == measuring.CHECKED_STEPS + 1:
            raise KeyboardInterrupt
        prepare(runner, given)

    monkeypatch.setattr(measuring.Runner, "prepare", interrupted)
    assert run(results) == 130
    assert [each["rounds"] for each in rows(results) if each["status"] == "ok"] == ["1"] * 3


def test_what_cannot_run_is_skipped_with_a_reason() -> None:
    gpu, captured = torch.device("cuda"), VARIANTS[-1]
    for variant in VARIANTS:
        assert steps.reason_to_skip(variant, FP16_MIXED, CPU, train=True)
        assert bool(steps.reason_to_skip(variant, FP32, CPU, train=True)) == variant.captured
        assert bool(steps.reason_to_skip(variant, FP16_MIXED, gpu, train=True)) == variant.captured
    assert steps.reason_to_skip(captured, FP16_MIXED, gpu, train=False) is None
    assert steps.reason_to_skip(captured, BF16_MIXED, gpu, train=True) is None


def test_mixed_precision_reaches_the_model() -> None:
    model, seen = build_model(32), set()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    Training(model, precision=BF16_MIXED)(torch.randn(1, 1, 32, 32))
    assert seen == {torch.bfloat16}


def test_a_training_step_changes_the_weights_and_a_prediction_does_not() -> None:
    patches = torch.randn(1, 1, 32, 32)
    for kind, changes in ((Training, True), (Prediction, False)):
        step = kind(build_model(32), steps.UPSTREAM, FP32)
        before = [parameter.detach().clone() for parameter in step.model.parameters()]
        assert step(patches).shape == ()
        after = step.model.parameters()
        assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True)) == changes


def test_the_learning_rate_rises_and_falls_where_the_length_is_known() -> None:
    factors = [one_cycle(step, 100) for step in range(100)]
    assert max(factors) == factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 1e-3
    assert one_cycle(0, 1) == one_cycle(1, 1) == 1
    step, rates = Training(build_model(32), steps=20), []
    for _ in range(3):
        step(torch.randn(1, 1, 32, 32))
        rates.append(step.optimizer.param_groups[0]["lr"])
    assert rates == [steps.PEAK_LEARNING_RATE * one_cycle(count, 20) for count in range(3)]


def test_the_unchecked_loss_is_hdn_loss() -> None:
    patches = torch.randn(2, 1, 32, 32)
    outputs = build_model(32)(patches)
    expected, found = build_loss(0.5)(outputs, patches), build_unchecked_loss(0.5)(outputs, patches)
    assert torch.equal(found["loss"], expected["loss"])


def test_nothing_keeps_a_patched_step_out_of_a_graph() -> None:
    """A graph holds no step in which the host waits for the device; upstream's blocks and loss make it wait."""
    patches = torch.randn(1, 1, 32, 32)

    def synchronisations(patched, build):
        model, loss = build_model(32), build(0.5)
        if patched:
            patch_model(model, rng="philox")
        return count_calls(lambda: loss(model(patches), patches)["loss"].backward()).synchronisations

    # The loss's one is log(2 pi) of a tensor on the CPU, for which nothing waits.
    constant = synchronisations(True, build_unchecked_loss)
    assert constant <= 1
    assert synchronisations(True, build_loss) == constant + 2
    assert synchronisations(False, build_unchecked_loss) > constant + 10


def test_float32_noise_is_that_of_float32() -> None:
    def draw(dtype):
        torch.manual_seed(0)
        return torch.distributions.Normal(torch.zeros(64, dtype=dtype), 1.0).rsample()

    with measuring.float32_noise():
        assert torch.equal(draw(torch.bfloat16), draw(torch.float32).to(torch.bfloat16))
    assert not torch.equal(draw(torch.bfloat16), draw(torch.float32).to(torch.bfloat16))


# One kind, two variants, a step of each to be checked and one to be timed: it is about what can be imported.
PARTS = """
import sys
for name in ("pytorch_lightning", "zarr", "skimage", "scipy", "pandas", "matplotlib", "tqdm"):
    sys.modules[name] = None
from bench.training import __main__, run, steps
run.KINDS, run.VARIANTS, run.CHECKED_STEPS = ("train",), (steps.UPSTREAM, steps.VARIANTS[3]), 1
code = __main__.main({options!r})
assert not any(name.startswith("careamics.careamist") for name in sys.modules)
sys.exit(code)
"""


def test_it_runs_with_the_model_s_own_dependencies_alone(results: Path) -> None:
    options = [*TINY, "--rounds", "1", "--results", str(results)]
    command = [sys.executable, "-c", PARTS.format(options=options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in conftest.py: threads only wait for each other
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scikit-image is not installed" in done.stdout
    assert row(results, "patched")["status"] == "ok"
