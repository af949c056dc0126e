"""The demo end to end on two tiny steps, its complaints, its interruption, and what it measures with."""

import json
from pathlib import Path

import pytest
import torch

from bench.careamics import build_model, kl_maps, predict
from bench.demo import __main__ as demo
from bench.demo import run as demo_run
from bench.demo.table import console_table
from bench.measure.launches import Calls, bytes_kept, count_calls, median_seconds
from bench.training.micrograph import load_micrograph, psnr, random_patches
from bench.training.trainer import Trainer, one_cycle

CPU = torch.device("cpu")
TINY = ["--steps", "2", "--batch", "1", "--patch", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHOWN_SIDE": 32, "PREDICTIONS": 1, "KL_SAMPLES": 1, "BLOCK_ROUNDS": 1}.items():
        monkeypatch.setattr(demo_run, name, value)


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("options", [[], ["--analytical-kl"]], ids=["monte-carlo", "analytical"])
def test_demo_trains_both_models_to_equal_losses(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([*TINY, *options, "--out", str(tmp_path)]) == 0
    found = summary(tmp_path)
    assert found["complete"]
    assert found["settings"]["analytical_kl"] == bool(options)
    assert len(found["losses"]["upstream"]) == 2
    assert found["losses"]["ladder_kernels"] == pytest.approx(found["losses"]["upstream"], rel=1e-4)
    assert found["psnr_db"]["ladder_kernels"] == pytest.approx(found["psnr_db"]["upstream"], abs=0.01)
    ours, upstream = found["block"]["ladder_kernels"], found["block"]["upstream"]
    assert ours["synchronisations"] == 0 < upstream["synchronisations"]
    for quantity in ("calls_forward", "calls_backward", "bytes_kept"):
        assert ours[quantity] < upstream[quantity]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "convolutions, loss and optimizer included" in printed
    assert "host synchronisations" in printed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--patch", "16"], "argument --patch: must be a multiple of 32"),
        (["--patch", "48"], "argument --patch: must be a multiple of 32"),
        (["--patch", "544"], "argument --patch: does not fit in the image, whose side is 512; got 544"),
        (["--patch", "-64"], "argument --patch: must be a whole number of at least 1, got '-64'"),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
        (["--batch", "two"], "argument --batch: must be a whole number of at least 1, got 'two'"),
        (["--device", "cuda:99"], "argument --device: cannot compute on 'cuda:99': "),
        (["--device", "meta"], "argument --device: cannot compute on 'meta': "),
        (["--device", "abacus"], "argument --device: cannot compute on 'abacus': "),
        (["--out", __file__], "argument --out: cannot make the folder"),
        (["--speed", "high"], "unrecognized arguments: --speed high"),
    ],
)
def test_a_bad_value_is_one_line(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        demo.main(options)
    assert exit_info.value.code == 2
    complained = capsys.readouterr().err
    assert complaint in complained
    assert complained.count("\n") == 1


def test_an_interruption_keeps_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = Trainer.step, []

    def interrupted(*arguments, **options):
        if len(calls) == 3:  # one step of each model
            raise KeyboardInterrupt
        calls.append(None)
        return step(*arguments, **options)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 130
    found = summary(tmp_path)
    assert not found["complete"]
    assert [len(losses) for losses in found["losses"].values()] == [1, 1, 1]
    assert found["block"] == {}
    assert (tmp_path / "demo.png").exists()
    assert capsys.readouterr().err == f"interrupted after 1 of 2 steps; what there is lies in {tmp_path}\n"


def test_an_interruption_while_loading_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.training.micrograph.load_micrograph", interrupt)
    assert demo.main([]) == 130
    assert capsys.readouterr().err == "interrupted before the demo began\n"


def test_a_nan_loss_ends_the_demo_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.training.trainer.build_loss", lambda _: lambda outputs, targets: None)
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 1
    assert not summary(tmp_path)["complete"]
    assert "the loss is NaN: the training diverged after 0 of 2 steps" in capsys.readouterr().err


def test_the_table_of_nothing_is_headings() -> None:
    settings = {"steps": 2, "batch": 1, "patch": 32, "analytical_kl": False}
    assert len(console_table(demo_run.new_findings(settings, CPU)).splitlines()) == 4


def test_count_calls_counts_synchronisations() -> None:
    x = torch.ones(3)
    assert count_calls(lambda: x + x) == Calls(1, 0)
    assert count_calls(lambda: (x * x).sum().item()) == Calls(3, 1)
    assert count_calls(lambda: bool(x[0] > 0)) == Calls(3, 1)


def test_count_calls_sees_the_backward() -> None:
    x = torch.ones(3, requires_grad=True)
    product, gradient = x * 2, torch.ones(3)
    assert count_calls(lambda: torch.autograd.grad(product, x, gradient)) == Calls(1, 0)


def test_bytes_kept_counts_each_storage_once_and_no_parameter() -> None:
    a, b = (torch.ones(10, requires_grad=True) for _ in range(2))
    assert bytes_kept(lambda: a * b) == 2 * 10 * 4
    assert bytes_kept(lambda: a * b, [b]) == 10 * 4
    assert bytes_kept(lambda: a[:5] * a[5:]) == 10 * 4
    assert bytes_kept(lambda: a + b) == 0
    assert bytes_kept(lambda: (a + b).exp()) == 10 * 4


def test_median_seconds_takes_turns() -> None:
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    assert set(median_seconds(runs, CPU, rounds=2, warm_up=1)) == {"a", "b"}
    assert order == ["a", "b"] * 3


def test_one_cycle_rises_and_falls() -> None:
    factors = [one_cycle(step, 100) for step in range(100)]
    assert max(factors) == factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 1e-3
    assert one_cycle(0, 1) == one_cycle(1, 1) == 1


def test_micrograph_is_normalised_and_restored() -> None:
    image = load_micrograph()
    normalised = image.normalised()
    torch.testing.assert_close(torch.stack([normalised.mean(), normalised.std()]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(image.restored(normalised), image.noisy)
    assert psnr(image.noisy, image.clean) == pytest.approx(13.98, abs=0.05)
    assert all(image.clean[image.shown(side)].shape == (side, side) for side in (32, 192, 512))


def test_random_patches_are_cut_from_the_image() -> None:
    image = torch.arange(12.0).reshape(3, 4)
    patches = random_patches(image, 2, 50, torch.Generator().manual_seed(0))
    assert patches.shape == (50, 1, 2, 2)
    assert set(patches[:, 0, 0, 0].tolist()) == {0.0, 1.0, 2.0, 4.0, 5.0, 6.0}
    assert (patches[:, 0, 1, 1] - patches[:, 0, 0, 0] == 5).all()


def test_predict_and_kl_maps_fit_the_image_and_leave_the_model() -> None:
    model = build_model(32).train()
    image = torch.randn(32, 96)
    assert predict(model, image, samples=2).shape == (32, 96)
    maps = kl_maps(model, image, samples=1)
    assert [level.shape for level in maps] == [(16, 48), (8, 24), (4, 12), (2, 6)]
    assert all((level >= 0).all() for level in maps)
    assert model.training
    assert not model.mode_pred
    assert not model.analytical_kl
    assert model.top_down_layers[-1].top_prior_params.shape[-2:] == (2, 2)
