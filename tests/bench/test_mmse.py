"""`python -m bench.mmse` on a little of everything: its tiles, its rows, and what it says of the two images."""

import csv
from pathlib import Path

import pytest
import torch

from bench.mmse import __main__ as mmse
from bench.mmse import run, ways
from bench.mmse.run import Effort, Estimate, difference, jump_across_cuts
from bench.mmse.tiles import tiles
from bench.mmse.ways import OURS, PATCHED, UPSTREAM
from bench.training.micrograph import Micrograph

LITTLE = Effort(samples=2, rounds=((32, 1),), image_samples=2, steps=1)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = torch.rand(96, 112, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(mmse, "QUICK", LITTLE)
    monkeypatch.setattr(mmse, "micrograph", lambda effort: Micrograph(clean, clean + 0.1 * torch.randn_like(clean)))
    for module in (run, ways):
        monkeypatch.setattr(module, "TILE", 64)
        monkeypatch.setattr(module, "OVERLAP", 32)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128), (100, 131), (64, 200)])
def test_tiles_put_the_image_together_again(height: int, width: int) -> None:
    image, copy = torch.rand(height, width), torch.full((height, width), float("nan"))
    for tile in tiles(height, width, 64, 32):
        piece = image[tile.whole]
        assert piece.shape == (64, 64)
        copy[tile.kept] = piece[tile.inner]
    assert torch.equal(copy, image)


def test_no_seam_is_nearer_to_a_tiles_edge_than_half_the_overlap() -> None:
    for tile in tiles(200, 200, 64, 32):
        for whole, inner in zip(tile.whole, tile.inner, strict=True):
            assert inner.start >= 16 or whole.start == 0
            assert inner.stop <= 64 - 16 or whole.stop == 200


@pytest.mark.usefixtures("little")
def test_it_writes_a_row_for_every_way_and_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "here.csv"
    options = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--results", str(results)]
    assert mmse.main(options) == 0
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == [UPSTREAM, PATCHED, OURS]
    assert all(float(row["median_s"]) > 0 and float(row["peak_mib"]) > 0 for row in rows)
    assert (tmp_path / mmse.FIGURE).stat().st_size > 10_000
    assert "differ by" in capsys.readouterr().out


def test_a_seam_is_seen_where_tiles_are_cut() -> None:
    image = torch.rand(448, 448, generator=torch.Generator().manual_seed(0))
    assert jump_across_cuts(image) == pytest.approx(1, abs=0.1)
    image[224:] += 1
    image[:, 224:] += 1
    assert jump_across_cuts(image) > 2


def test_means_of_the_same_distribution_differ_by_what_is_expected() -> None:
    draws = torch.randn(2, 8, 200, 200)
    estimates = [Estimate(each.mean(0), each.std(0), 0.0) for each in draws]
    found, expected = difference(*estimates, samples=8)
    assert found == pytest.approx(expected, rel=0.03)
    assert expected == pytest.approx((2 / 8) ** 0.5, rel=0.03)
