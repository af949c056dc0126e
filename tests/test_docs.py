"""The code of README.md and docs/careamics.md does what the pages say, run as it stands there."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from tests.careamics_models import TINY_HDN

ROOT = Path(__file__).parents[1]
SIDE = 96


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_examples_run_and_the_equivalent_is_equivalent() -> None:
    model, module, functions, equivalent = examples(ROOT / "README.md")
    exec(model, {"model": TINY_HDN.build(), "tile": torch.randn(1, 1, 16, 16)})
    exec(module, dict.fromkeys(("p_features", "q_features"), torch.randn(2, 64, 8, 8)))

    names = {"q_params": torch.randn(2, 6, 8, 8), "p_params": torch.randn(2, 6, 8, 8)}
    ours, plain = dict(names), {**names, "Normal": torch.distributions.Normal}
    for code, given in ((functions, ours), (equivalent, plain)):
        torch.manual_seed(0)
        exec(code, given)
    for name, value in ours["step"]._asdict().items():
        if name in plain:
            torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-4)
    assert {"z", "kl_samplewise", "kl_channelwise", "kl_spatial", "logprob_q", "logvar_max"} <= plain.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a newcomer has saved the page's files, beside an image of stripes under noise of their own size."""
    folder = tmp_path_factory.mktemp("newcomer")
    for code in examples(ROOT / "docs" / "careamics.md"):
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
