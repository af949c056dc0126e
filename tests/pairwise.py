"""A covering array: few combinations in which every pair of values of two factors that can meet meets."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
"""Of every factor a value, which is hashable."""
Factors = Mapping[str, Sequence[Any]]
Possible = Callable[[Row], bool]
"""Whether nothing forbids these values; asked of rows with some factors still open."""


def covering_rows(factors: Factors, possible: Possible) -> list[Row]:
    """Rows, greedily: each starts from the first missing pair and takes what brings the most of the other ones.

    Factors that exclude each other come first: a dead end is then found before the others are tried in vain.
    """
    missing = dict.fromkeys(all_pairs(factors))  # a set in order
    rows = []
    while missing:
        pair = next(iter(missing))
        row = _complete(dict(pair), factors, possible, missing)
        if row is not None:
            rows.append(row)
        for found in [pair, *pairs(row or {})]:
            missing.pop(found, None)
    return rows


def all_pairs(factors: Factors) -> Iterator[frozenset]:
    """Of values of two factors."""
    for (one, values), (other, others) in itertools.combinations(factors.items(), 2):
        yield from (frozenset([(one, a), (other, b)]) for a in values for b in others)


def pairs(row: Row) -> Iterator[frozenset]:
    return map(frozenset, itertools.combinations(row.items(), 2))


def _complete(row: Row, factors: Factors, possible: Possible, missing: Mapping[frozenset, None]) -> Row | None:
    """`row` with a value for every factor; None if there is none."""
    name = next((name for name in factors if name not in row), None)
    if name is None:
        return row

    def news(value: Any) -> int:
        return sum(frozenset([(name, value), item]) in missing for item in row.items())

    for value in sorted(factors[name], key=news, reverse=True):
        longer = row | {name: value}
        if possible(longer):
            found = _complete(longer, factors, possible, missing)
            if found is not None:
                return found
    return None
