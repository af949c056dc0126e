"""The code of README.md and docs/careamics.md does what the pages say, run as it stands there."""

import re
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
    given = {"model": TINY_HDN.build(), "image": np.random.default_rng(0).normal(100, 10, (20, 30)).astype("float32")}
    exec(model, given)
    assert given["mean"].shape == (1, 1, 20, 30)
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


def test_the_program_of_the_careamics_page_denoises_an_image_in_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here in two steps, of which no more than an image in the right units can be asked."""
    (program,) = examples(ROOT / "docs" / "careamics.md")
    assert len(program.strip().replace("\n\n", "\n").splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE + 10))
    noisy = (1000 + 100 * (np.sin(np.arange(SIDE + 10) / 8) + noise)).astype(np.uint16)
    tifffile.imwrite("noisy.tif", noisy)
    short = program.replace("(500, 2)", "(2, 2)").replace("[None, None], 16", "[None, None], 1")
    assert short.count("2, 2") == short.count("None, None], 1,") == 1
    exec(short, {})
    denoised = tifffile.imread("denoised.tif")
    assert "4 stochastic blocks run fused" in capsys.readouterr().out
    assert denoised.shape == noisy.shape
    assert abs(denoised.mean() - noisy.mean()) < noisy.std()
