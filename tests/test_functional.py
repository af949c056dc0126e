"""`normal_sample_kl` and `normal_sample` against the plain formula in float64, on every backend."""

import functools

import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.functional import sample_with_log_density
from ladder_kernels.variance import KINDS, VarianceMap
from tests import oracle
from tests.against_oracle import check, run
from tests.conftest import interpreted
from tests.inputs import PRIORS, SOURCES, options, packed, random_incoming, tensors
from tests.maps import modes

# Each shape for a reason: (batch, channels, *spatial).
SHAPES = {
    "one element": (1, 1, 1),
    "1D, odd": (2, 3, 7),
    "2D, one block": (2, 4, 8, 8),
    "2D, nothing divides": (3, 5, 7, 9),
    "2D, wide": (1, 2, 3, 70),
    "2D, space of one": (3, 6, 1, 1),
    "2D, four units of rows": (1, 8, 33, 40),
    "2D, four units of columns": (1, 2, 70, 45),
    "3D": (2, 3, 2, 5, 4),
    "batch of none": (0, 3, 4, 4),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_values_and_gradients_for_every_shape(backend, shape, analytical):
    check(
        tensors(shape, "noise"),
        options("noise", analytical_kl=analytical, variance=VarianceMap(raw_max=0.5), vanilla_latent_hw=3),
    )


@modes(prior=PRIORS, source=SOURCES, kl=("mc", "analytic"))
def test_values_and_gradients_for_every_mode(backend, variance, prior, source, kl):
    given = tensors((3, 4, 5, 6), source, prior=prior)
    check(given, options(source, analytical_kl=kl == "analytic", variance=variance, vanilla_latent_hw=4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", ["learned", "batch 1"])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_every_dtype_is_computed_in_float32_or_better(backend, dtype, prior, analytical):
    given = tensors((3, 5, 7, 9), "noise", dtype, prior)
    ours = check(given, options("noise", analytical_kl=analytical), truncates=interpreted(backend))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    assert ours["z"].dtype == dtype
    assert {ours[name].dtype for name in (*oracle.OUTPUTS[1:], "qvar_max")} == {sums}


def test_mixed_dtypes_keep_their_own_gradients(backend):
    given = {
        "q_params": packed((2, 3, 4, 4), torch.float16),
        "p_params": packed((1, 3, 4, 4), torch.bfloat16),
        "latent": torch.randn(2, 3, 4, 4),
    }
    check(given, options("latent"), truncates=interpreted(backend))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_temperature_scales_the_noise_and_the_gradient(backend, temperature, analytical):
    given = tensors((2, 3, 4, 4), "noise")
    check(given, options("noise", temperature=temperature, analytical_kl=analytical))


@pytest.mark.parametrize("vanilla_latent_hw", [1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (2, 2, 4, 7), (2, 2, 3, 6, 5), (2, 2, 9)], ids=str)
def test_restricted_window_per_dim(backend, vanilla_latent_hw, shape):
    check(tensors(shape, "noise"), options("noise", vanilla_latent_hw=vanilla_latent_hw))


def test_two_calls_give_the_same_bits(backend):
    given = tensors((2, 5, 9, 11), "noise")
    incoming = random_incoming((2, 5, 9, 11), oracle.OUTPUTS)
    first, first_grads = run(normal_sample_kl, given, {"elementwise": True}, incoming)
    second, second_grads = run(normal_sample_kl, given, {"elementwise": True}, incoming)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first_grads[name], second_grads[name]) for name in first_grads)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 9), (2, 2, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_seed_gives_the_torch_backends_sample(backend, shape, dtype, layout):
    q = packed(shape, dtype)
    if layout == "channels_last":
        q = q.movedim(1, -1).contiguous().movedim(-1, 1)
    seed = torch.tensor(-(2**62) + 12345)
    z = normal_sample_kl(q, None, seed=seed).z
    with use_backend("torch"):
        expected = normal_sample_kl(q, None, seed=seed).z
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-5)
    assert torch.equal(normal_sample(q, seed=seed), z)
    assert not torch.equal(normal_sample(q, seed=seed + 1), z)


def test_the_sample_alone_equals_the_samples_of_the_step(backend):
    q, noise = packed((2, 3, 4, 4)), torch.randn(2, 3, 4, 4)
    for extra in ({"noise": noise}, {"seed": 3}, {"mode": True}):
        step = normal_sample_kl(q, None, variance=VarianceMap("exp", raw_max=1.0), temperature=0.5, **extra)
        assert torch.equal(normal_sample(q, variance=VarianceMap("exp", raw_max=1.0), temperature=0.5, **extra), step.z)


@pytest.mark.parametrize("source", [*SOURCES, "seed"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_with_its_log_density_is_the_steps(backend, source, kind):
    """A prediction's one pass, against the step with a KL, values and gradients."""
    q, z = packed((2, 5, 7, 9)), torch.randn(2, 5, 7, 9)
    given = {"noise": {"noise": z}, "latent": {"latent": z}, "seed": {"seed": 3}, "mode": {"mode": True}}[source]
    weights = torch.randn(2, 5, 7, 9), torch.randn(2)
    results = []
    for function in (sample_with_log_density, functools.partial(normal_sample_kl, p_params=None)):
        leaf = q.clone().requires_grad_()
        found = function(leaf, variance=VarianceMap(kind, raw_max=0.5), **given)
        loss = (found.logprob_q * weights[1]).sum()
        if source != "latent":
            loss = loss + (found.z * weights[0]).sum()
        results.append((found.z, found.logprob_q, found.qvar_max, *torch.autograd.grad(loss, leaf)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(results[0][0], results[1][0])


def test_fresh_noise_obeys_manual_seed(backend):
    q = packed((2, 3, 4, 4))
    torch.manual_seed(3)
    first, again = normal_sample_kl(q, None).z, normal_sample_kl(q, None).z
    torch.manual_seed(3)
    assert torch.equal(normal_sample_kl(q, None).z, first)
    assert not torch.equal(first, again)


def test_elementwise_only_when_asked(backend):
    assert normal_sample_kl(packed((1, 2, 3)), None).kl_elementwise is None
