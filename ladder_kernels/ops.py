"""The step as registered operators: what torch.compile, export and other tracers write down in its place.

Eager calls never come here: the dispatcher costs more than a small kernel's launch. `ladder_kernels.autograd` registers
the operators' autograd. The backend's name is an argument, so that a compiled graph keeps the
backend it was traced with. Their arity is fixed: an output or a gradient that is not asked for is an empty tensor.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder_kernels.backends.outputs import Look, gradient_looks, has_outputs, output_looks
from ladder_kernels.backends.select import PLAIN, load
from ladder_kernels.backends.step import Step, StepGrads, StepOutputs
from ladder_kernels.geometry import is_channels_last
from ladder_kernels.noise import is_exporting

NAMESPACE = "ladder_kernels"

# In the order of `Step.fields`. The temperature is a tensor: a graph would be compiled anew for every value of a
# number. No window is four zeros: the C++ that Inductor writes cannot pass a list that may be absent, and a package of
# AOTInductor reads an empty one back as None. channels_last is absent where a program is exported: its tensors need not
# look like the example's, nor like the fake ones that were traced (a 3D convolution's are contiguous, real ones need
# not be), so the order is that of the q it gets.
_STEP = (
    "str draw, str kl, str variance, float? raw_min, float? raw_max, float beta, float floor, Tensor? temperature, "
    "SymInt[] window, bool elementwise, bool? channels_last, str backend"
)
_NO_WINDOW = (0, 0, 0, 0)
_INPUTS = "Tensor q, Tensor? p, Tensor? source"
_OUTPUTS = ", ".join(f"Tensor {name}" for name in StepOutputs._fields)
_GRADS = ", ".join(f"Tensor? grad_{name}" for name in StepGrads._fields)
_NEEDS = "bool needs_q, bool needs_p, bool needs_latent"

torch.library.define(f"{NAMESPACE}::step", f"({_INPUTS}, {_STEP}) -> ({_OUTPUTS})")
torch.library.define(
    f"{NAMESPACE}::step_backward",
    f"({_INPUTS}, {_STEP}, {_NEEDS}, {_GRADS}) -> (Tensor grad_q, Tensor grad_p, Tensor grad_latent)",
)
torch.library.define(f"{NAMESPACE}::sample", f"(Tensor q, Tensor? source, {_STEP}) -> Tensor")


class Operators:
    """The functions of a backend (see `ladder_kernels.backends.step`), through the operators."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def forward(self, q: Tensor, p: Tensor | None, source: Tensor | None, step: Step) -> StepOutputs:
        found = torch.ops.ladder_kernels.step.default(q, p, source, *arguments(step, self._backend))
        return StepOutputs(*(out if has else None for out, has in zip(found, has_outputs(step), strict=True)))

    def backward(
        self,
        q: Tensor,
        p: Tensor | None,
        source: Tensor | None,
        step: Step,
        grads: StepGrads,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        given = (*arguments(step, self._backend), *needs, *grads)
        found = torch.ops.ladder_kernels.step_backward.default(q, p, source, *given)
        return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))

    def sample(self, q: Tensor, source: Tensor | None, step: Step) -> Tensor:
        return torch.ops.ladder_kernels.sample.default(q, source, *arguments(step, self._backend))


def arguments(step: Step, backend: str) -> tuple[Any, ...]:
    """Those of an operator that say what to do."""
    *before, temperature, window, elementwise, channels_last = step.fields()
    factor: Tensor | None
    if isinstance(temperature, Tensor):
        factor = temperature.to("cpu", torch.float64)
    else:
        factor = None if temperature == 1.0 else torch.ones((), dtype=torch.float64, device="cpu") * temperature
    return (*before, factor, window or _NO_WINDOW, elementwise, None if is_exporting() else channels_last, backend)


class Asked(NamedTuple):
    """What `arguments` says, read back, for packed parameters q."""

    step: Step
    backend: str

    @staticmethod
    def of(q: Tensor, *arguments: Any) -> "Asked":
        """A temperature stays a tensor, which may be a fake one."""
        *before, channels_last, backend = arguments
        return _asked(*before, is_channels_last(q) if channels_last is None else channels_last, backend)

    @staticmethod
    def of_real(q: Tensor, *arguments: Any) -> "Asked":
        """With numbers for what may be a tensor or symbolic; made once for all calls that ask for the same."""
        *before, temperature, window, elementwise, channels_last, backend = arguments
        temperature = None if temperature is None else float(temperature)
        channels_last = is_channels_last(q) if channels_last is None else channels_last
        return _asked_again(*before, temperature, tuple(window), elementwise, channels_last, backend)


def _asked(*arguments: Any) -> Asked:
    *before, temperature, window, elementwise, channels_last, backend = arguments
    temperature = 1.0 if temperature is None else temperature
    no_window = all(isinstance(side, int) and side == 0 for side in window)  # a symbolic one is not 0
    window = None if no_window else tuple(window)
    return Asked(Step.of_fields(*before, temperature, window, elementwise, channels_last), backend)


_asked_again = functools.lru_cache(maxsize=256)(_asked)


class Incoming(NamedTuple):
    """What `step_backward` is told besides tensors: in the order of its schema."""

    asked: tuple[Any, ...]
    needs: tuple[bool, bool, bool]
    grads: StepGrads

    @staticmethod
    def of(rest: Sequence[Any]) -> "Incoming":
        asked_and_needs, grads = rest[: -len(StepGrads._fields)], rest[-len(StepGrads._fields) :]
        *asked, needs_q, needs_p, needs_latent = asked_and_needs
        return Incoming(tuple(asked), (needs_q, needs_p, needs_latent), StepGrads(*grads))


def _step(q: Tensor, p: Tensor | None, source: Tensor | None, *asked: Any) -> tuple[Tensor, ...]:
    q, p, source = bare(q, p, source)
    step, backend = Asked.of_real(q, *asked)
    return tuple(or_empty(out, q) for out in load(backend).forward(q, p, source, step))


def _step_backward(q: Tensor, p: Tensor | None, source: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    asked, needs, grads = Incoming.of(rest)
    q, p, source = bare(q, p, source)
    step, backend = Asked.of_real(q, *asked)
    found = load(backend).backward(q, p, source, step, StepGrads(*bare(*grads)), needs)
    return tuple(or_empty(grad, q) for grad in found)


def _sample(q: Tensor, source: Tensor | None, *asked: Any) -> Tensor:
    q, source = bare(q, source)
    step, backend = Asked.of_real(q, *asked)
    return load(backend).sample(q, source, step)


def _fake_step(q: Tensor, p: Tensor | None, source: Tensor | None, *asked: Any) -> tuple[Tensor, ...]:
    step, _ = Asked.of(q, *asked)
    return tuple(empty(look, q) for look in output_looks(q, p, source, step))


def _fake_step_backward(q: Tensor, p: Tensor | None, source: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    asked, needs, _ = Incoming.of(rest)
    step, _ = Asked.of(q, *asked)
    return tuple(empty(look, q) for look in gradient_looks(q, p, source, step, needs))


def _fake_sample(q: Tensor, source: Tensor | None, *asked: Any) -> Tensor:
    step, _ = Asked.of(q, *asked)
    return empty(output_looks(q, None, source, step)[0], q)


_OPERATORS: dict[str, Callable[..., Any]] = {}
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(name: str, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """What an operator that has been defined does with tensors, and with fake ones."""
    _OPERATORS[name] = real
    _library.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)


register("step", _step, _fake_step)
register("step_backward", _step_backward, _fake_step_backward)
register("sample", _sample, _fake_sample)


def register_autograd(name: str, differentiable: Callable[..., Any]) -> None:
    """Let `differentiable`, called as the operator is, serve where gradients are recorded.

    Unlike torch's own `register_autograd` this takes a Function that others call as well.
    """
    real, operator = _OPERATORS[name], getattr(torch.ops.ladder_kernels, name).default

    def call(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            found = differentiable(*arguments)
            return tuple(or_empty(out, arguments[0]) for out in found) if isinstance(found, tuple) else found
        if not is_recorded(tensors):  # the dispatcher takes as long as a small step to get there
            return real(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    _library.impl(name, call, "Autograd", with_keyset=True)


def is_recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether somebody writes the call down: a compiler, make_fx, fake tensors and other subclasses."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return True
    return not PLAIN.issuperset(map(type, tensors))


def bare(*tensors: Any) -> tuple[Any, ...]:
    """Without subclasses, which may have methods of other arguments (MONAI's MetaTensor); torch puts them back."""
    return tuple(each if type(each) in PLAIN else each.as_subclass(Tensor) for each in tensors)


def or_empty(tensor: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty((0,)) if tensor is None else tensor


def empty(look: Look | None, q: Tensor) -> Tensor:
    return q.new_empty((0,)) if look is None else q.new_empty_strided(look.shape, look.strides, dtype=look.dtype)
