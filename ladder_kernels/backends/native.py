"""What the backends compiled from csrc share: their libraries, and steps that run through csrc/ladder_kernels.h.

As with Triton: how the tensors look leads to a cached plan, and the plan to one call with addresses. Autograd, noise
and zeros are others' business.
"""

import ctypes
import functools
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ladder_kernels
from ladder_kernels.backends import torch as torch_backend
from ladder_kernels.backends.outputs import Look, New, flowing, gradient_looks, look, new, output_looks, resolved
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs, compute_dtype
from ladder_kernels.geometry import latent_shape
from ladder_kernels.variance import KINDS

# ---- The library.


def path_of(device: str) -> Path:
    """Where the library for "cpu" or "cuda" is, if there is one: in the package, or where the environment says."""
    given = os.environ.get(f"LADDER_KERNELS_{device.upper()}_LIBRARY")
    return Path(given) if given else Path(ladder_kernels.__file__).with_name(f"libladder_kernels_{device}.so")


@functools.cache
def find(device: str) -> tuple[Any, str | None]:
    """The library for "cpu" or "cuda", or why there is none. One that is there and cannot serve raises ImportError."""
    path, version = path_of(device), ladder_kernels.__version__
    build = f"in the sources of ladder_kernels {version} run: LADDER_KERNELS_BUILD_{device.upper()}=1 pip install ."
    again = f"pip install --force-reinstall --no-deps a wheel of ladder_kernels {version}, or {build}"
    if not path.exists():
        return None, f"not built, there is no {path}; {build}"
    if _is_cut_short(path):
        raise ImportError(f"{path} is cut short; {again}")
    try:
        library = ctypes.CDLL(str(path))
        library.ladder_version.restype = ctypes.c_char_p
        found = library.ladder_version().decode()
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} cannot be loaded: {error}; {again}") from error
    if found != version:
        raise ImportError(f"{path} is of version {found}, not {version}; {again}")
    _declare(library, device)
    return library, None


def _is_cut_short(path: Path) -> bool:
    """Whether a library ends before the table of sections at its end: to load it would kill the process (SIGBUS).

    Only of 64-bit little-endian ELF files; other files that are no libraries, the loader refuses by itself.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return False
    (table,) = struct.unpack_from("<Q", header, 40)  # e_shoff, e_shentsize and e_shnum of the ELF header
    size, count = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < table + size * count


def _declare(library: Any, device: str) -> None:
    """The types of its functions, as csrc/ladder_kernels.h has them."""
    address, integer = ctypes.c_void_p, ctypes.c_int64
    library.ladder_error.restype = ctypes.c_char_p
    for name, tensors in (("forward", 12), ("backward", 14), ("sample", 3)):
        # The step, tensors, and where to run.
        getattr(library, f"ladder_{name}").argtypes = [address] * (2 + tensors)
        if name != "sample":
            scratch = getattr(library, f"ladder_{name}_scratch")
            scratch.argtypes, scratch.restype = [address], integer
    if device == "cpu":
        library.ladder_normal.argtypes = [address, address, integer, ctypes.c_size_t]


# ---- A step as the library is told of it: csrc/ladder_kernels.h.

_DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DRAWS = {"noise": 0, "seed": 0, "latent": 1, "mode": 2}
_KLS = ("none", "monte_carlo", "analytic")
# Which dims a gradient has besides the batch: channels, space. In the order of the library's arguments.
_INCOMING = {
    "z": (True, True),
    "kl_samplewise": (False, False),
    "kl_samplewise_restricted": (False, False),
    "kl_channelwise": (True, False),
    "kl_spatial": (False, True),
    "logprob_q": (False, False),
    "kl_elementwise": (True, True),
}


class _Tensor(ctypes.Structure):
    _fields_ = (("dtype", ctypes.c_int64), ("aligned", ctypes.c_int64), ("strides", ctypes.c_int64 * 5))

    @staticmethod
    def of(look: Look | None, channels: bool = True, space: bool = True) -> "_Tensor":
        if look is None or look.dtype not in _DTYPES:  # a seed
            return _Tensor()
        batch, *inner = look.strides
        channel = inner.pop(0) if channels else 0
        strides = (0 if look.shape[0] == 1 else batch, channel, *_aligned_right(inner, 0))
        return _Tensor(_DTYPES.index(look.dtype), look.aligned, (ctypes.c_int64 * 5)(*strides))


class _Step(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("space", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("channels_last", "draw", "kl", "variance")),
        *((name, ctypes.c_int64) for name in ("philox", "in_double", "shared_p")),
        ("window", ctypes.c_int64 * 4),
        *((name, ctypes.c_double) for name in ("raw_min", "raw_max", "beta", "floor", "temperature")),
        *((name, _Tensor) for name in ("q", "p", "source", *_INCOMING)),
    )

    @staticmethod
    def of(
        q: Look, p: Look | None, source: Look | None, step: Step, dtype: torch.dtype, grads: Sequence[Look | None] = ()
    ) -> "_Step":
        batch, channels, *space = latent_shape(q)
        kind, raw_min, raw_max, beta, floor = step.variance.fields()
        return _Step(
            batch,
            channels,
            (ctypes.c_int64 * 3)(*_aligned_right(space, 1)),
            step.channels_last,
            _DRAWS[step.draw],
            _KLS.index(step.kl),
            KINDS.index(kind),
            step.draw == "seed",
            dtype == torch.float64,
            p is not None and p.shape[0] == 1 and batch > 1,
            (ctypes.c_int64 * 4)(*step.window or ()),
            -math.inf if raw_min is None else raw_min,
            math.inf if raw_max is None else raw_max,
            beta,
            floor,
            step.temperature,
            *(_Tensor.of(each) for each in (q, p, source)),
            *(_Tensor.of(grad, *dims) for grad, dims in zip(grads, _INCOMING.values(), strict=False)),
        )


def _aligned_right(sizes: Sequence[int], before: int) -> tuple[int, ...]:
    return (*(before,) * (3 - len(sizes)), *sizes)


# ---- Plans and calls.


class _Plan(NamedTuple):
    """What a call needs besides its tensors. Threads share it: nothing in it changes."""

    function: Callable[..., int]  # of the library
    step: _Step
    address: int  # of the step
    made: tuple[Any, ...]  # of `New`, or None
    scratch: New | None


class Functions:
    """A backend's functions (see `ladder_kernels.backends.step`): those of the library for `device`.

    `backend` is its module: `unsupported` is asked again, for who calls is not always who has chosen, and
    `run(function, arguments, q)` calls a function of the library where q is.
    """

    def __init__(self, device: str, backend: ModuleType) -> None:
        self._device, self._backend = device, backend
        self._forward = functools.lru_cache(maxsize=1024)(self._plan_forward)
        self._backward = functools.lru_cache(maxsize=1024)(self._plan_backward)
        self._sample = functools.lru_cache(maxsize=1024)(self._plan_sample)

    def forward(self, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
        if q.numel() == 0:
            return torch_backend.forward(q, p, source, step)
        q, p, source = self._checked(q, p, source)
        plan = self._forward(Look.of(q), look(p), look(source), q.device, step)
        outputs = [make and make() for make in plan.made]
        self._run(plan, q, p, source, *outputs, plan.scratch and plan.scratch())
        return StepOutputs._make(outputs)

    def sample(self, q: Tensor, source: Tensor | None, step: Step) -> Tensor:
        if q.numel() == 0:
            return torch_backend.sample(q, source, step)
        q, _, source = self._checked(q, None, source)
        plan = self._sample(Look.of(q), look(source), q.device, step)
        z = plan.made[0]()
        self._run(plan, q, source, z)
        return z

    def backward(
        self,
        q: Tensor,
        p: Tensor | None,
        source: Tensor | None,
        step: Step,
        grads: StepGrads,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        if q.numel() == 0:
            return torch_backend.backward(q, p, source, step, grads, needs)
        q, p, source = self._checked(q, p, source)
        z, samplewise, restricted, channelwise, spatial, log_q, _, elementwise = map(resolved, grads)
        incoming = (z, samplewise, restricted, channelwise, spatial, log_q, elementwise)
        looks = tuple(map(look, incoming))
        plan = self._backward(Look.of(q), look(p), look(source), q.device, step, looks, tuple(needs))
        if plan is None:
            return torch_backend.backward(q, p, source, step, grads, needs)
        found = [make and make() for make in plan.made]
        self._run(plan, q, p, source, *incoming, *found, plan.scratch and plan.scratch())
        return tuple(found)

    def _checked(self, q: Tensor, p: Tensor | None, source: Tensor | None) -> tuple[Tensor, Any, Any]:
        if (reason := self._backend.unsupported(q, p)) is not None:
            raise ValueError(reason)
        return resolved(q), resolved(p), resolved(source)

    def _run(self, plan: _Plan, q: Tensor, *tensors: Tensor | None) -> None:
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in (q, *tensors)]
        code = self._backend.run(plan.function, (plan.address, *addresses), q)
        if code:
            self._fail(code)

    def _fail(self, code: int) -> None:
        raise RuntimeError(f"the {self._backend.NAME} backend failed: {self._library.ladder_error(code).decode()}")

    @functools.cached_property
    def _library(self) -> Any:
        return find(self._device)[0]

    def _plan_forward(self, q: Look, p: Look | None, source: Look | None, device: torch.device, step: Step) -> _Plan:
        check_inputs(q, p, source, step)
        described = _Step.of(q, p, source, step, compute_dtype(q, p, source))
        return self._plan("forward", described, output_looks(q, p, source, step), device)

    def _plan_sample(self, q: Look, source: Look | None, device: torch.device, step: Step) -> _Plan:
        check_inputs(q, None, source, step)
        described = _Step.of(q, None, source, step, compute_dtype(q, source))
        return self._plan("sample", described, output_looks(q, None, source, step)[:1], device)

    def _plan_backward(
        self,
        q: Look,
        p: Look | None,
        source: Look | None,
        device: torch.device,
        step: Step,
        grads: tuple[Look | None, ...],
        needs: tuple[bool, bool, bool],
    ) -> _Plan | None:
        """None where nothing flows through the variances: the gradient is that of z, as it is."""
        check_inputs(q, p, source, step)
        check_gradients(q, p, source, step, grads)
        dtype = compute_dtype(q, p, source)
        z, *kls, log_q, elementwise = (grad is not None for grad in grads)
        step, p, source = flowing(step, p, source, to_z=z, to_kl=any(kls) or elementwise, to_log_q=log_q)
        if step.draw == "mode" and step.kl == "none" and not log_q:
            return None
        made = gradient_looks(q, p, source, step, needs)
        described = _Step.of(q, p, source, step, dtype, grads)
        return self._plan("backward", described, made, device)

    def _plan(self, name: str, step: _Step, made: Sequence[Look | None], device: torch.device) -> _Plan:
        address = ctypes.addressof(step)
        size = 0 if name == "sample" else getattr(self._library, f"ladder_{name}_scratch")(address)
        if size < 0:
            self._fail(size)
        scratch = Look((size,), (1,), torch.uint8)
        return _Plan(
            getattr(self._library, f"ladder_{name}"),
            step,
            address,
            tuple(look and new(look, device) for look in made),
            new(scratch, device) if size else None,
        )


# ---- Checks, once for each look: the library would read and write beside tensors that do not fit.


def check_inputs(q: Look, p: Look | None, source: Look | None, step: Step) -> None:
    shape = q.shape
    if not 3 <= len(shape) <= 5 or shape[1] % 2:
        raise ValueError(f"q must be (batch, 2 * channels, 1 to 3 spatial dims), got {tuple(shape)}")
    if p is not None and p.shape not in (shape, (1, *shape[1:])):
        raise ValueError(f"p must have shape {tuple(shape)}, or batch 1, got {tuple(p.shape)}")
    if step.draw != "mode" and source is None:
        raise ValueError(f"draw {step.draw!r} needs a source")
    if source is not None and step.draw == "seed" and (source.dtype != torch.int64 or math.prod(source.shape) != 1):
        raise ValueError(f"seed must be one int64 element, got {source.dtype} of shape {tuple(source.shape)}")
    if source is not None and step.draw in ("noise", "latent") and source.shape != latent_shape(q):
        raise ValueError(f"{step.draw} must have shape {latent_shape(q)}, got {tuple(source.shape)}")
    for tensor in (q, p, None if step.draw == "seed" else source):
        if tensor is not None and tensor.dtype not in _DTYPES:
            raise TypeError(f"tensors must be one of {', '.join(map(str, _DTYPES[1:]))}, got {tensor.dtype}")
    if step.window is not None:
        row, row_end, column, column_end = step.window
        rows, columns = shape[-2] if len(shape) > 3 else 1, shape[-1]
        if not (0 <= row <= row_end <= rows and 0 <= column <= column_end <= columns):
            raise ValueError(f"window must lie in {rows} rows and {columns} columns, got {step.window}")


def check_gradients(q: Look, p: Look | None, source: Look | None, step: Step, grads: tuple[Look | None, ...]) -> None:
    looks = StepOutputs._make(output_looks(q, p, source, step))
    for name, grad in zip(_INCOMING, grads, strict=True):
        expected = getattr(looks, name)
        if grad is None:
            continue
        if expected is None:
            raise ValueError(f"the step has no {name}, and so no gradient of it")
        if (grad.shape, grad.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"the gradient of {name} must be {expected.dtype} of shape {expected.shape}, "
                f"got {grad.dtype} of shape {tuple(grad.shape)}"
            )
