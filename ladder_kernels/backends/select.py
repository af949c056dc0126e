"""Which backend serves a call: forced by `use_backend` or the environment, else the fastest that can."""

import functools
import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("torch", "cpp", "triton", "cuda")
ENVIRONMENT_VARIABLE = "LADDER_KERNELS_BACKEND"

_PREFERRED = {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}
_log = logging.getLogger("ladder_kernels")
# Read once: a look-up costs about as much as a small kernel's launch.
_forced: str | None = os.environ.get(ENVIRONMENT_VARIABLE)


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every step inside the `with` block on the backend `name`: "torch", "cpp", "triton" or "cuda".

    Raises ValueError for an unknown name and BackendUnavailableError, with the reason, for a backend that cannot
    run here; a tensor that it cannot take raises where the step is called. Holds for all threads of the process.
    Gradients are computed by the backend that computed the step.
    """
    global _forced
    load(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def load(name: str) -> ModuleType:
    """The backend's module. Raises ValueError or BackendUnavailableError."""
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(NAMES)}")
    module, reason = _find(name)
    if module is None or reason is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {reason}")
    return module


def reason_unavailable(name: str) -> str | None:
    """Why the backend cannot run in this process, or None."""
    return _find(name)[1]


def choose(q: Tensor, p: Tensor | None, source: Tensor | None) -> ModuleType:
    """The backend for these tensors."""
    if _forced is not None:
        backend = load(_forced)
        reason = backend.unsupported(q, p, source)
        if reason is not None:
            raise BackendUnavailableError(f"backend {_forced!r} cannot take this call: {reason}")
        return backend
    for name in _PREFERRED.get(q.device.type, ("torch",)):
        module, reason = _find(name)
        if module is not None and reason is None:
            reason = module.unsupported(q, p, source)
            if reason is None:
                return module
        _say_once(f"backend {name!r} not used: {reason}")
    raise AssertionError("the torch backend takes every tensor")


def choose_while_tracing(device_type: str) -> str:
    """The name of the backend for a graph that torch.compile traces; a forced one is part of the graph's guards."""
    return _forced if _forced is not None else _preferred(device_type)


@torch.compiler.assume_constant_result
def _preferred(device_type: str) -> str:
    names = _PREFERRED.get(device_type, ("torch",))
    return next(name for name in names if reason_unavailable(name) is None)


@functools.cache
def _find(name: str) -> tuple[ModuleType | None, str | None]:
    """The backend's module or None, and why it cannot run or None."""
    path = f"ladder_kernels.backends.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        return None, "not part of this version" if error.name == path else str(error)
    except ImportError as error:
        return None, str(error)
    return module, module.unavailable()


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
