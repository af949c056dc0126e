"""The examples run, shortly, without a network, and leave a picture; they are short, and cells."""

import re
import runpy
import socket
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
STEPS = 8  # the fewest that the schedules take

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pictures of a short run lie."""

    def refuse(*_: object) -> None:
        raise AssertionError("it asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name, value in {"STEPS": STEPS, "SAMPLES": 1, "OUT": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    matplotlib.use("Agg")
    return tmp_path


def run(example: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What it leaves, besides a picture."""
    found = runpy.run_path(str(example), run_name="__main__")
    picture = out / f"{example.stem}.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in capsys.readouterr().out
    return found


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.stem != "hdn"], ids=lambda path: path.stem)
def test_it_runs_and_leaves_a_picture(example: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(example, out, capsys)


@every_example
def test_it_is_short_and_begins_with_what_to_expect(example: Path) -> None:
    text = example.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 80
    assert text.startswith("# %% [markdown]\n# # ")
    assert len(re.findall(r"^# %%", text, re.MULTILINE)) >= 5
    assert re.search(r"\d+ steps take \d+ seconds on one core", text)


def test_hdn_runs_and_a_second_run_goes_on_where_the_first_ended(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (2, 3):
        monkeypatch.setenv("STEPS", str(steps))
        found = run(ROOT / "examples" / "hdn.py", out, capsys)
    checkpoint = torch.load(out / "hdn.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 3
    assert checkpoint["hyper_parameters"]["mean"] == pytest.approx(found["noisy"].mean())
