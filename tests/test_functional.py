"""`normal_sample_kl` and `normal_sample` against the plain formula in float64, on every backend."""

import pytest
import torch

from ladder_kernels import (
    normal_kl,
    normal_log_prob,
    normal_sample,
    normal_sample_kl,
    normal_sample_log_prob,
    use_backend,
)
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
    "3D": (2, 3, 2, 5, 4),
    "batch of none": (0, 3, 4, 4),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_values_and_gradients_for_every_shape(backend, shape, analytical):
    check(
        tensors(shape, "noise"),
        options("noise", analytical_kl=analytical, variance=VarianceMap("stable", raw_max=0.5), window=3),
    )


@modes(prior=PRIORS, source=SOURCES, kl=("mc", "analytic"))
def test_values_and_gradients_for_every_mode(backend, variance, prior, source, kl):
    given = tensors((3, 4, 5, 6), source, prior=prior)
    check(given, options(source, analytical_kl=kl == "analytic", variance=variance, window=4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", ["learned", "batch 1"])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_every_dtype_is_computed_in_float32_or_better(backend, dtype, prior, analytical):
    given = tensors((3, 5, 7, 9), "noise", dtype, prior)
    call = options("noise", analytical_kl=analytical, variance=VarianceMap("stable"))
    ours = check(given, call, truncates=interpreted(backend))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    assert ours["z"].dtype == dtype
    assert {ours[name].dtype for name in (*oracle.OUTPUTS[1:], "logvar_max")} == {sums}


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


@pytest.mark.parametrize("window", [1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (2, 2, 4, 7), (2, 2, 3, 6, 5), (2, 2, 9)], ids=str)
def test_restricted_window_per_dim(backend, window, shape):
    check(tensors(shape, "noise"), options("noise", window=window))


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
    for function, log_q in ((normal_sample_log_prob, "logprob"), (normal_sample_kl, "logprob_q")):
        leaf = q.clone().requires_grad_()
        found = function(leaf, variance=VarianceMap(kind, raw_max=0.5), **given)
        loss = (getattr(found, log_q) * weights[1]).sum()
        if source != "latent":
            loss = loss + (found.z * weights[0]).sum()
        results.append((found.z, getattr(found, log_q), found.logvar_max, *torch.autograd.grad(loss, leaf)))
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


@pytest.mark.parametrize("prior", PRIORS)
def test_heads_without_space_are_a_space_of_one(backend, prior):
    given = tensors((3, 5), "noise", prior=prior)
    flat, spatial = (
        normal_sample_kl(**{name: view(x) for name, x in given.items()}, window=2, elementwise=True)
        for view in (lambda x: x, lambda x: x.unsqueeze(-1))
    )
    assert flat.z.shape == flat.kl_elementwise.shape == flat.kl_channelwise.shape == (3, 5)
    assert flat.kl_spatial.shape == (3,)
    for ours, expected in zip(flat, spatial, strict=True):
        assert torch.equal(ours.flatten(), expected.flatten())
    torch.manual_seed(0)
    drawn = normal_sample(given["q_params"])
    torch.manual_seed(0)
    assert torch.equal(drawn, normal_sample(given["q_params"].unsqueeze(-1)).squeeze(-1))


def test_mean_and_log_variance_are_what_a_generic_caller_means(backend):
    """The default of `variance`, and the density and the KL alone."""
    q, p, noise = packed((2, 3, 4)), packed((2, 3, 4)), torch.randn(2, 3, 4)
    (mean, log_var), (p_mean, p_log_var) = q.chunk(2, 1), p.chunk(2, 1)
    q_normal = torch.distributions.Normal(mean, (log_var / 2).exp())
    p_normal = torch.distributions.Normal(p_mean, (p_log_var / 2).exp())
    z = normal_sample(q, noise=noise)
    torch.testing.assert_close(z, mean + (log_var / 2).exp() * noise)
    torch.testing.assert_close(normal_log_prob(q, z), q_normal.log_prob(z).flatten(1).sum(1))
    for ours, other in ((normal_kl(q, p), p_normal), (normal_kl(q), torch.distributions.Normal(0.0, 1.0))):
        expected = torch.distributions.kl_divergence(q_normal, other).flatten(1).sum(1)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_generator_is_drawn_from_instead_of_the_default_one(backend):
    q = packed((2, 3, 4, 4))
    calls = (
        lambda g: normal_sample_kl(q, generator=g).z,
        lambda g: normal_sample(q, generator=g),
        lambda g: normal_sample_log_prob(q, generator=g).z,
    )
    for call in calls:
        state = torch.get_rng_state()
        first, again = (torch.Generator(q.device).manual_seed(3) for _ in range(2))
        z = call(first)
        assert torch.equal(call(again), z)
        assert not torch.equal(call(again), z)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_temperature_may_be_a_tensor(backend):
    q, noise = packed((2, 3, 4)), torch.randn(2, 3, 4)
    for temperature in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64)):
        z = normal_sample(q, noise=noise, temperature=temperature)
        assert torch.equal(z, normal_sample(q, noise=noise, temperature=0.5))


def test_what_knows_nothing_of_an_input_has_no_gradient(backend):
    """z and log q where p alone is learned, as in compiled plain PyTorch; the largest log-variance never."""
    q, p = packed((2, 3, 4)), packed((2, 3, 4)).requires_grad_()
    step = normal_sample_kl(q, p, noise=torch.randn(2, 3, 4), elementwise=True)
    assert not step.z.requires_grad
    assert not step.logprob_q.requires_grad
    assert not step.logvar_max.requires_grad
    assert step.kl_samplewise.requires_grad
    assert normal_sample_kl(p, q, seed=1).z.requires_grad
    z = torch.randn(2, 3, 4, requires_grad=True)
    analytic = normal_sample_kl(q, q, latent=z, analytical_kl=True)
    assert not analytic.kl_samplewise.requires_grad
    assert analytic.logprob_q.requires_grad
