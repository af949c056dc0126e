"""What the backends compiled from csrc share: loading an extension module, and calling its functions."""

import functools
import importlib
import importlib.util
import os
import struct
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ladder_kernels.backends.step import Step, StepGrads, StepOutputs


@functools.cache
def reason_not_loaded(extension: str, build_flag: str) -> str | None:
    """Why the extension module cannot serve, and the command that helps; or None.

    An extension refuses to be imported by a torch it was not built for.
    """
    build = f"{build_flag}=1 pip install --no-build-isolation -e ."
    found = importlib.util.find_spec(extension)
    if found is not None and found.origin is not None and _is_cut_short(found.origin):
        return f"{found.origin} is cut short; to rebuild it, run: {build}"
    try:
        importlib.import_module(extension)
    except ModuleNotFoundError as error:
        if error.name == extension:
            return f"not built; run: {build}"
        raise
    except (ImportError, OSError) as error:
        return f"{extension} cannot be loaded: {error}; to rebuild it, run: {build}"
    return None


def _is_cut_short(path: str) -> bool:
    """Whether a library ends before the table of sections at its end: to load it would kill the process (SIGBUS).

    Only of 64-bit little-endian ELF files; other files that are no libraries, the loader refuses by itself.
    """
    with open(path, "rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return False
    (table,) = struct.unpack_from("<Q", header, 40)  # e_shoff, e_shentsize and e_shnum of the ELF header
    size, count = struct.unpack_from("<HH", header, 58)
    return os.path.getsize(path) < table + size * count


class Functions:
    """A backend's functions (see `ladder_kernels.backends.step`), those of an extension module.

    The module is imported by the first call. Autograd sees through `forward` and `sample`; where the step draws noise
    or a seed and `source` is None, they draw it of torch's generator.
    """

    def __init__(self, extension: str) -> None:
        self._extension = extension

    @functools.cached_property
    def _module(self) -> Any:
        return importlib.import_module(self._extension)

    @functools.cached_property
    def _native(self) -> Callable[[Step], Any]:
        """A step as the module's functions take it, made once for all calls that ask for the same."""
        return functools.lru_cache(maxsize=256)(lambda step: self._module.step(*_fields(step)))

    def forward(self, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
        return StepOutputs(*self._module.forward(q, p, source, self._native(step)))

    def backward(
        self,
        q: Tensor,
        p: Tensor | None,
        source: Tensor | None,
        step: Step,
        grads: StepGrads,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        return tuple(self._module.backward(q, p, source, self._native(step), grads, needs))

    def sample(self, q: Tensor, source: Tensor | None, step: Step) -> Tensor:
        return self._module.sample(q, source, self._native(step))


def _fields(step: Step) -> tuple[Any, ...]:
    """The step with the map's fields in its place."""
    draw, kl, variance, *rest = step
    return (draw, kl, *variance.fields(), *rest)
