"""The ends of the range of floats: clamps, variances that underflow or overflow, cancellation, NaN and infinities."""

import math
import os
import subprocess
import sys

import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl
from ladder_kernels.variance import VarianceMap
from tests import oracle
from tests.against_oracle import check, run
from tests.inputs import one, options, packed, tensors
from tests.maps import MAPS


@pytest.mark.parametrize("logvar", [-200.0, -30.0, -1e-3, 0.0, 1e-3, 19.999, 20.0, 20.001, 200.0, 1e4])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_log_variances_at_the_clamp_and_far_beyond(backend, logvar, analytical):
    given = tensors((2, 3, 3, 3), "noise")
    given["q_params"][:, 3:] = logvar
    check(given, options("noise", analytical_kl=analytical, variance=VarianceMap("stable", raw_max=20.0)))
    given["q_params"][:, 3:] = 0.1
    given["p_params"][:, 3:] = logvar
    check(given, options("noise", analytical_kl=analytical, variance=VarianceMap("stable", raw_max=20.0)))


def test_the_clamp_passes_the_gradient_at_equality_and_stops_it_above(backend):
    q = packed((1, 1, 3))
    q[0, 1] = torch.tensor([1.0, 2.0, math.nextafter(2.0, 3.0) + 1e-6])
    q.requires_grad_()
    normal_sample_kl(q, None, noise=torch.ones(1, 1, 3), variance=VarianceMap("stable", raw_max=2.0)).z.sum().backward()
    slope = q.grad[0, 1]
    assert slope[0] > 0
    assert slope[1] > 0
    assert slope[2] == 0


def test_a_clamp_between_two_16_bit_values_stops_just_what_lies_above(backend):
    q = torch.tensor([[[0.0, 0.0], [20.0, 20.125]]], dtype=torch.bfloat16, requires_grad=True)
    normal_sample_kl(
        q, None, noise=torch.ones(1, 1, 2), variance=VarianceMap("stable", raw_max=20.1)
    ).z.sum().backward()
    assert q.grad[0, 1, 0] > 0
    assert q.grad[0, 1, 1] == 0


def test_float64_is_clamped_in_float64(backend):
    """0.1 has another value in float32, and 1e-50 none."""
    for bound in (0.1, 1e-50):
        q = torch.tensor([0.0, bound], dtype=torch.float64).view(1, 2, 1).requires_grad_()
        step = normal_sample_kl(q, None, mode=True, variance=VarianceMap("stable", raw_max=bound))
        torch.testing.assert_close(step.logvar_max.item(), math.log(1 + bound + 1e-6), rtol=0, atol=1e-15)
        (grad,) = torch.autograd.grad(step.logprob_q.sum(), q)
        assert grad[0, 1, 0] != 0


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
    "stable, the smallest floor": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.0)},
        {"mode": True, "variance": VarianceMap("stable", floor=1.2e-38)},
    ),
    "softplus, the smallest floor": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.0)},
        {"mode": True, "variance": VarianceMap("softplus", floor=1.2e-38)},
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


# The variance of "stable" is 0 in float32 below -104, denormal below -87, its std 0 below -207.
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_variances_below_the_range_of_floats_keep_their_logarithm(backend, analytical):
    raw = torch.linspace(-300.0, 5.0, 62)
    given = {"q_params": torch.stack([torch.ones(62), raw]), "p_params": torch.stack([torch.ones(62), raw.flip(0)])}
    # Half the way to p, for their ratio would overflow.
    given["p_params"][1] = raw + 0.2 * (given["p_params"][1] - raw)
    given = {name: values.unsqueeze(0) for name, values in given.items()}
    options = {"mode": True, "analytical_kl": analytical, "variance": VarianceMap("stable", floor=0.0)}
    incoming = {"kl_elementwise": torch.randn(1, 1, 62), "logprob_q": torch.randn(1)}
    ours, our_grads = run(normal_sample_kl, given, {**options, "elementwise": True}, incoming)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), options, incoming)
    for name in ("logprob_q", "kl_elementwise", "logvar_max"):
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=1e-5, atol=1e-5)
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad.double(), exact_grads[name], rtol=1e-5, atol=1e-5)


def test_a_gradient_beyond_the_range_of_floats_is_infinite_and_not_nan(backend):
    """1e19 / e^-50, twice, is infinite; half of the smallest noise would be 0."""
    given = {"q_params": one(1e19, 0.0), "p_params": one(0.0, -100.0), "noise": torch.full((1, 1, 1), 1.5e-45)}
    _, grads = run(normal_sample_kl, given, {"variance": VarianceMap("exp")}, {"kl_samplewise": torch.tensor([1.9])})
    assert grads["q_params"].flatten().tolist() == [math.inf, math.inf]
    assert grads["p_params"].flatten().tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("kind", ["exp", "logstd", "softplus", "stable"])
def test_equal_means_are_no_distance_whatever_the_std(backend, kind, analytical):
    """0 / 0 is 0 there: both stds are 0 in every float."""
    given = {"q_params": one(1.0, -1e4), "p_params": one(1.0, -1e4)}
    variance = VarianceMap(kind, floor=0.0)
    options = {"mode": True, "variance": variance, "analytical_kl": analytical}
    outputs, grads = run(normal_sample_kl, given, options, {"kl_samplewise": torch.tensor([1.9])})
    assert outputs["kl_samplewise"].item() == 0.0
    # Of log_var the gradients are 0, or 1.9 / 2 of p's and minus that of q's; of raw twice that if raw is log std.
    slope = {"exp": 0.5, "logstd": 1.0, "softplus": 1.0, "stable": 0.5}[kind] * (not analytical)
    torch.testing.assert_close(grads["q_params"], one(0.0, -1.9 * slope))
    torch.testing.assert_close(grads["p_params"], one(0.0, 1.9 * slope))


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
        {"analytical_kl": analytical, "variance": VarianceMap("stable", raw_max=20.0)},
        {"kl_samplewise": torch.randn(2)},
    )
    noise_is_unused = name == "noise" and analytical
    assert torch.isfinite(outputs["kl_samplewise"][0])
    assert outputs["kl_samplewise"][1].isnan() != noise_is_unused
    assert outputs["z"].isnan().any() == (name != "p")
    assert outputs["logvar_max"].isnan() == (where == "q logvar")
    assert grads["q_params"].isnan().any() != noise_is_unused
    assert torch.isfinite(grads["q_params"][0]).all()


def test_infinite_noise_with_a_temperature_is_infinite(backend):
    noise = torch.tensor([math.inf, -math.inf, 1.0]).view(1, 1, 3)
    z = normal_sample(torch.zeros(1, 2, 3), noise=noise, temperature=0.7, variance=VarianceMap("exp"))
    torch.testing.assert_close(z.flatten(), torch.tensor([math.inf, -math.inf, 0.7]))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_kernels_for_other_instruction_sets_do_the_same(capability):
    names = "cpp and (nothing_overflows or below_the_range or beyond_the_range)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", names]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout
