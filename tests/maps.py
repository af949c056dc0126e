"""The variance maps that tests go through: every kind, and the numbers that a kind alone leaves at 1 and 0."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest

from ladder_kernels.variance import KINDS, VarianceMap
from tests.pairwise import Row, covering_rows

MAPS: dict[str, VarianceMap] = {
    **{kind: VarianceMap(kind) for kind in KINDS},
    "stable, floor": VarianceMap("stable", floor=0.3),
    "stable, no floor": VarianceMap("stable", floor=0.0),
    "softplus, beta": VarianceMap("softplus", beta=math.log(2)),
    "softplus, beta and floor": VarianceMap("softplus", beta=2.5, floor=0.1),
}


def modes(**factors: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrises a test: every combination of the factors with one map, and in pairs with every other one.

    What a map does and what the other choices do meet in few lines, and interpreted kernels take a second a call.
    """
    names = ["variance", *factors]
    every = [dict(zip(names, row, strict=True)) for row in itertools.product(["stable"], *factors.values())]
    rows: list[Row] = [*every, *covering_rows({"variance": tuple(MAPS), **factors}, lambda row: True)]
    rows = list({tuple(row.items()): row for row in ({name: row[name] for name in names} for row in rows)}.values())
    values = [tuple(MAPS[row[name]] if name == "variance" else row[name] for name in names) for row in rows]
    return pytest.mark.parametrize(names, values, ids=["-".join(map(str, row.values())) for row in rows])
