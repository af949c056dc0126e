"""The files of docs/careamics.md do what the page says, run one after the other as they stand there."""

import os
import re
import subprocess
import sys
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


def run(folder: Path, name: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, name]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_page_trains_resumes_and_predicts(folder: Path) -> None:
    assert "4 stochastic blocks run fused" in run(folder, "train.py")
    trained = torch.load(folder / "hdn.ckpt", weights_only=False)
    run(folder, "resume.py")
    resumed = torch.load(folder / "hdn.ckpt", weights_only=False)
    run(folder, "predict.py")

    assert (trained["epoch"], resumed["epoch"]) == (2, 3)
    assert resumed["global_step"] == trained["global_step"] * 3 // 2
    noisy, denoised, std = (tifffile.imread(folder / f"{name}.tif") for name in ("noisy", "denoised", "std"))
    assert denoised.shape == std.shape == noisy.shape
    assert np.isfinite(denoised).all()
    assert (std > 0).all()
    # In the image's units; after three epochs no more can be asked.
    assert abs(denoised.mean() - noisy.mean()) < noisy.std()
