"""`python -m bench.mmse`: a row for every way, and a loop over tiles that puts an image together again."""

import torch

from bench import mmse
from bench.careamics import build_model
from bench.report.results import read_rows


def test_every_way_has_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(mmse, "QUICK_ROUNDS", {32: 1})
    results = tmp_path / "here.csv"
    assert mmse.main(["--quick", "--device", "cpu", "--results", str(results)]) == 0
    rows = read_rows(results)
    assert [row["way"] for row in rows] == ["upstream's loop", "upstream's loop, patched", "predict_mmse"]
    assert all(float(row["median_s"]) > 0 and float(row["peak_mib"]) > 0 for row in rows)


def test_the_loop_puts_an_image_together_again(monkeypatch):
    monkeypatch.setattr(mmse, "mmse_loop", lambda model, tile, samples: (tile, samples * tile))
    image = torch.rand(1, 1, 300, 400)
    torch.testing.assert_close(mmse.tiled_loop(build_model(32), image, 2), (image, 2 * image))
