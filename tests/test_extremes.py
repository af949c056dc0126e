"""The ends of the range of floats: clamps, variances that underflow or overflow, cancellation, NaN and infinities."""

import math
import os
import subprocess
import sys

import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl
from ladder_kernels.variance import VarianceMap
from tests import extremes, oracle
from tests.against_oracle import check, run
from tests.conftest import interpreted
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
    extremes.naive_variances_that_underflow(logvar)


@pytest.mark.parametrize("logvar", [170.0, 176.0])
@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_naive_variances_that_overflow_keep_their_std_and_gradient(backend, logvar, analytical):
    extremes.naive_variances_that_overflow(logvar, analytical)


@pytest.mark.parametrize(("given", "options"), extremes.EXTREMES.values(), ids=extremes.EXTREMES)
def test_nothing_overflows_where_the_truth_does_not(backend, given, options):
    extremes.nothing_overflows(given, options)


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
    """1e19 / e^-50, twice, is infinite; half of the smallest noise would be 0, and is in CUDA (csrc/math.h)."""
    noise = torch.full((1, 1, 1), 1e-37 if backend == "cuda" else 1.5e-45)
    given = {"q_params": one(1e19, 0.0), "p_params": one(0.0, -100.0), "noise": noise}
    _, grads = run(normal_sample_kl, given, {"variance": VarianceMap("exp")}, {"kl_samplewise": torch.tensor([1.9])})
    assert grads["q_params"].flatten().tolist() == [math.inf, math.inf]
    assert grads["p_params"].flatten().tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
def test_a_square_beyond_the_range_is_first_scaled_by_the_gradient(backend, analytical):
    given = {"q_params": one(2.5e19, 0.0), "p_params": one(0.0, 0.0)}
    options = {"mode": True, "analytical_kl": analytical, "variance": VarianceMap("exp")}
    _, grads = run(normal_sample_kl, given, options, {"kl_samplewise": torch.tensor([0.1])})
    torch.testing.assert_close(grads["p_params"], one(-2.5e18, -0.05 * 2.5e19 * 2.5e19))


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("kind", ["exp", "logstd", "softplus", "stable"])
def test_equal_means_are_no_distance_whatever_the_std(backend, kind, analytical):
    extremes.equal_means(kind, analytical)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_values_are_read_and_written_as_they_are(backend, dtype):
    every = torch.arange(-(2**15), 2**15, 7, dtype=torch.int32).to(torch.int16).view(dtype)
    # A GPU may, and Triton's interpreter does, flush what is subnormal in float32 too.
    every = every[~(every.abs() < torch.finfo(torch.float32).tiny) | (every == 0)]
    z = normal_sample(torch.stack([every, torch.zeros_like(every)]).unsqueeze(0), mode=True).flatten()
    assert torch.equal(z.isnan(), every.isnan())
    assert torch.equal(z[~z.isnan()].view(torch.int16), every[~every.isnan()].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halfway_between_two_16_bit_values_is_rounded_to_the_even_one(backend, dtype):
    bits = torch.arange(0, torch.tensor(2.0, dtype=dtype).view(torch.int16).item(), 5, dtype=torch.int16)
    bits = bits[bits >= 2**7] if dtype == torch.bfloat16 else bits  # as above
    noise = ((bits.view(dtype).float() + (bits + 1).view(dtype).float()) / 2).view(1, 1, -1)
    parameters = torch.zeros(1, 2, noise.numel(), dtype=dtype)
    z = normal_sample(parameters, noise=noise, variance=VarianceMap("exp"))
    truncates = interpreted(backend) and dtype == torch.bfloat16
    assert torch.equal(z, oracle.truncated(noise) if truncates else noise.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nan_is_nan_in_16_bits_whatever_its_own_bits(backend, dtype):
    """Rounded like a number, the first would become -0, the second 0."""
    noise = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32).view(1, 1, 2)
    assert normal_sample(torch.zeros(1, 2, 2, dtype=dtype), noise=noise).isnan().all()


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
