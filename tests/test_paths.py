"""One behaviour on every path: compilers, tracers, transforms and wrappers give what the eager call gives.

Values, gradients, strides and random numbers, for every backend, source of z and memory layout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from ladder_kernels import normal_sample_kl
from ladder_kernels.variance import VarianceMap
from tests.inputs import channels_last, sliced

pytestmark = pytest.mark.usefixtures("fresh_compiler")

SHAPE = (2, 3, 4, 6)
PACKED = (2, 6, 4, 6)


# q and p of each case, before gradients are asked for.
LAYOUTS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "nchw": lambda: (torch.randn(PACKED), torch.randn(PACKED)),
    "channels_last": lambda: (channels_last(torch.randn(PACKED)), channels_last(torch.randn(PACKED))),
    "channels_last, learned prior": lambda: (channels_last(torch.randn(PACKED)), torch.randn(1, *PACKED[1:])),
    "slice, channels_last p": lambda: (sliced(torch.randn(PACKED)), channels_last(torch.randn(PACKED))),
}
SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "fresh": dict,
    "seed": lambda: {"seed": 7},
    "noise": lambda: {"noise": channels_last(torch.randn(SHAPE))},
    "latent": lambda: {"latent": torch.randn(SHAPE)},
    "mode": lambda: {"mode": True},
}
# A map for each source, so that every path meets every kind.
VARIANCES = {
    "fresh": VarianceMap("stable", raw_max=0.5),
    "seed": VarianceMap("logstd", raw_max=0.5),
    "noise": VarianceMap("exp", raw_max=0.5),
    "latent": VarianceMap("softplus", raw_max=0.5, beta=0.7, floor=0.2),
    "mode": VarianceMap("softplus", raw_max=0.5),
}


class Case(NamedTuple):
    """A call of leaves (q, p and, where z is given, z), and the gradients that arrive at its outputs."""

    call: Callable[..., tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...]
    incoming: tuple[Tensor, ...]

    def __call__(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        return self.call(*(leaves or self.leaves))

    def gradients(self, outputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs[: len(self.incoming)], self.leaves, self.incoming, **options)


def make_case(layout: str, source: str, kl: str = "analytic") -> Case:
    q, p = LAYOUTS[layout]()
    given = SOURCES[source]()
    options = {
        "variance": VARIANCES[source],
        "window": 2,
        "elementwise": True,
        "analytical_kl": kl == "analytic",
    }
    leaves = (q.requires_grad_(), p.requires_grad_())
    if "latent" in given:
        leaves = (*leaves, given.pop("latent").requires_grad_())

    def call(q: Tensor, p: Tensor, latent: Tensor | None = None) -> tuple[Tensor, ...]:
        step = normal_sample_kl(q, p, latent=latent, **options, **given)
        z, *sums, logvar_max, elementwise = step  # no slice of it, which torch 2.7 does not trace
        return (*(() if latent is not None else (z,)), *sums, elementwise, logvar_max)

    generator = torch.Generator().manual_seed(1)
    outputs = call(*leaves)
    incoming = tuple(torch.randn(out.shape, generator=generator) for out in outputs[:-1])
    return Case(call, leaves, incoming)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], strides: bool = True) -> None:
    for index, (value, want) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(value, want, rtol=2e-5, atol=2e-5, msg=lambda m, index=index: f"[{index}] {m}")
        assert not strides or value.stride() == want.stride(), f"[{index}] {value.stride()}, not {want.stride()}"


def through(wrapped: Callable[..., tuple[Tensor, ...]]) -> Callable[[Case], Any]:
    """A path whose outputs are differentiated by autograd."""

    def path(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        torch.manual_seed(5)
        outputs = wrapped(case)(*case.leaves)
        return outputs, case.gradients(outputs)

    return path


def traced(case: Case, mode: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """make_fx of the outputs and their gradients, run on the real tensors."""

    def both(*leaves: Tensor) -> tuple[Any, Any]:
        outputs = case.call(*leaves)
        return outputs, torch.autograd.grad(outputs[:-1], leaves, case.incoming)

    graph = make_fx(both, tracing_mode=mode, _allow_non_fake_inputs=True)(*case.leaves)
    torch.manual_seed(5)
    return graph(*case.leaves)


def exported(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    class Module(torch.nn.Module):
        def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
            return case.call(*leaves)

    # Not strict is the default of newer versions; strict, a case's own tensors would have to be inputs.
    return torch.export.export(Module(), case.leaves, strict=False).module()


def saved_contiguous(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What save_on_cpu and offloading do: a saved tensor comes back with other strides."""
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        outputs = case()
    return outputs, case.gradients(outputs)


def with_vjp(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(5)
    outputs, vjp = torch.func.vjp(case.call, *(leaf.detach() for leaf in case.leaves))
    return outputs, vjp((*case.incoming, torch.zeros(())))


def with_create_graph(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    outputs = case()
    return outputs, tuple(grad.detach() for grad in case.gradients(outputs, create_graph=True))


def with_batched_gradients(case: Case) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    outputs = case()
    stacked = tuple(torch.stack([grad, 2 * grad]) for grad in case.incoming)
    grads = torch.autograd.grad(outputs[:-1], case.leaves, stacked, is_grads_batched=True)
    for grad in grads:
        torch.testing.assert_close(grad[1], 2 * grad[0], rtol=1e-4, atol=1e-5)
    return outputs, tuple(grad[0] for grad in grads)


# Those that see the same kernels or operators keep the strides of gradients too; the others are plain PyTorch's.
PATHS: dict[str, tuple[Callable[[Case], Any], bool]] = {
    "saved contiguous": (saved_contiguous, True),
    "checkpointed": (
        through(lambda case: lambda *leaves: checkpoint(case.call, *leaves, use_reentrant=False)),
        True,
    ),
    "create_graph": (with_create_graph, False),
    "vjp": (with_vjp, False),
    "batched gradients": (with_batched_gradients, False),
}
# Seconds each.
COMPILERS: dict[str, tuple[Callable[[Case], Any], bool]] = {
    "compiled": (through(lambda case: torch.compile(case.call, fullgraph=True, backend="aot_eager")), False),
    "exported": (through(exported), True),
    "make_fx": (lambda case: traced(case, "real"), True),
    "make_fx, fake": (lambda case: traced(case, "fake"), True),
}
FEW = [
    ("channels_last, learned prior", "fresh"),
    ("nchw", "latent"),
    ("slice, channels_last p", "seed"),
    ("channels_last", "mode"),
    ("nchw", "noise"),
]
MANY = sorted({*FEW, *((layout, "fresh") for layout in LAYOUTS), *(("channels_last", source) for source in SOURCES)})


def check_path(backend: str, path: Callable[[Case], Any], gradient_strides: bool, layout: str, source: str) -> None:
    case = make_case(layout, source, kl="monte_carlo" if source in ("fresh", "latent") else "analytic")
    expected = case()
    expected_grads = case.gradients(expected)
    outputs, grads = path(case)
    assert_same(outputs, expected)
    assert_same(grads, expected_grads, strides=gradient_strides and backend != "torch")


@pytest.mark.parametrize(("layout", "source"), MANY, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_eager_numbers(backend, path, layout, source):
    check_path(backend, *PATHS[path], layout, source)


@pytest.mark.parametrize(("layout", "source"), FEW, ids=str)
@pytest.mark.parametrize("path", COMPILERS)
def test_every_compiler_gives_the_eager_numbers(backend, path, layout, source):
    check_path(backend, *COMPILERS[path], layout, source)
