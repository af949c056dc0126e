"""The table of the host's costs has a row for every pass; the Triton kernels are launched into nothing."""

import os
import subprocess
import sys
from pathlib import Path

from bench.report.results import read_rows


def test_every_pass_has_a_row(tmp_path):
    # In a Python of its own: here the interpreter runs Triton's kernels.
    code = (
        "import sys; from bench import hostcost as h; h.WARM_UP = h.UNTIMED = h.TIMED = 1; "
        "h.main(['--quick', '--results', sys.argv[1]])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, str(tmp_path / "x.csv")]
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True)
    rows = read_rows(tmp_path / "x.csv")
    passes = [(who, name) for who in ("torch", "cpp", "triton") for name in ("function", "block", "prediction")]
    upstream = [("upstream, validation off", name) for name in ("block", "prediction")]
    assert [(row["who"], row["pass"]) for row in rows] == upstream + passes
    assert all(0 < float(row["p20_us"]) <= float(row["median_us"]) and row["threads"] == "1" for row in rows)
