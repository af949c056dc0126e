"""Settings of the process change nothing: the default device and dtype, deterministic algorithms."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from ladder_kernels import NormalStochasticBlock, normal_kl, normal_log_prob, normal_sample, normal_sample_kl
from ladder_kernels.variance import VarianceMap

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# A tensor made on "meta" sends whatever it meets to a fake kernel, whose memory nobody writes.
SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "inside meta": lambda: torch.device("meta"),
    "default meta": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "deterministic": deterministic,
}
SOURCES = {"fresh": {}, "seed": {"seed": 7}, "mode": {"mode": True}}
# Another temperature for each, for what is known of one is kept.
CASES = [
    (source, VarianceMap(kind, raw_max=0.3, raw_min=-0.7), 0.5 + 0.01 * number)
    for number, (source, kind) in enumerate((source, kind) for source in SOURCES for kind in ("stable", "softplus"))
]


def check(call, leaves, setting, compiled):
    torch.manual_seed(0)
    with SETTINGS[setting]():
        run = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
        found = run(*leaves)
        # Of the leaves' device whatever the setting is.
        incoming = [torch.ones_like(out) for out in found]
        grads = torch.autograd.grad(found, leaves, incoming, allow_unused=True)
    torch.manual_seed(0)
    expected = call(*leaves)
    expected_grads = torch.autograd.grad(expected, leaves, incoming, allow_unused=True)
    tolerance = 1e-12 if leaves[0].dtype == torch.float64 else 2e-5
    for value, want in zip((*found, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(value, want, rtol=tolerance, atol=tolerance)


def every_function(source, variance, temperature):
    def call(q, p):
        step = normal_sample_kl(
            q, p, variance=variance, analytical_kl=True, window=2, elementwise=True, temperature=temperature, **source
        )
        return (
            *(out for out in step if out.requires_grad),
            normal_sample(q, variance=variance, temperature=temperature, **source),
            normal_log_prob(q, step.z, variance=variance),
            normal_kl(q, p, variance=variance),
        )

    return call


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("source", "variance", "temperature"), CASES, ids=[f"{c[0]}-{c[1].kind}" for c in CASES])
def test_eager_calls(backend, source, variance, temperature, setting):
    dtype = torch.float64 if setting == "float16" else torch.float32  # another than the default one
    leaves = [torch.randn(2, 6, 4, 6, dtype=dtype, requires_grad=True) for _ in range(2)]
    check(every_function(SOURCES[source], variance, temperature), leaves, setting, compiled=False)


@pytest.mark.parametrize("setting", ["inside meta", "default meta", "float64"])
def test_compiled_calls(backend, setting):
    leaves = [torch.randn(2, 6, 4, 6, requires_grad=True) for _ in range(2)]
    check(every_function({}, VarianceMap(raw_max=0.3), 0.7), leaves, setting, compiled=True)


@pytest.mark.parametrize("setting", ["inside meta", "float64", "deterministic"])
@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_blocks(backend, rng, setting):
    block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=2, rng=rng, validate_args=True)
    features = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2)]

    def call(p, q):
        (out, data), (drawn, predicted) = block(p, q), block(p, q, mode_pred=True)
        generated, _ = block(p)
        statistics = (each["q_params"][1].get_std() for each in (data, predicted))
        return out, data["kl_samplewise"], drawn, predicted["logprob_q"], generated, *statistics

    check(call, features, setting, compiled=False)
