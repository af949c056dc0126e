"""Which backend serves a call: forced by `use_backend` or the environment, else the fastest that can."""

import functools
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from torch import Tensor

from ladder_kernels.geometry import device_type

NAMES = ("torch", "cpp", "triton", "cuda")
ENVIRONMENT_VARIABLE = "LADDER_KERNELS_BACKEND"

_PREFERRED = {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}
_MAKE_NOISE = ("triton", "cuda")
_log = logging.getLogger("ladder_kernels")
# Read once: a look-up costs about as much as a small kernel's launch.
_environment: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None
_forced: ContextVar[str | None] = ContextVar("ladder_kernels_backend", default=None)
# What `_forced` is, for torch.compile: it cannot read a ContextVar, and guards an attribute of this.
_seen_by_compiler = threading.local()


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every step inside the `with` block on the backend `name`: "torch", "cpp", "triton" or "cuda".

    Raises ValueError for an unknown name and BackendUnavailableError, with the reason, for a backend that cannot
    run here; a tensor that it cannot take raises where the step is called. Holds for this thread or task alone.
    Gradients are computed by the backend that computed the step.
    """
    load(name)
    token, before = _forced.set(name), getattr(_seen_by_compiler, "forced", None)
    _seen_by_compiler.forced = name
    try:
        yield
    finally:
        _seen_by_compiler.forced = before
        _forced.reset(token)


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


def fault_of_environment() -> str | None:
    """What is wrong with the value of LADDER_KERNELS_BACKEND, or None."""
    if _environment is None:
        return None
    if _environment not in NAMES:
        return f"{ENVIRONMENT_VARIABLE}={_environment!r} names an unknown backend; there are {', '.join(NAMES)}"
    reason = reason_unavailable(_environment)
    return None if reason is None else f"{ENVIRONMENT_VARIABLE}={_environment!r} cannot run here: {reason}"


def choose(q: Tensor, p: Tensor | None, source: Tensor | None) -> ModuleType:
    """The backend for these tensors."""
    name = _forced.get() or (_environment and _forced_by_environment())
    if name is not None:
        backend = load(name)
        reason = backend.unsupported(q, p, source)
        if reason is not None:
            raise BackendUnavailableError(f"backend {name!r} cannot take this call: {reason}")
        return backend
    for backend in _available(device_type(q)):
        reason = backend.unsupported(q, p, source)
        if reason is None:
            return backend
        _say_not_used(backend.NAME, reason)
    raise AssertionError("the torch backend takes every tensor")


@functools.cache
def _available(device_type: str) -> tuple[ModuleType, ...]:
    """The backends for tensors of that device that can run in this process, the fastest first."""
    found = []
    for name in _PREFERRED.get(device_type, ("torch",)):
        module, reason = _find(name)
        if module is None or reason is not None:
            _say_not_used(name, reason)
        else:
            found.append(module)
    return tuple(found)


def choose_while_tracing(device_type: str) -> str:
    """The name of the backend for a graph that torch.compile traces; a forced one is part of the graph's guards."""
    return getattr(_seen_by_compiler, "forced", None) or default(device_type)


def makes_noise(backend: str) -> bool:
    """Whether that backend makes Philox noise inside its kernels: then it is the default, else it never pays."""
    return backend in _MAKE_NOISE


def default(device_type: str) -> str:
    """The name of the backend that serves tensors of that device where `use_backend` forces none.

    Raises ValueError or BackendUnavailableError for a LADDER_KERNELS_BACKEND that cannot serve.
    """
    names = _PREFERRED.get(device_type, ("torch",))
    return _forced_by_environment() or next(name for name in names if reason_unavailable(name) is None)


# What torch.compiler.assume_constant_result does; calling that would import the whole compiler, which takes seconds.
default._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _forced_by_environment() -> str | None:
    if _environment is None:
        return None
    fault = fault_of_environment()
    if fault is None:
        return _environment
    raise ValueError(fault) if _environment not in NAMES else BackendUnavailableError(fault)


@functools.cache
def _find(name: str) -> tuple[ModuleType | None, str | None]:
    """The backend's module or None, and why it cannot run or None. What is there but broken is warned of, once."""
    path = f"ladder_kernels.backends.{name}"
    try:
        module = importlib.import_module(path)
        return module, module.unavailable()
    except ModuleNotFoundError as error:
        return None, "not part of this version" if error.name == path else str(error)
    except Exception as error:  # whatever a broken library raises is a reason, not the user's problem
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"the backend {name!r} of ladder_kernels is there but broken, and is not used: {reason}", stacklevel=2
    )
    return None, reason


@functools.cache
def _say_not_used(name: str, reason: str | None) -> None:
    _log.info("backend %r not used: %s", name, reason)
