"""The end-to-end benchmark on tiny steps: its rows, its checks, its complaints, and what it measures with."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.careamics import build_loss, build_model, build_unchecked_loss
from bench.measure.launches import count_calls
from bench.measure.memory import peak_bytes
from bench.report import plots
from bench.report import results as read_results
from bench.training import __main__ as train
from bench.training import run as train_run
from bench.training import steps as train_steps
from bench.training.steps import BF16_MIXED, FP16_MIXED, FP32, VARIANTS, Prediction, Training
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


def run(results: Path, *options: str) -> int:
    return train.main([*TINY, *options, "--results", str(results)])


@pytest.fixture(scope="module")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("clean") / "here-2026-01-31-train.csv"
    assert run(results) == 0
    return results


@pytest.fixture
def training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_run, "KINDS", {"train": Training})


def test_every_variant_has_a_row_for_training_and_for_prediction(clean_run: Path) -> None:
    results = clean_run
    assert results.read_text().splitlines()[0] == (
        "variant,precision,pass,status,reason,batch,patch,median_ms,p20_ms,p80_ms,rounds,steps_per_s,peak_mib,"
        "final_loss,device,threads,torch,triton,careamics,ladder_kernels,commit,date"
    )
    assert {(each["variant"], each["pass"]) for each in rows(results)} == {
        (variant.name, kind) for variant in VARIANTS for kind in ("train", "predict")
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
    assert float(row(results, "patched")["peak_mib"]) < float(row(results, "upstream")["peak_mib"])


def test_the_figures_can_be_drawn_from_it(clean_run: Path) -> None:
    found = read_results.read(clean_run)
    assert len(found.rows) == 2 * len(VARIANTS)
    assert {path.name for path in plots.figures(found)} == {
        "here-2026-01-31-train-time.svg",
        "here-2026-01-31-train-losses.svg",
    }


def test_the_losses_are_those_of_every_step_and_equal(clean_run: Path) -> None:
    results = clean_run
    curves = {name: [] for name in TIMED}
    for each in rows(read_results.losses_path(results)):
        assert each["precision"] == FP32
        curves[each["variant"]].append(float(each["loss"]))
        assert int(each["step"]) == len(curves[each["variant"]])
    assert [len(curve) for curve in curves.values()] == [train_run.CHECKED_STEPS + 2] * 3
    assert curves["patched"] == pytest.approx(curves["upstream"], rel=1e-3)
    assert float(row(results, "patched")["final_loss"]) == pytest.approx(curves["patched"][-1], rel=1e-5)
    assert row(results, "patched", "predict")["final_loss"] == ""


def test_a_variant_that_computes_something_else_is_wrong_and_has_no_time(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model, rng):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.02)

    monkeypatch.setattr(train_steps, "patch_model", spoil)
    assert run(results) == 0
    for kind in ("train", "predict"):
        assert row(results, "patched", kind)["status"] == "wrong"
        assert "at step 1, upstream's is" in row(results, "patched", kind)["reason"]
        assert row(results, "patched", kind)["median_ms"] == ""
    assert row(results, "upstream")["status"] == "ok"


@pytest.mark.usefixtures("training_only")
def test_noise_of_its_own_is_wrong_where_it_should_be_upstreams(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_steps, "patch_model", lambda model, rng: patch_model(model, rng="philox"))
    run(results)
    assert row(results, "patched")["status"] == "wrong"


@pytest.mark.usefixtures("training_only")
@pytest.mark.parametrize("step", [0, 4], ids=["at once", "in its turn"])
def test_a_variant_that_raises_fails_alone(results: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    timed = train_run._timed

    def raising(runner, count, patches):
        if runner.variant.patched and count == step:
            raise RuntimeError("out of luck\nand of more")
        return timed(runner, count, patches)

    monkeypatch.setattr(train_run, "_timed", raising)
    assert run(results) == 0
    assert row(results, "patched")["status"] == "failed"
    assert row(results, "patched")["reason"].endswith("RuntimeError: out of luck")
    assert row(results, "patched")["median_ms"] == ""
    assert row(results, "upstream, no validation")["status"] == "ok"


@pytest.mark.usefixtures("training_only")
def test_without_upstream_nothing_is_taken_for_right(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = train_steps.build_step

    def broken(kind, variant, *arguments):
        if not variant.patched:
            raise RuntimeError("no upstream")
        return build(kind, variant, *arguments)

    monkeypatch.setattr(train_run, "build_step", broken)
    run(results)
    assert {each["status"] for each in rows(results)} == {"failed", "skipped"}


@pytest.mark.usefixtures("training_only")
def test_an_interruption_keeps_the_rounds_there_were(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = train_run._timed

    def interrupted(runner, count, patches):
        if count == train_run.CHECKED_STEPS + 1:
            raise KeyboardInterrupt
        return timed(runner, count, patches)

    monkeypatch.setattr(train_run, "_timed", interrupted)
    assert run(results) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; what there is lies in {results}"
    assert [each["rounds"] for each in rows(results) if each["status"] == "ok"] == ["1"] * 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--patch", "48"], "argument --patch: must be a multiple of 32"),
        (["--patch", "544"], "argument --patch: does not fit in the image, whose side is 512; got 544"),
        (["--rounds", "0"], "argument --rounds: must be a whole number of at least 1, got '0'"),
        (["--batch", "two"], "argument --batch: must be a whole number of at least 1, got 'two'"),
        (["--precision", "half"], "argument --precision: invalid choice: 'half'"),
        (["--device", "cuda:99"], "argument --device: cannot compute on 'cuda:99': "),
        (["--results", f"{__file__}/x.csv"], "argument --results: cannot make the folder"),
        (["--results", "somewhere"], "argument --results: must be a .csv file, got somewhere"),
        (["--speed", "high"], "unrecognized arguments: --speed high"),
    ],
)
def test_a_bad_value_is_one_line(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        train.main(options)
    assert exit_info.value.code == 2
    complained = capsys.readouterr().err
    assert complaint in complained
    assert complained.count("\n") == 1


def test_what_cannot_run_is_skipped_with_a_reason() -> None:
    gpu = torch.device("cuda")
    captured = VARIANTS[-1]
    for variant in VARIANTS:
        assert train_steps.reason_to_skip(variant, FP16_MIXED, CPU, train=True)
        assert bool(train_steps.reason_to_skip(variant, FP32, CPU, train=True)) == variant.captured
        assert bool(train_steps.reason_to_skip(variant, FP16_MIXED, gpu, train=True)) == variant.captured
    assert train_steps.reason_to_skip(captured, FP16_MIXED, gpu, train=False) is None
    assert train_steps.reason_to_skip(captured, BF16_MIXED, gpu, train=True) is None


def test_mixed_precision_reaches_the_model() -> None:
    step = Training(VARIANTS[3], BF16_MIXED, 32, CPU)
    seen = set()
    for module in step.model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    step(torch.randn(1, 1, 32, 32))
    assert seen == {torch.bfloat16}


def test_a_training_step_changes_the_weights_and_a_prediction_does_not() -> None:
    patches = torch.randn(1, 1, 32, 32)
    for kind, changes in ((Training, True), (Prediction, False)):
        step = kind(VARIANTS[0], FP32, 32, CPU)
        before = [parameter.detach().clone() for parameter in step.model.parameters()]
        assert step(patches).shape == ()
        after = step.model.parameters()
        assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True)) == changes


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

    with train_steps.float32_noise():
        assert torch.equal(draw(torch.bfloat16), draw(torch.float32).to(torch.bfloat16))
    assert not torch.equal(draw(torch.bfloat16), draw(torch.float32).to(torch.bfloat16))


def test_peak_bytes_is_the_most_at_once() -> None:
    mebibyte = 2**20 // 4

    def allocate():
        kept = torch.zeros(mebibyte)
        torch.zeros(2 * mebibyte)
        return kept + torch.zeros(mebibyte)

    assert peak_bytes(allocate, CPU) == 3 * 2**20
    assert peak_bytes(lambda: None, CPU) == 0


PARTS = """
import sys
for name in ("pytorch_lightning", "zarr", "skimage", "scipy", "pandas", "matplotlib", "tqdm"):
    sys.modules[name] = None
from bench.training import __main__ as train
code = train.main({options!r})
assert not any(name.startswith("careamics.careamist") for name in sys.modules)
sys.exit(code)
"""


def test_it_runs_with_the_model_s_own_dependencies_alone(results: Path) -> None:
    options = [*TINY, "--rounds", "1", "--results", str(results)]
    command = [sys.executable, "-c", PARTS.format(options=options)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scikit-image is not installed" in done.stdout
    assert row(results, "patched")["status"] == "ok"
