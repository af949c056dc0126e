"""The files of docs/careamics.md do what the page says, run one after the other as they stand there."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

PAGE = Path(__file__).parents[1] / "docs" / "careamics.md"
SIDE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a newcomer has saved the page's files, beside an image of stripes under noise of their own size."""
    folder = tmp_path_factory.mktemp("newcomer")
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None, code
        (folder / name.group(1)).write_text(code)
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    image = 1000 + 100 * (np.sin(np.arange(SIDE) / 8) + noise)
    tifffile.imwrite(folder / "noisy.tif", image.astype(np.uint16))
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a file of the folder, with its own import of the model; not in a process, which imports CAREamics anew."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def run(name: str) -> None:
        sys.modules.pop("hdn", None)
        runpy.run_path(name, run_name="__main__")

    return run


def test_the_page_trains_resumes_and_predicts(
    folder: Path, run: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run("train.py")
    assert "4 stochastic blocks run fused" in capsys.readouterr().out
    trained = torch.load(folder / "hdn.ckpt", weights_only=False)
    run("resume.py")
    resumed = torch.load(folder / "hdn.ckpt", weights_only=False)
    run("predict.py")

    assert (trained["epoch"], resumed["epoch"]) == (2, 3)
    assert resumed["global_step"] == trained["global_step"] * 3 // 2
    noisy, denoised, std = (tifffile.imread(folder / f"{name}.tif") for name in ("noisy", "denoised", "std"))
    assert denoised.shape == std.shape == noisy.shape
    assert np.isfinite(denoised).all()
    assert (std > 0).all()
    # In the image's units; after three epochs no more can be asked.
    assert abs(denoised.mean() - noisy.mean()) < noisy.std()
