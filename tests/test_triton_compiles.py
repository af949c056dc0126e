"""The Triton kernels, compiled and launched: the interpreter, which runs them in the other tests, hides faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compile_triton import OPERATIONS, few_rows, possible, rows
from tests.pairwise import all_pairs, covering_rows, pairs

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_pair_of_choices_that_can_meet_does(operation):
    met = {pair for name, row in rows() if name == operation for pair in pairs(row)}
    assert met == {pair for pair in all_pairs(OPERATIONS[operation]) if possible(dict(pair))}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_row_breaks_a_rule_or_lacks_a_choice(operation):
    found = [row for name, row in rows() if name == operation]
    assert all(possible(row) and row.keys() == OPERATIONS[operation].keys() for row in found)


def test_a_dead_end_is_left_again():
    """The first two factors leave the third no value; only another second one does."""
    factors = {"a": (0,), "b": (0, 1), "c": (0, 1)}
    found = covering_rows(factors, lambda row: row.get("b") != 0 or "c" not in row)
    assert [row["c"] for row in found] == [0, 1]
    assert all(row["b"] == 1 for row in found)


def run_compiled(module, tmp_path, *arguments):
    """In a process of its own, whose kernels are not interpreted, and with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_choice_compiles_and_some_rows_do_for_every_target(tmp_path):
    """Each choice in one row at least; CI compiles every row."""
    assert {(name, *item) for name, row in few_rows() for item in row.items()} == {
        (name, factor, value)
        for name, factors in OPERATIONS.items()
        for factor, values in factors.items()
        for value in values
    }
    run_compiled("tests.compile_triton", tmp_path, "--few")


def test_what_is_launched_again_is_what_triton_itself_launches(tmp_path):
    run_compiled("tests.launch_triton", tmp_path)
