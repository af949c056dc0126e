"""Arguments of `normal_sample_kl`: what is a number and a seed, and the errors that name what is wrong."""

import numpy as np
import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl
from ladder_kernels.variance import VarianceMap
from tests.inputs import packed


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
        variance=VarianceMap("stable", raw_max=np.float64(0.5)),
        window=np.int64(2),
    )
    expected = normal_sample_kl(
        q, None, noise=noise, temperature=0.5, variance=VarianceMap("stable", raw_max=0.5), window=2
    )
    assert torch.equal(step.z, expected.z)
    assert torch.equal(step.kl_samplewise_restricted, expected.kl_samplewise_restricted)


WRONG = {
    "odd channels": (ValueError, {"q_params": torch.zeros(1, 3, 4, 4)}),
    "one dim": (ValueError, {"q_params": torch.zeros(4)}),
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
    "window as a float": (TypeError, {"window": 2.0}),
    "window below zero": (ValueError, {"window": -3}),
    "window of nothing": (ValueError, {"window": 0}),
    "noise and a generator": (ValueError, {"seed": 1, "generator": torch.Generator()}),
    "temperature with a gradient": (ValueError, {"temperature": torch.tensor(1.0, requires_grad=True)}),
    "two temperatures": (ValueError, {"temperature": torch.ones(2)}),
    "temperature as a str": (TypeError, {"temperature": "1"}),
    "variance of no kind": (ValueError, {"variance": "naive"}),
    "variance as a number": (TypeError, {"variance": 1.0}),
    "tensor elsewhere": (ValueError, {"p_params": torch.zeros(2, 4, 4, 4, device="meta")}),
}


@pytest.mark.parametrize(("error", "wrong"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(error, wrong):
    call = {"q_params": torch.zeros(2, 4, 4, 4), "p_params": None, **wrong}
    with pytest.raises(
        error, match=r"^(q_params|p_params|noise|latent|z|seed|window|temperature|variance|unknown kind)"
    ):
        normal_sample_kl(**call)


def test_shape_errors_name_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 4\).*\(2, 4, 4, 4\)"):
        normal_sample_kl(torch.zeros(2, 4, 4, 4), torch.zeros(3, 4, 4, 4))
