"""`LazyDict` is a dict in every respect, and computes nothing before it is read."""

import copy
import json
import pickle

import pytest

from ladder_kernels.lazy import LazyDict


def lazy():
    """{"a": 1, "b": 2} with b deferred, and the list of times b was computed."""
    data, calls = LazyDict(a=1), []
    data.defer("b", lambda: calls.append(1) or 2)
    return data, calls


QUIET = {
    "keys": lambda d: list(d.keys()),
    "iteration": list,
    "length": len,
    "membership": lambda d: "b" in d,
    "truth": bool,
    "another value": lambda d: d["a"],
    "another get": lambda d: d.get("a"),
}


@pytest.mark.parametrize("use", QUIET.values(), ids=QUIET)
def test_nothing_is_computed_by(use):
    data, calls = lazy()
    use(data)
    assert calls == []
    assert data.is_deferred("b")


READING = {
    "item": (lambda d: d["b"], 2),
    "get": (lambda d: d.get("b", 0), 2),
    "setdefault": (lambda d: d.setdefault("b", 0), 2),
    "pop": (lambda d: d.pop("b"), 2),
    "popitem": (lambda d: d.popitem(), ("b", 2)),
    "values": (lambda d: list(d.values()), [1, 2]),
    "items": (lambda d: list(d.items()), [("a", 1), ("b", 2)]),
    "dict": (dict, {"a": 1, "b": 2}),
    "unpacking": (lambda d: {**d}, {"a": 1, "b": 2}),
    "keyword arguments": (lambda d: dict(**d), {"a": 1, "b": 2}),
    "update": (lambda d: {} | dict(d.items()), {"a": 1, "b": 2}),
    "copy": (lambda d: d.copy(), {"a": 1, "b": 2}),
    "copy.copy": (copy.copy, {"a": 1, "b": 2}),
    "deepcopy": (copy.deepcopy, {"a": 1, "b": 2}),
    "or": (lambda d: d | {"c": 3}, {"a": 1, "b": 2, "c": 3}),
    "reflected or": (lambda d: {"c": 3} | d, {"a": 1, "b": 2, "c": 3}),
    "equality": (lambda d: d == {"a": 1, "b": 2}, True),
    "repr": (repr, "{'a': 1, 'b': 2}"),
    "pickle": (lambda d: pickle.loads(pickle.dumps(d)), {"a": 1, "b": 2}),
    "json": (json.dumps, '{"a": 1, "b": 2}'),
}


@pytest.mark.parametrize(("read", "expected"), READING.values(), ids=READING)
def test_the_value_is_computed_once_by(read, expected):
    data, calls = lazy()
    assert read(data) == expected
    assert calls == [1]
    if "b" in data:
        assert data["b"] == 2
        assert calls == [1]


def test_it_is_a_dict():
    data, _ = lazy()
    assert isinstance(data, dict)
    with pytest.raises(KeyError):
        data["c"]
    with pytest.raises(KeyError):
        data.pop("c")
    assert data.get("c") is None
    data["b"] = 5
    assert data == {"a": 1, "b": 5}
    del data["b"]
    assert data != {"a": 1, "b": 5}
