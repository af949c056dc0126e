"""`normal_sample_kl` and `normal_sample` against the plain formula in float64, on every backend."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.functional import sample_with_log_density
from ladder_kernels.variance import KINDS, VarianceMap
from tests import oracle
from tests.conftest import DEVICE
from tests.maps import MAPS, modes

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
SOURCES = ("noise", "latent", "mode")
PRIORS = ("learned", "batch 1", "standard")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def packed(shape, dtype=torch.float32, batch=None, scale=1.0):
    batch_size, channels, *spatial = shape
    return (scale * torch.randn(batch or batch_size, 2 * channels, *spatial)).to(dtype)


def tensors(shape, source, dtype=torch.float32, prior="learned"):
    """Leaf inputs by argument name; the prior is "learned", "batch 1" or "standard"."""
    given = {"q_params": packed(shape, dtype)}
    if prior != "standard":
        given["p_params"] = packed(shape, dtype, batch=1 if prior == "batch 1" else None)
    if source in ("noise", "latent"):
        noise_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        given[source] = torch.randn(shape, dtype=noise_dtype)
    return given


def run(function, given, options, incoming):
    """Outputs by name and gradients by argument name, for the outputs that have an incoming gradient."""
    given = {k: v.detach().clone(memory_format=torch.preserve_format) for k, v in given.items()}
    leaves = {k: v.requires_grad_() for k, v in given.items() if k != "noise"}
    outputs = function(**{"p_params": None, **given}, **options)
    outputs = outputs if isinstance(outputs, dict) else outputs._asdict()
    used = {k: v for k, v in incoming.items() if outputs[k].requires_grad}
    return outputs, dict(zip(leaves, oracle.gradients(outputs, list(leaves.values()), used), strict=True))


def random_incoming(shape, names):
    batch, channels, *spatial = shape
    shapes = {
        "z": shape,
        "kl_samplewise": (batch,),
        "kl_samplewise_restricted": (batch,),
        "kl_channelwise": (batch, channels),
        "kl_spatial": (batch, *spatial),
        "logprob_q": (batch,),
        "kl_elementwise": shape,
    }
    return {name: torch.randn(shapes[name]) for name in names}


def interpreted(backend):
    """Whether the backend's kernels run in Triton's interpreter."""
    return backend == "triton" and not torch.cuda.is_available()


def check(given, options, names=oracle.OUTPUTS, truncates=False):
    """Values and gradients of one call within the bound; returns our outputs."""
    batch, channels, *spatial = given["q_params"].shape
    incoming = random_incoming((batch, channels // 2, *spatial), names)
    ours, our_grads = run(normal_sample_kl, given, {**options, "elementwise": True}, incoming)
    mode = not {"noise", "latent"} & given.keys()
    plain_options = {**options, "mode": mode}
    compute = torch.float64 if given["q_params"].dtype == torch.float64 else torch.float32
    plain, plain_grads = run(oracle.step, oracle.cast(given, compute), plain_options, incoming)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), plain_options, incoming)
    for name in (*oracle.OUTPUTS, "qvar_max"):
        oracle.assert_as_exact_as_plain(name, ours[name], plain[name], exact[name], truncates=truncates)
    for name in our_grads:
        assert our_grads[name].dtype == given[name].dtype
        values = (our_grads[name], plain_grads[name], exact_grads[name])
        oracle.assert_as_exact_as_plain(f"grad {name}", *values, truncates=truncates)
    return ours


def options(source, **more):
    return {"mode": source == "mode", **more}


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


SUBSETS = [names for count in range(1, 8) for names in itertools.combinations(oracle.OUTPUTS, count)]
# For an interpreter, which takes a second where a CPU takes a millisecond: alone, in pairs, all but one, and all.
FEW_SUBSETS = [names for names in SUBSETS if len(names) in (1, 2, 6, 7)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_every_subset_of_incoming_gradients(backend, source, analytical):
    """Against autograd of the plain formula, both in float64."""
    given = {k: v.requires_grad_(k != "noise") for k, v in tensors((2, 2, 4, 5), source, torch.float64).items()}
    call = {**given, **options(source, analytical_kl=analytical, vanilla_latent_hw=2)}
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


def layouts():
    """The same packed values in memory layouts that convolutions and crops produce."""
    values = packed((2, 6, 5, 7))
    wide = torch.randn(2, 20, 9, 9)
    wide[:, 4:16, 2:7, 1:8] = values
    return {
        "contiguous": values,
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "crop of a larger one": wide[:, 4:16, 2:7, 1:8],
        "crop in channels_last": wide.contiguous(memory_format=torch.channels_last)[:, 4:16, 2:7, 1:8],
        "transposed space": values.transpose(2, 3).contiguous().transpose(2, 3),
        "transposed batch": values.transpose(0, 1).contiguous().transpose(0, 1),
    }


@pytest.mark.parametrize("q_layout", layouts())
@pytest.mark.parametrize("p_layout", ["contiguous", "channels_last", "crop of a larger one"])
def test_every_memory_layout(backend, q_layout, p_layout):
    q, p = layouts()[q_layout], layouts()[p_layout]
    given = {"q_params": q, "p_params": p.clone(memory_format=torch.preserve_format), "noise": torch.randn(2, 6, 5, 7)}
    leaves = {k: v.detach().requires_grad_() if k != "noise" else v for k, v in given.items()}
    step = normal_sample_kl(**leaves, vanilla_latent_hw=3)
    reference = {k: v.detach().contiguous().requires_grad_() if k != "noise" else v for k, v in given.items()}
    expected = normal_sample_kl(**reference, vanilla_latent_hw=3)
    incoming = random_incoming((2, 6, 5, 7), oracle.OUTPUTS[:-1])
    for name in incoming:
        torch.testing.assert_close(getattr(step, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    ours = oracle.gradients(step._asdict(), [leaves["q_params"], leaves["p_params"]], incoming)
    theirs = oracle.gradients(expected._asdict(), [reference["q_params"], reference["p_params"]], incoming)
    for grad, expected_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_z_is_dense_in_the_layout_of_q(backend):
    q = packed((2, 4, 6, 5))
    assert normal_sample_kl(q, None).z.is_contiguous()
    last = q.contiguous(memory_format=torch.channels_last)
    assert normal_sample_kl(last, None).z.is_contiguous(memory_format=torch.channels_last)
    assert normal_sample(last, seed=1).is_contiguous(memory_format=torch.channels_last)


def test_the_mode_does_not_alias_the_parameters(backend):
    q = packed((1, 2, 3, 3))
    before = q.clone()
    normal_sample(q, mode=True).add_(1)
    normal_sample_kl(q, None, mode=True).z.add_(1)
    assert torch.equal(q, before)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_temperature_scales_the_noise_and_the_gradient(backend, temperature, analytical):
    given = tensors((2, 3, 4, 4), "noise")
    check(given, options("noise", temperature=temperature, analytical_kl=analytical))


@pytest.mark.parametrize("vanilla_latent_hw", [1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize("shape", [(2, 2, 6, 6), (2, 2, 4, 7), (2, 2, 3, 6, 5), (2, 2, 9)], ids=str)
def test_restricted_window_per_dim(backend, vanilla_latent_hw, shape):
    check(tensors(shape, "noise"), options("noise", vanilla_latent_hw=vanilla_latent_hw))


@pytest.mark.parametrize("logvar", [-200.0, -30.0, -1e-3, 0.0, 1e-3, 19.999, 20.0, 20.001, 200.0, 1e4])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_log_variances_at_the_clamp_and_far_beyond(backend, logvar, analytical):
    given = tensors((2, 3, 3, 3), "noise")
    given["q_params"][:, 3:] = logvar
    check(given, options("noise", analytical_kl=analytical, variance=VarianceMap(raw_max=20.0)))
    given["q_params"][:, 3:] = 0.1
    given["p_params"][:, 3:] = logvar
    check(given, options("noise", analytical_kl=analytical, variance=VarianceMap(raw_max=20.0)))


def test_the_clamp_passes_the_gradient_at_equality_and_stops_it_above(backend):
    q = packed((1, 1, 3))
    q[0, 1] = torch.tensor([1.0, 2.0, math.nextafter(2.0, 3.0) + 1e-6])
    q.requires_grad_()
    normal_sample_kl(q, None, noise=torch.ones(1, 1, 3), variance=VarianceMap(raw_max=2.0)).z.sum().backward()
    slope = q.grad[0, 1]
    assert slope[0] > 0
    assert slope[1] > 0
    assert slope[2] == 0


@pytest.mark.parametrize("logvar", [-200.0, -150.0, -100.0])
def test_naive_variances_that_underflow_keep_their_std_and_gradient(backend, logvar):
    q = packed((1, 2, 3, 3))
    q[:, 2:] = logvar
    q.requires_grad_()
    step = normal_sample_kl(q, packed((1, 2, 3, 3)), variance=VarianceMap("exp"), noise=torch.randn(1, 2, 3, 3))
    (step.z.sum() + step.kl_samplewise.sum()).backward()
    assert torch.isfinite(step.kl_samplewise).all()
    assert torch.isfinite(q.grad).all()
    with torch.no_grad():
        q[:, :2] = 0
    assert (normal_sample(q, variance=VarianceMap("exp"), noise=torch.full((1, 2, 3, 3), 1e35)) > 0).all()


@pytest.mark.parametrize("logvar", [170.0, 176.0])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_naive_variances_that_overflow_keep_their_std_and_gradient(backend, logvar, analytical):
    """At 176 the inverse std is denormal; beyond 177 the std would overflow."""
    given = tensors((1, 2, 3, 3), "noise")
    given["noise"].clamp_(-1, 1)
    for name in ("q_params", "p_params"):
        given[name][:, 2:] = logvar + torch.randn(1, 2, 3, 3).clamp(-1, 1)
    arguments = {"variance": VarianceMap("exp"), "analytical_kl": analytical}, {"kl_samplewise": torch.ones(1)}
    outputs, grads = run(normal_sample_kl, given, *arguments)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), *arguments)
    torch.testing.assert_close(outputs["z"].double(), exact["z"], rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs["kl_samplewise"].double(), exact["kl_samplewise"], rtol=0, atol=1e-2)
    for name, grad in grads.items():
        torch.testing.assert_close(grad.double(), exact_grads[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize("where", ["q mean", "q logvar", "p mean", "p logvar", "noise"])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_nan_in_nan_out(backend, where, analytical):
    given = tensors((2, 2, 3, 3), "noise")
    name, _, half = where.partition(" ")
    if name == "noise":
        given["noise"][1, 0, 1, 2] = torch.nan
    else:
        given[f"{name}_params"][1, 0 if half == "mean" else 2, 1, 2] = torch.nan
    outputs, grads = run(
        normal_sample_kl,
        given,
        {"analytical_kl": analytical, "variance": VarianceMap(raw_max=20.0)},
        {"kl_samplewise": torch.randn(2)},
    )
    noise_is_unused = name == "noise" and analytical
    assert torch.isfinite(outputs["kl_samplewise"][0])
    assert outputs["kl_samplewise"][1].isnan() != noise_is_unused
    assert outputs["z"].isnan().any() == (name != "p")
    assert outputs["qvar_max"].isnan() == (where == "q logvar")
    assert grads["q_params"].isnan().any() != noise_is_unused
    assert torch.isfinite(grads["q_params"][0]).all()


@pytest.mark.parametrize("variance", MAPS.values(), ids=MAPS)
def test_analytic_kl_near_equality_does_not_cancel(backend, variance):
    p = packed((1, 8, 16, 16))
    q = p.clone()
    q[:, 8:] += 1e-3 * torch.randn(1, 8, 16, 16)
    options = {"analytical_kl": True, "variance": variance, "mode": True}
    kl = normal_sample_kl(q, p, **options, elementwise=True).kl_elementwise
    exact = oracle.step(q.double(), p.double(), **options)["kl_elementwise"]
    # KL = x^2/2 of a log-ratio x that float32 knows to some 1e-7; 1 - 1 would leave an error of 1e-7 in KL itself.
    assert ((kl - exact).abs() <= 1.5e-7 * oracle.SLACK * (2 * exact).sqrt() + 1e-13).all()


@modes(prior=PRIORS, source=(*SOURCES, "seed"), kl=("mc", "analytic"))
def test_gradcheck(backend, variance, prior, source, kl):
    given = tensors((2, 2, 3, 4), source, torch.float64, prior)
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
            vanilla_latent_hw=2,
            temperature=0.8,
            elementwise=True,
        )
        outputs = step._asdict()
        del outputs["qvar_max"]
        return tuple(v for v in outputs.values() if v.requires_grad)

    # The interpreter takes a tenth of a second a call: there along random directions only.
    assert torch.autograd.gradcheck(differentiable, values, fast_mode=interpreted(backend))


@pytest.mark.parametrize("source", ["noise", "seed", "mode"])
def test_gradcheck_of_the_sample(backend, source):
    params = packed((2, 2, 3, 4), torch.float64).requires_grad_()
    extra = {"noise": {"noise": torch.randn(2, 2, 3, 4).double()}, "seed": {"seed": 3}, "mode": {"mode": True}}[source]
    assert torch.autograd.gradcheck(
        lambda x: normal_sample(x, **extra, variance=VarianceMap(raw_max=0.5), temperature=0.7),
        params,
        fast_mode=interpreted(backend),
    )


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
        normal_sample_kl(q, p, variance=VarianceMap(raw_max=20.0), vanilla_latent_hw=8, **extra)
    assert {t.data_ptr() for t in kept} == allowed


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


@pytest.mark.parametrize("source", SOURCES)
def test_gradcheck_of_the_sample_with_its_log_density(backend, source):
    params = packed((2, 2, 3, 4), torch.float64).requires_grad_()
    z = torch.randn(2, 2, 3, 4).double().requires_grad_(source == "latent")

    def differentiable(params, z):
        given = {"mode": True} if source == "mode" else {source: z}
        step = sample_with_log_density(params, **given, variance=VarianceMap(raw_max=0.5), temperature=0.7)
        return (step.logprob_q,) if source == "latent" else (step.z, step.logprob_q)

    assert torch.autograd.gradcheck(differentiable, (params, z), fast_mode=interpreted(backend))


@pytest.mark.parametrize("latents_apart", [2**29, 2**28 + 1], ids=["channels", "half of the channels"])
def test_offsets_beyond_32_bits(backend, latents_apart):
    """Of a slice of a tensor that is never touched but where it is read."""
    shape, strides = (1, 8, 4, 16), (2**32, latents_apart, 16, 1)
    storage = torch.UntypedStorage(
        2 * (7 * latents_apart + 64), device=DEVICE if backend in ("triton", "cuda") else None
    )
    q = torch.tensor([], dtype=torch.float16, device=storage.device).set_(storage, 0, shape, strides)
    values = packed((1, 4, 4, 16), torch.float16)
    q.copy_(values)
    ours, expected = normal_sample_kl(q, q, seed=3), normal_sample_kl(values, values, seed=3)
    assert torch.equal(ours.z, expected.z)
    assert torch.equal(normal_sample(q, seed=3), expected.z)
    leaf, dense = q.detach().requires_grad_(), values.clone().requires_grad_()
    incoming = torch.randn(1)
    grads = [torch.autograd.grad(normal_sample_kl(x, x, seed=3).kl_samplewise, x, incoming) for x in (leaf, dense)]
    torch.testing.assert_close(*grads)


def test_fresh_noise_obeys_manual_seed(backend):
    q = packed((2, 3, 4, 4))
    torch.manual_seed(3)
    first, again = normal_sample_kl(q, None).z, normal_sample_kl(q, None).z
    torch.manual_seed(3)
    assert torch.equal(normal_sample_kl(q, None).z, first)
    assert not torch.equal(first, again)


def test_elementwise_only_when_asked(backend):
    assert normal_sample_kl(packed((1, 2, 3)), None).kl_elementwise is None


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
        outputs = step(q, p, noise=noise, variance=VarianceMap(raw_max=20.0))
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
    z = normal_sample_kl(packed((2, 2, 3, 3)), p, noise=torch.randn(2, 2, 3, 3)).z
    (grad,) = torch.autograd.grad(z, p, torch.randn(z.shape), create_graph=create_graph)
    assert torch.equal(grad, torch.zeros_like(p))


def one(*values):
    """A packed parameter of one element."""
    return torch.tensor(values).view(1, 2, 1)


# Each against the plain formula in float64, which is finite there.
EXTREMES = {
    "exp map, 1 / std overflows, mean equal": (
        {"q_params": one(1.0, -180.0), "p_params": one(1.0, -180.0)},
        {"mode": True, "variance": VarianceMap("exp")},
    ),
    "exp map, 1 / std overflows, means apart": (
        {"q_params": one(0.0, -185.0), "p_params": one(0.0, -181.0), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("exp")},
    ),
    "exp map, analytic, 1 / std overflows": (
        {"q_params": one(1.0, -200.0), "p_params": one(1.0, -200.25)},
        {"mode": True, "variance": VarianceMap("exp"), "analytical_kl": True},
    ),
    "exp map, given latent, analytic": (
        {"q_params": one(1.0, -110.0), "p_params": one(0.7, 1.35), "latent": torch.zeros(1, 1, 1)},
        {"variance": VarianceMap("exp"), "analytical_kl": True},
    ),
    "logstd, 1 / std overflows, means apart": (
        {"q_params": one(0.0, -92.5), "p_params": one(0.0, -90.5), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("logstd")},
    ),
    "logstd, analytic, 1 / std overflows": (
        {"q_params": one(1.0, -100.0), "p_params": one(1.0, -100.125)},
        {"mode": True, "variance": VarianceMap("logstd"), "analytical_kl": True},
    ),
    "softplus, analytic, both stds underflow": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.25)},
        {"mode": True, "variance": VarianceMap("softplus"), "analytical_kl": True},
    ),
    "softplus, the ratio underflows": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, 3.0)},
        {"mode": True, "variance": VarianceMap("softplus"), "analytical_kl": True},
    ),
    "softplus, a large ratio": (
        {"q_params": one(0.0, -60.0), "p_params": one(0.0, 1e30)},
        {"mode": True, "variance": VarianceMap("softplus", beta=0.5), "analytical_kl": True},
    ),
    "softplus, stds of a normal float's smallest": (
        {"q_params": one(0.0, -85.0), "p_params": one(0.0, -84.0), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("softplus")},
    ),
    "a gradient next to overflow": (
        {"q_params": one(1.5e19, 0.0), "p_params": one(0.0, 0.0)},
        {"mode": True},
    ),
}


@pytest.mark.parametrize(("given", "options"), EXTREMES.values(), ids=EXTREMES)
def test_nothing_overflows_where_the_truth_does_not(backend, given, options):
    incoming = {"kl_samplewise": torch.tensor([1.9])}
    ours, our_grads = run(normal_sample_kl, given, {**options, "elementwise": True}, incoming)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), options, incoming)
    assert ours["z"].isfinite().all()
    torch.testing.assert_close(ours["kl_samplewise"].double(), exact["kl_samplewise"], rtol=1e-4, atol=1e-4)
    for name, grad in our_grads.items():
        # To float32's range: what the truth rounds to.
        torch.testing.assert_close(grad, exact_grads[name].float(), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("kind", ["exp", "logstd", "softplus"])
def test_equal_means_are_no_distance_whatever_the_std(backend, kind, analytical):
    """0 / 0 is 0 there: both stds are 0 in every float."""
    given = {"q_params": one(1.0, -1e4), "p_params": one(1.0, -1e4)}
    options = {"mode": True, "variance": VarianceMap(kind), "analytical_kl": analytical}
    outputs, grads = run(normal_sample_kl, given, options, {"kl_samplewise": torch.tensor([1.9])})
    assert outputs["kl_samplewise"].item() == 0.0
    # Of log_var the gradients are 0, or 1.9 / 2 of p's and minus that of q's; of raw twice that if raw is log std.
    slope = {"exp": 0.5, "logstd": 1.0, "softplus": 1.0}[kind] * (not analytical)
    torch.testing.assert_close(grads["q_params"], one(0.0, -1.9 * slope))
    torch.testing.assert_close(grads["p_params"], one(0.0, 1.9 * slope))


@pytest.mark.parametrize("raw", [math.nan, -math.inf, math.inf])
def test_a_term_whose_gradient_does_not_arrive_does_not_exist(backend, raw):
    """z of the mode does not depend on the variance, whatever that is."""
    q = one(1.0, raw).requires_grad_()
    z = normal_sample_kl(q, one(0.0, math.nan), mode=True).z
    (grad,) = torch.autograd.grad(z, q, torch.tensor([[[3.0]]]))
    assert grad.flatten().tolist() == [3.0, 0.0]
    (grad,) = torch.autograd.grad(normal_sample(q, mode=True), q, torch.tensor([[[3.0]]]))
    assert grad.flatten().tolist() == [3.0, 0.0]


def test_float64_is_clamped_in_float64(backend):
    """0.1 has another value in float32, and 1e-50 none."""
    for bound in (0.1, 1e-50):
        q = torch.tensor([0.0, bound], dtype=torch.float64).view(1, 2, 1).requires_grad_()
        step = normal_sample_kl(q, None, mode=True, variance=VarianceMap(raw_max=bound))
        torch.testing.assert_close(step.qvar_max.item(), math.log(1 + bound + 1e-6), rtol=0, atol=1e-15)
        (grad,) = torch.autograd.grad(step.logprob_q.sum(), q)
        assert grad[0, 1, 0] != 0


def test_infinite_noise_with_a_temperature_is_infinite(backend):
    noise = torch.tensor([math.inf, -math.inf, 1.0]).view(1, 1, 3)
    z = normal_sample(torch.zeros(1, 2, 3), noise=noise, temperature=0.7, variance=VarianceMap("exp"))
    torch.testing.assert_close(z.flatten(), torch.tensor([math.inf, -math.inf, 0.7]))


def test_negative_views_are_read_with_their_sign(backend):
    """`conj().imag` and the gradients that come back through it negate when they are read, not in memory."""
    values = torch.randn(2, 4, 3, 3, dtype=torch.complex64)
    negative = values.conj().imag
    assert negative.is_neg()
    q, noise = -values.imag.clone(), torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    expected = normal_sample_kl(q, q, noise=-noise.imag.clone())
    step = normal_sample_kl(negative, negative, noise=noise.conj().imag)
    torch.testing.assert_close(step.z, expected.z)
    torch.testing.assert_close(step.kl_spatial, expected.kl_spatial)
    leaf, incoming = q.requires_grad_(), torch.randn(2, 2, 3, 3, dtype=torch.complex64).conj().imag
    z = normal_sample_kl(leaf, None, noise=-noise.imag.clone()).z
    (grad,) = torch.autograd.grad(z, leaf, incoming, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(z, leaf, incoming.resolve_neg().clone())
    torch.testing.assert_close(grad, expected_grad)


def test_zeros_without_memory_are_read_as_zeros(backend):
    zeros = torch._efficientzerotensor((2, 4, 3))
    expected = normal_sample_kl(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), seed=3)
    found = normal_sample_kl(zeros, zeros, seed=3)
    torch.testing.assert_close(found.z, expected.z)
    torch.testing.assert_close(found.kl_spatial, expected.kl_spatial)


def test_the_noise_of_a_seed_has_the_order_of_the_call_in_backward_too(backend):
    """However the saved parameters come back: from the CPU or a disk they may be contiguous."""
    q = packed((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 3, 4, 5)
    (expected,) = torch.autograd.grad(normal_sample(q, seed=7), q, weights)
    to_contiguous = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    )
    with to_contiguous:
        z = normal_sample(q, seed=7)
        kl = normal_sample_kl(q, None, seed=7).kl_samplewise
    (grad,) = torch.autograd.grad(z, q, weights)
    torch.testing.assert_close(grad, expected)
    (grad,) = torch.autograd.grad(kl, q, weights[:, 0, 0, 0])
    (expected,) = torch.autograd.grad(normal_sample_kl(q, None, seed=7).kl_samplewise, q, weights[:, 0, 0, 0])
    torch.testing.assert_close(grad, expected)


def test_any_integer_is_a_seed():
    q = packed((1, 2, 3))
    for seed, same in (
        (np.int32(5), 5),
        (np.uint64(2**64 - 3), -3),
        (2**64 - 3, -3),
        (2**64 + 5, 5),
        (-(2**63) - 1, 2**63 - 1),
        (torch.tensor([5]), 5),
    ):
        assert torch.equal(normal_sample(q, seed=seed), normal_sample(q, seed=same)), seed
    normal_sample(q, seed=torch.initial_seed())


def test_numpy_numbers_are_numbers():
    q, noise = packed((1, 2, 4, 4)), torch.randn(1, 2, 4, 4)
    step = normal_sample_kl(
        q,
        None,
        noise=noise,
        temperature=np.float32(0.5),
        variance=VarianceMap(raw_max=np.float64(0.5)),
        vanilla_latent_hw=np.int64(2),
    )
    expected = normal_sample_kl(
        q, None, noise=noise, temperature=0.5, variance=VarianceMap(raw_max=0.5), vanilla_latent_hw=2
    )
    assert torch.equal(step.z, expected.z)
    assert torch.equal(step.kl_samplewise_restricted, expected.kl_samplewise_restricted)


WRONG = {
    "odd channels": (ValueError, {"q_params": torch.zeros(1, 3, 4, 4)}),
    "no space": (ValueError, {"q_params": torch.zeros(1, 4)}),
    "four spatial dims": (ValueError, {"q_params": torch.zeros(1, 4, 1, 1, 1, 1)}),
    "integers": (TypeError, {"q_params": torch.zeros(1, 4, 4, 4, dtype=torch.int32)}),
    "p of other space": (ValueError, {"p_params": torch.zeros(2, 4, 4, 5)}),
    "p of other batch": (ValueError, {"p_params": torch.zeros(3, 4, 4, 4)}),
    "noise of p's shape": (ValueError, {"noise": torch.zeros(2, 4, 4, 4)}),
    "latent of batch 1": (ValueError, {"latent": torch.zeros(1, 2, 4, 4)}),
    "two sources": (ValueError, {"seed": 1, "mode": True}),
    "seed of two": (ValueError, {"seed": torch.tensor([1, 2])}),
    "float seed": (ValueError, {"seed": torch.tensor(1.0)}),
    "noise with gradient": (ValueError, {"noise": torch.zeros(2, 2, 4, 4, requires_grad=True)}),
    "no q": (TypeError, {"q_params": None}),
    "q as a list": (TypeError, {"q_params": [[1.0]]}),
    "p as a str": (TypeError, {"p_params": "p"}),
    "noise as a list": (TypeError, {"noise": [0.0]}),
    "seed with a fraction": (TypeError, {"seed": 1.5}),
    "seed as a str": (TypeError, {"seed": "7"}),
    "window as a float": (TypeError, {"vanilla_latent_hw": 2.0}),
    "window below zero": (ValueError, {"vanilla_latent_hw": -3}),
    "window of nothing": (ValueError, {"vanilla_latent_hw": 0}),
    "temperature as a tensor": (TypeError, {"temperature": torch.tensor(1.0, requires_grad=True)}),
    "temperature as a str": (TypeError, {"temperature": "1"}),
    "variance as a str": (TypeError, {"variance": "stable"}),
    "tensor elsewhere": (ValueError, {"p_params": torch.zeros(2, 4, 4, 4, device="meta")}),
}


@pytest.mark.parametrize(("error", "wrong"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(error, wrong):
    call = {"q_params": torch.zeros(2, 4, 4, 4), "p_params": None, **wrong}
    with pytest.raises(error, match=r"^(q_params|p_params|noise|latent|z|seed|vanilla_latent_hw|temperature|variance)"):
        normal_sample_kl(**call)


def test_shape_errors_name_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 4\).*\(2, 4, 4, 4\)"):
        normal_sample_kl(torch.zeros(2, 4, 4, 4), torch.zeros(3, 4, 4, 4))


def test_a_clamp_between_two_16_bit_values_stops_just_what_lies_above(backend):
    q = torch.tensor([[[0.0, 0.0], [20.0, 20.125]]], dtype=torch.bfloat16, requires_grad=True)
    normal_sample_kl(q, None, noise=torch.ones(1, 1, 2), variance=VarianceMap(raw_max=20.1)).z.sum().backward()
    assert q.grad[0, 1, 0] > 0
    assert q.grad[0, 1, 1] == 0
