"""Which backend serves a call: forced by `use_backend` or the environment, else the fastest that can."""

import functools
import importlib
import logging
import os
import threading
import warnings
from contextlib import ContextDecorator
from types import ModuleType

import torch
from torch import Tensor, nn

from ladder_kernels.geometry import device_type

NAMES = ("torch", "cpp", "triton", "cuda")
ENVIRONMENT_VARIABLE = "LADDER_KERNELS_BACKEND"

_PREFERRED = {"cpu": ("cpp", "torch"), "cuda": ("triton", "torch")}
_log = logging.getLogger("ladder_kernels")
# Read once: a look-up costs about as much as a small kernel's launch.
_environment: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None
# `name`: what `use_backend` forces in this thread. An attribute, because torch.compile guards those and no ContextVar.
_forced = threading.local()


PLAIN = frozenset((Tensor, nn.Parameter, type(None)))
"""What a backend takes as it is; other tensors dispatch by themselves."""


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run; the message says why."""


class use_backend(ContextDecorator):  # noqa: N801 - it is used like a function
    """Run every step inside the `with` block on the backend `name`: "torch", "cpp", "triton" or "cuda".

    Raises ValueError for an unknown name and BackendUnavailableError, with the reason, for a backend that cannot
    run here, both when it is called; a tensor that it cannot take raises where the step is called. Holds for this
    thread, eager and compiled alike. Gradients are computed by the backend that computed the step.
    """

    def __init__(self, name: str) -> None:
        load(name)
        self._name = name
        self._before: list[str | None] = []

    def __enter__(self) -> None:
        self._before.append(getattr(_forced, "name", None))
        _forced.name = self._name

    def __exit__(self, *_: object) -> None:
        _forced.name = self._before.pop()


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


def serving(q: Tensor, p: Tensor | None = None) -> str:
    """The name of the backend for a call with these parameters; of a graph, a forced one is part of its guards."""
    name = getattr(_forced, "name", None)
    if torch.compiler.is_compiling():
        return name or ("torch" if _is_distributed(q, p) else default(q.device.type))
    name = name or (_environment and _forced_by_environment())
    if name is not None:
        reason = _reason_unsupported(load(name), q, p)
        if reason is not None:
            raise BackendUnavailableError(f"backend {name!r} cannot take this call: {reason}")
        return name
    for backend in _available(device_type(q)):
        reason = _reason_unsupported(backend, q, p)
        if reason is None:
            return backend.NAME
        _say_not_used(backend.NAME, reason)
    raise AssertionError("the torch backend takes every tensor")


def _reason_unsupported(backend: ModuleType, q: Tensor, p: Tensor | None) -> str | None:
    if _is_distributed(q, p) and backend.NAME != "torch":
        return "a DTensor has sharding rules for torch's own operators only"
    return backend.unsupported(q, p)


def _is_distributed(q: Tensor, p: Tensor | None) -> bool:
    """Whether one is a DTensor, without its import, which takes a second."""
    if type(q) in PLAIN and type(p) in PLAIN:
        return False
    return hasattr(q, "device_mesh") or hasattr(p, "device_mesh")


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
    except ImportError as error:
        reason = str(error)
    except Exception as error:  # whatever a broken library raises is a reason, not the user's problem
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"the backend {name!r} of ladder_kernels is there but broken, and is not used: {reason}", stacklevel=2
    )
    return None, reason


@functools.cache
def _say_not_used(name: str, reason: str | None) -> None:
    _log.info("backend %r not used: %s", name, reason)
