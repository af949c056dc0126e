"""The table of the host's costs: a row for every pass, a slow provider's is slow, a broken one's says why."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.audit import host_cost
from bench.audit.host_cost import BLOCK, FUNCTION, PASSES, PREDICTION, PROVIDERS, Effort, Provider

ROOT = Path(__file__).parents[2]
NAMES = [provider.name for provider in PROVIDERS if not provider.compiled]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cost, "QUICK", Effort(warm_up=2, rounds=2, calls=3))


def provider(name: str) -> Provider:
    return next(each for each in PROVIDERS if each.name == name)


def table(path: Path, *providers: Provider) -> list[dict[str, str]]:
    assert host_cost.main(["--quick", "--results", str(path)], providers) == 0
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("quick")
def test_every_pass_has_a_row_and_a_planted_slowdown_shows_in_its_own(tmp_path, capsys):
    cpp, seconds = provider("cpp"), 0.02

    def slow(inputs):
        calls = cpp.make(inputs)
        return calls | {FUNCTION: lambda: (time.sleep(seconds), calls[FUNCTION]())}

    providers = provider("upstream, validation off"), cpp._replace(name="slow", make=slow), cpp
    rows = table(tmp_path / "x.csv", *providers)
    expected = [(providers[0].name, name) for name in (BLOCK, PREDICTION)]
    expected += [(each.name, name) for each in providers[1:] for name in PASSES]
    assert [(row["who"], row["pass"]) for row in rows] == expected
    assert all(row["status"] == "ok" and row["threads"] == "1" for row in rows)
    for row in rows:
        is_slow = (row["who"], row["pass"]) == ("slow", FUNCTION)
        assert (float(row["p20_us"]) >= 1e6 * seconds) == is_slow, row
    assert f"\n{'slow':32}" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_built_says_why_and_the_others_are_timed(tmp_path, monkeypatch, capsys):
    def build():
        raise RuntimeError("Ninja is required\nand more")

    monkeypatch.setattr("bench.audit.nothing._build", build)
    rows = table(tmp_path / "x.csv", provider("cuda"), provider("torch"))
    assert [row["who"] for row in rows] == ["cuda", *["torch"] * len(PASSES)]
    assert (rows[0]["status"], rows[0]["median_us"]) == ("failed", "")
    assert rows[0]["reason"] == "RuntimeError: Ninja is required"
    assert "RuntimeError: Ninja is required" in capsys.readouterr().out


def test_the_triton_kernels_are_launched_into_nothing(tmp_path):
    # In a Python of its own: here the interpreter runs them.
    code = (
        "import sys; from bench.audit import host_cost as h; h.QUICK = h.Effort(1, 1, 1); "
        "h.main(['--quick', '--results', sys.argv[1]], [p for p in h.PROVIDERS if p.name == 'triton'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.csv"], cwd=ROOT, env=environment, check=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert [(row["who"], row["status"]) for row in csv.DictReader(file)] == [("triton", "ok")] * len(PASSES)
