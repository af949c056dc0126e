"""The comparison with other VAEs end to end on a tiny latent, and that it sees a difference."""

import csv
import math

import pytest
import torch

from bench.peers import __main__ as peers
from bench.peers.formulas import PEERS
from ladder_kernels import VarianceMap


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(peers, "SHAPE", (2, 3, 4, 4))
    monkeypatch.setattr(peers, "WARM_UP", 0)


def test_every_peer_has_a_row_and_agrees(tmp_path, capsys):
    results = tmp_path / "peers.csv"
    assert peers.main(["--quick", "--rounds", "1", "--device", "cpu", "--results", str(results)]) == 0
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["peer"] for row in rows} == {"diffusers, LDM", *PEERS}
    for row in rows:
        assert all(float(row[name]) < 1e-5 for name in peers.DIFFERENCES), row["peer"]
        assert float(row["theirs_us"]) > 0 < float(row["ours_us"])
        assert row["theirs_compiled_us"] == row["ours_compiled_us"] == ""
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_another_map_is_seen():
    comparison = next(each for each in peers.comparisons() if each.peer == "VDVAE")
    wrong = PEERS["VDVAE"]._replace(variance=VarianceMap.juglab_hdn())
    heads = tuple(torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2))
    incoming = torch.randn(2, 3, 4, 4), torch.randn(2)
    found = peers.differences(comparison._replace(ours=peers.fused(wrong)), heads, incoming)
    assert all(math.isfinite(value) and value > 1e-2 for value in found.values())
