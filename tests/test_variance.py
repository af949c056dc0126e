"""`VarianceMap`: what it refuses, and that both clamps hold on every backend."""

import pickle

import numpy as np
import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl
from ladder_kernels.variance import KINDS, VarianceMap
from tests import oracle
from tests.against_oracle import check
from tests.conftest import interpreted
from tests.inputs import options, tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [(None, None), (-0.5, None), (None, 0.5), (-0.5, 0.5), (0.25, 0.25)], ids=str)
@pytest.mark.parametrize("analytic", [False, True], ids=["mc", "analytic"])
def test_both_clamps_on_every_kind(backend, kind, bounds, analytic):
    variance = VarianceMap(kind, raw_min=bounds[0], raw_max=bounds[1])
    check(tensors((3, 4, 9), "noise"), options("noise", analytical_kl=analytic, variance=variance))


# With fields of which none is the default.
OTHER_FIELDS = {
    "stable": VarianceMap("stable", raw_min=-1.5, raw_max=1.5, floor=0.1),
    "softplus": VarianceMap("softplus", raw_min=-1.5, raw_max=1.5, beta=1.7, floor=0.3),
    "softplus without a floor": VarianceMap("softplus", raw_min=-1.5, raw_max=1.5, beta=0.6),
    "stable without a floor": VarianceMap("stable", raw_min=-1.5, raw_max=1.5, floor=0.0),
}


# A clamp that leaves out 0, and a floor or a beta that is not the default, are none of N(0, I).
@pytest.mark.parametrize(
    "variance",
    [*(VarianceMap(kind, raw_min=0.25, raw_max=0.5) for kind in KINDS), *OTHER_FIELDS.values()],
    ids=lambda variance: variance.kind,
)
@pytest.mark.parametrize("analytic", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_absent_p_is_a_standard_normal(backend, variance, analytic, dtype):
    # 16 columns are whole vectors of the CUDA kernels, whose other path float64 takes.
    given = tensors((2, 4, 16), "noise", dtype, prior="standard")
    check(given, options("noise", analytical_kl=analytic, variance=variance))


@pytest.mark.parametrize("variance", OTHER_FIELDS.values(), ids=OTHER_FIELDS)
@pytest.mark.parametrize("analytic", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("source", ["noise", "latent", "mode"])
def test_every_field_counts(backend, variance, analytic, source):
    check(tensors((2, 4, 16), source), options(source, analytical_kl=analytic, variance=variance))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("analytic", [False, True], ids=["mc", "analytic"])
def test_16_bit_parameters_of_every_kind(backend, kind, dtype, analytic):
    given = tensors((2, 4, 16), "noise", dtype)
    check(given, options("noise", analytical_kl=analytic, variance=VarianceMap(kind)), truncates=interpreted(backend))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_passes_inside_the_clamp_and_at_it(backend, kind, dtype):
    # The bounds have no float32 value: float64 must be compared in float64.
    low, high = -0.1, 0.1
    inside = [low, 0.0, high] if dtype == torch.float64 else [-0.09, 0.0, 0.09]
    beyond = [low - 1e-9, high + 1e-9] if dtype == torch.float64 else [-0.11, 0.11]
    raw = torch.tensor([*inside, *beyond], dtype=dtype)
    q = torch.stack([torch.zeros_like(raw), raw]).unsqueeze(0).requires_grad_()
    step = normal_sample_kl(q, None, mode=True, variance=VarianceMap(kind, raw_min=low, raw_max=high))
    step.logprob_q.sum().backward()
    assert (q.grad[0, 1] != 0).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan_and_the_largest_value_is_clamped(backend, kind):
    variance = VarianceMap(kind, raw_min=-1.0, raw_max=1.0)
    raw = torch.tensor([-5.0, torch.nan, 5.0])
    q = torch.stack([torch.zeros(3), raw]).unsqueeze(0)
    z = normal_sample(q, noise=torch.ones(1, 1, 3), variance=variance)
    expected = oracle.std(torch.tensor([-1.0, torch.nan, 1.0]), variance)
    torch.testing.assert_close(z.flatten(), expected, equal_nan=True)
    assert normal_sample_kl(q, None, mode=True, variance=variance).logvar_max.isnan()
    finite = normal_sample_kl(q[..., ::2], None, mode=True, variance=variance)
    torch.testing.assert_close(finite.logvar_max, 2 * expected[2].log())


def test_a_map_is_a_value():
    one, same = VarianceMap("exp", raw_max=2.0), VarianceMap("exp", raw_max=2.0)
    assert one == same
    assert hash(one) == hash(same)
    assert eval(repr(one)) == one  # our own text
    assert pickle.loads(pickle.dumps(one)) == one
    assert VarianceMap("stable").floor == 1e-6
    assert VarianceMap.diffusers() == VarianceMap("exp", raw_min=-30.0, raw_max=20.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "log"}, "'log'; there are stable, exp, logstd, softplus"),
        ({"kind": "exp", "floor": 1e-3}, "'exp' has no floor, got 0.001"),
        ({"kind": "logstd", "beta": 2.0}, "'logstd' has no beta, got 2.0"),
        ({"kind": "stable", "floor": -1.0}, "the floor must be 0, or finite and at least 1.2e-38, got -1.0"),
        ({"kind": "stable", "floor": 1e-42}, "the floor must be 0, or finite and at least 1.2e-38, got 1e-42"),
        ({"kind": "softplus", "floor": np.inf}, "the floor must be 0, or finite and at least 1.2e-38, got inf"),
        ({"kind": "softplus", "beta": 0.0}, "beta must be finite and positive, got 0.0"),
        ({"kind": "exp", "raw_min": 1.0, "raw_max": 0.0}, "1.0 and 0.0"),
    ],
)
def test_what_is_no_map_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        VarianceMap(**arguments)


@pytest.mark.parametrize("bound", ["20", torch.tensor(20.0), [20.0]], ids=str)
def test_a_bound_is_a_number(bound):
    with pytest.raises(TypeError, match=r"raw_max must be a number or None, got \w+"):
        VarianceMap("stable", raw_max=bound)
    assert VarianceMap("stable", raw_max=np.float32(20.0)) == VarianceMap("stable", raw_max=20.0)
