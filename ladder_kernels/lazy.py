"""A dict some of whose values are computed when they are first read."""

from collections.abc import Callable, Iterator
from typing import Any


class _Deferred:
    __slots__ = ("compute",)

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute


class LazyDict(dict[str, Any]):
    """A dict in every respect; `defer` puts in a value that is computed at its first reading, then kept.

    Keys, length and membership never compute anything; whatever reads all values computes all of them.
    """

    def defer(self, key: str, compute: Callable[[], Any]) -> None:
        super().__setitem__(key, _Deferred(compute))

    def is_deferred(self, key: str) -> bool:
        """Whether the value has not been computed yet."""
        return type(super().__getitem__(key)) is _Deferred

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if type(value) is _Deferred:
            value = value.compute()
            super().__setitem__(key, value)
        return value

    def _compute_all(self) -> "LazyDict":
        for key in self.keys():
            self[key]
        return self

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: str, default: Any = None) -> Any:
        self[key] = self.get(key, default)
        return self[key]

    def pop(self, key: str, *default: Any) -> Any:
        if key in self:
            self[key]
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def __iter__(self) -> Iterator[str]:
        # Overridden for its presence: dict(d) and {**d} then read through __getitem__ instead of the raw table.
        return super().__iter__()

    def values(self) -> Any:
        self._compute_all()
        return super().values()

    def items(self) -> Any:
        self._compute_all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __eq__(self, other: object) -> bool:
        self._compute_all()
        return super().__eq__(other)

    __hash__ = None  # like any dict

    def __repr__(self) -> str:
        return repr(dict(self))
