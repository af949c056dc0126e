"""The demo end to end on two tiny steps, its complaints, and what it shows."""

import json
from pathlib import Path

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from bench import cli
from bench.demo import __main__ as demo
from bench.demo import run
from bench.training import steps
from bench.training.micrograph import load_micrograph

TINY = ["--steps", "2", "--batch", "1", "--patch", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SHOWN": slice(32), "PREDICTIONS": 1, "BLOCK_ROUNDS": 1}.items():
        monkeypatch.setattr(run, name, value)


def test_demo_trains_both_models_to_equal_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert len(found["losses"]["upstream"]) == 2
    assert found["losses"]["ladder_kernels"] == pytest.approx(found["losses"]["upstream"], rel=1e-4)
    assert found["losses"]["control"] != found["losses"]["upstream"]
    assert found["psnr_db"]["ladder_kernels"] == pytest.approx(found["psnr_db"]["upstream"], abs=0.01)
    ours, upstream = found["block"]["ladder_kernels"], found["block"]["upstream"]
    assert ours["synchronisations"] == 0 < upstream["synchronisations"]
    for quantity in ("calls_forward", "calls_backward", "kept_mib"):
        assert ours[quantity] < upstream[quantity]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "host synchronisations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--patch", "48"], "argument --patch: must be a multiple of 32"),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
        (["--device", "meta"], "argument --device: cannot compute on 'meta': "),
        (["--out", __file__], "argument --out: cannot make the folder"),
    ],
)
def test_a_bad_value_is_one_line(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        demo.main(options)
    assert exit_info.value.code == 2
    complained = capsys.readouterr().err
    assert complaint in complained
    assert complained.count("\n") == 1


@pytest.mark.parametrize(("loss", "code"), [(None, 1), (KeyboardInterrupt(), 130)], ids=["diverged", "interrupted"])
def test_what_ends_the_demo_early_is_one_line_and_leaves_nothing_to_be_taken_for_a_result(
    loss: object, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ending(*_: object) -> None:
        if isinstance(loss, BaseException):
            raise loss

    monkeypatch.setattr(steps, "build_loss", lambda *_: ending)
    (tmp_path / "summary.json").write_text("of an earlier run")
    with pytest.raises(SystemExit) as exit_info:
        cli.run(lambda: demo.main([*TINY, "--out", str(tmp_path)]))
    assert exit_info.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("\n") == 1


def test_the_micrograph_is_what_the_page_says() -> None:
    image = load_micrograph()
    normalised = image.normalised()
    torch.testing.assert_close(torch.stack([normalised.mean(), normalised.std()]), torch.tensor([0.0, 1.0]))
    noisy, clean = image.noisy.numpy(), image.clean.numpy()
    assert peak_signal_noise_ratio(clean, noisy, data_range=1) == pytest.approx(13.98, abs=0.05)
