"""First and second derivatives of the step by gradcheck, which gradients exist, and what is kept for them."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl, normal_sample_log_prob
from ladder_kernels.variance import VarianceMap
from tests import oracle
from tests.conftest import interpreted
from tests.inputs import PRIORS, SOURCES, one, options, packed, random_incoming, tensors
from tests.maps import modes

SUBSETS = [names for count in range(1, 8) for names in itertools.combinations(oracle.OUTPUTS, count)]
# For an interpreter, which takes a second where a CPU takes a millisecond: alone, in pairs, all but one, and all.
FEW_SUBSETS = [names for names in SUBSETS if len(names) in (1, 2, 6, 7)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_every_subset_of_incoming_gradients(backend, source, analytical):
    """Against autograd of the plain formula, both in float64."""
    given = {k: v.requires_grad_(k != "noise") for k, v in tensors((2, 2, 4, 5), source, torch.float64).items()}
    call = {**given, **options(source, analytical_kl=analytical, window=2)}
    ours, exact = normal_sample_kl(**call, elementwise=True)._asdict(), oracle.step(**call)
    leaves = [v for v in given.values() if v.requires_grad]
    for names in FEW_SUBSETS if interpreted(backend) else SUBSETS:
        incoming = {name: v.double() for name, v in random_incoming((2, 2, 4, 5), names).items()}
        grads, expected = (
            torch.autograd.grad(
                [outputs[name] for name in names],
                leaves,
                [incoming[name] for name in names],
                retain_graph=True,
                allow_unused=True,
            )
            for outputs in (ours, exact)
        )
        for grad, expected_grad in zip(grads, expected, strict=True):
            if grad is None or expected_grad is None:
                assert not any(g is not None and g.any() for g in (grad, expected_grad)), names
            else:
                torch.testing.assert_close(grad, expected_grad, msg=lambda m, names=names: f"{names}: {m}")


def summed(outputs):
    """All elements, with weights of their own that are the same in every call."""
    seeded = [torch.Generator().manual_seed(place) for place in range(len(outputs))]
    weights = [torch.randn(v.shape, generator=each, dtype=v.dtype) for v, each in zip(outputs, seeded, strict=True)]
    return sum((weight.to(v) * v).sum() for v, weight in zip(outputs, weights, strict=True))


@modes(prior=PRIORS, source=(*SOURCES, "seed"), kl=("mc", "analytic"))
def test_gradcheck(backend, variance, prior, source, kl):
    given = tensors((2, 2, 2, 3), source, torch.float64, prior)  # its time is that of the elements, squared
    given = {k: v.requires_grad_(k != "noise") for k, v in given.items()}
    names, values = list(given), tuple(given.values())

    def differentiable(*args):
        call = dict(zip(names, args, strict=True))
        extra = {"seed": 7} if source == "seed" else {"mode": source == "mode"}
        step = normal_sample_kl(
            **{"p_params": None, **call},
            **extra,
            analytical_kl=kl == "analytic",
            variance=dataclasses.replace(variance, raw_min=-0.9, raw_max=0.7),
            window=2,
            temperature=0.8,
            elementwise=True,
        )
        outputs = step._asdict()
        del outputs["logvar_max"]
        outputs = tuple(v for v in outputs.values() if v.requires_grad)
        return summed(outputs) if slow else outputs

    # The interpreter takes a tenth of a second a call: there along random directions only, of all outputs together, and
    # what gradients that do not arrive do is the test's above.
    slow = interpreted(backend)
    assert torch.autograd.gradcheck(differentiable, values, fast_mode=slow, check_undefined_grad=not slow)


@pytest.mark.parametrize("source", ["noise", "seed", "mode"])
def test_gradcheck_of_the_sample(backend, source):
    params = packed((2, 2, 3, 4), torch.float64).requires_grad_()
    extra = {"noise": {"noise": torch.randn(2, 2, 3, 4).double()}, "seed": {"seed": 3}, "mode": {"mode": True}}[source]
    assert torch.autograd.gradcheck(
        lambda x: normal_sample(x, **extra, variance=VarianceMap("stable", raw_max=0.5), temperature=0.7),
        params,
        fast_mode=interpreted(backend),
    )


@pytest.mark.parametrize("source", SOURCES)
def test_gradcheck_of_the_sample_with_its_log_density(backend, source):
    params = packed((2, 2, 3, 4), torch.float64).requires_grad_()
    z = torch.randn(2, 2, 3, 4).double().requires_grad_(source == "latent")

    def differentiable(params, z):
        given = {"mode": True} if source == "mode" else {source: z}
        step = normal_sample_log_prob(params, **given, variance=VarianceMap("stable", raw_max=0.5), temperature=0.7)
        return (step.logprob,) if source == "latent" else (step.z, step.logprob)

    assert torch.autograd.gradcheck(differentiable, (params, z), fast_mode=interpreted(backend))


@pytest.mark.parametrize(
    ("kind", "source", "analytical"),
    [
        *itertools.product(["stable"], ["noise", "latent"], [False, True]),
        ("exp", "noise", True),
        ("logstd", "noise", False),
        ("softplus", "latent", True),
        ("softplus", "noise", False),
    ],
)
def test_second_derivatives_are_right(backend, kind, source, analytical):
    given = tensors((1, 2, 2, 3), source, torch.float64)
    given = {k: v.requires_grad_(k != "noise") for k, v in given.items()}
    names, values = list(given), tuple(given.values())

    def differentiable(*args):
        step = normal_sample_kl(
            **dict(zip(names, args, strict=True)), analytical_kl=analytical, variance=VarianceMap(kind)
        )
        return step.kl_samplewise, step.logprob_q, *([] if source == "latent" else [step.z])

    assert torch.autograd.gradgradcheck(differentiable, values, fast_mode=interpreted(backend))


def test_second_derivatives_count_a_prior_made_of_q_once(backend):
    q = packed((1, 1, 2), torch.float64).requires_grad_()
    noise = torch.randn(1, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: normal_sample_kl(x, 0.5 * x, noise=noise).kl_samplewise, q)
    assert torch.autograd.gradgradcheck(lambda x: normal_sample(x, noise=noise), q)


@pytest.mark.parametrize("source", ["noise", "seed", "latent", "mode"])
def test_nothing_latent_sized_is_kept_but_the_parameters_and_the_noise(backend, source):
    q, p = packed((2, 8, 16, 16)).requires_grad_(), packed((2, 8, 16, 16)).requires_grad_()
    extra = {
        "noise": {"noise": torch.randn(2, 8, 16, 16)},
        "latent": {"latent": torch.randn(2, 8, 16, 16)},
        "seed": {"seed": torch.tensor(5)},
        "mode": {"mode": True},
    }[source]
    allowed = {t.data_ptr() for t in (q, p, *(v for v in extra.values() if isinstance(v, torch.Tensor)))}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        normal_sample_kl(q, p, variance=VarianceMap("stable", raw_max=20.0), window=8, **extra)
    assert {t.data_ptr() for t in kept} == allowed


def test_no_gradient_is_computed_for_what_needs_none(backend):
    q, p = packed((2, 2, 3, 3)), packed((1, 2, 3, 3)).requires_grad_()
    normal_sample_kl(q, p).kl_samplewise.sum().backward()
    assert q.grad is None
    assert p.grad.shape == p.shape
    assert not normal_sample_kl(q, None).z.requires_grad


@pytest.mark.parametrize("path", ["backward", "create_graph", "torch.func", "compiled"])
def test_the_gradient_at_a_raw_log_variance_of_zero_is_that_of_both_sides(backend, path):
    """A learned top prior starts there. Once, not twice or never, as the gradient of two clamps may be."""
    q, p = packed((2, 2, 3, 3), torch.float64), torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    noise, weights = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)

    def loss(p, step=normal_sample_kl):
        outputs = step(q, p, noise=noise, variance=VarianceMap("stable", raw_max=20.0))
        return ((outputs["kl_samplewise"] if isinstance(outputs, dict) else outputs.kl_samplewise) * weights).sum()

    leaf = p.clone().requires_grad_()
    if path == "torch.func":
        grad = torch.func.grad(loss)(p)
    elif path == "compiled":
        torch._dynamo.reset()
        (grad,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf), leaf)
        torch._dynamo.reset()
    else:
        (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=path == "create_graph")
    below = (p - 1e-9).requires_grad_()
    (expected,) = torch.autograd.grad(loss(below, oracle.step), below)
    torch.testing.assert_close(grad.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_does_not_depend_on_a_differentiable_input_has_gradient_zero(backend, create_graph):
    p = packed((2, 2, 3, 3)).requires_grad_()
    q = packed((2, 2, 3, 3)).requires_grad_()
    z = normal_sample_kl(q, p, noise=torch.randn(2, 2, 3, 3)).z
    (grad,) = torch.autograd.grad(z, p, torch.randn(z.shape), create_graph=create_graph)
    assert torch.equal(grad, torch.zeros_like(p))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("spatial", [(5,), (5, 3), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_zeros_where_nothing_arrives_lie_in_memory_as_gradients_do(backend, monkeypatch, spatial, channels_last):
    def leaf(channels):
        memory = torch.randn((2, *spatial, channels) if channels_last else (2, channels, *spatial))
        return (memory.movedim(-1, 1) if channels_last else memory).requires_grad_()

    def sample(q, p):
        return normal_sample_kl(q, p, mode=True).z

    def divergence(q, p, latent):
        return normal_sample_kl(q, p, latent=latent, analytical_kl=True).kl_samplewise

    def check(function, given, without):
        output = function(*given)
        (grad,) = torch.autograd.grad(output, without, torch.randn(output.shape))
        assert torch.equal(grad, torch.zeros_like(without))
        assert grad.stride() == without.stride()

    q, p, latent = leaf(8), leaf(8), leaf(4)
    check(sample, (q, p), p)
    check(divergence, (q, p, latent), latent)
    if backend != "torch":  # which a compiler traces: nothing depends on what nothing arrives at
        monkeypatch.undo()  # no compiler sees through the functions that the fixture wraps
        compile_whole = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
        check(compile_whole(sample), (q, p), p)
        check(compile_whole(divergence), (q, p, latent), latent)


@pytest.mark.parametrize("raw", [math.nan, -math.inf, math.inf])
def test_a_term_whose_gradient_does_not_arrive_does_not_exist(backend, raw):
    """z of the mode does not depend on the variance, whatever that is."""
    q = one(1.0, raw).requires_grad_()
    z = normal_sample_kl(q, one(0.0, math.nan), mode=True).z
    (grad,) = torch.autograd.grad(z, q, torch.tensor([[[3.0]]]))
    assert grad.flatten().tolist() == [3.0, 0.0]
    (grad,) = torch.autograd.grad(normal_sample(q, mode=True), q, torch.tensor([[[3.0]]]))
    assert grad.flatten().tolist() == [3.0, 0.0]


@pytest.mark.usefixtures("fresh_compiler")
def test_a_term_whose_gradient_does_not_arrive_does_not_exist_in_compiled_code(backend, monkeypatch):
    monkeypatch.undo()  # no compiler sees through the functions that the fixture wraps
    q = one(1.0, math.nan).requires_grad_()
    mode = torch.compile(lambda q: normal_sample_kl(q, None, mode=True).z, backend="aot_eager", fullgraph=True)
    (grad,) = torch.autograd.grad(mode(q), q, torch.tensor([[[3.0]]]))
    assert grad.flatten().tolist() == [3.0, 0.0]
