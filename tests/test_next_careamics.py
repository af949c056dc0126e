"""CAREamics' block as its next version has it: `forward` and `compute_kl_metrics` without `analytical_kl`."""

import inspect
from typing import Any

import pytest
import torch
from careamics.models.lvae import stochastic
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, patch_model

EDITS = {
    "        analytical_kl: bool,\n": "",
    "        analytical_kl: bool = False,\n": "",
    "            if analytical_kl:\n": "            if False:\n",
    "mode_pred, analytical_kl, z\n": "mode_pred, z\n",
}


def next_block() -> type:
    """The class of that version: today's source without the argument."""
    source = inspect.getsource(stochastic.NormalStochasticBlock)
    for old, new in EDITS.items():
        assert old in source
        source = source.replace(old, new)
    namespace = dict(vars(stochastic))
    exec(source, namespace)
    return namespace["NormalStochasticBlock"]


NextBlock = next_block()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(NextBlock(4, 3, 4, vanilla_latent_hw=4))


def run(block: nn.Module, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 3, 4, 8, 8, generator=generator)
    torch.manual_seed(2)
    return block(p_params=p, q_params=q, var_clip_max=20.0, **options)


def test_the_class_has_no_such_argument() -> None:
    for method in (NextBlock.forward, NextBlock.compute_kl_metrics):
        assert "analytical_kl" not in inspect.signature(method).parameters


@pytest.mark.parametrize("mode_pred", [False, True])
def test_a_patched_block_has_its_numbers(mode_pred: bool) -> None:
    ours, upstream = model(), model()
    assert patch_model(ours, rng="torch") == (["0"], {})
    (out, data), (expected_out, expected) = run(ours[0], mode_pred=mode_pred), run(upstream[0], mode_pred=mode_pred)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-6)
    assert list(data) == list(expected)
    for key in ("z", "kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "kl_channelwise"):
        torch.testing.assert_close(data[key], expected[key], rtol=1e-4, atol=1e-5)


def metrics_of(block: nn.Module, *analytical_kl: bool, by_name: bool = False) -> dict[str, Tensor]:
    p_features, q_features = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    *p_params, p = block.process_p_params(p_features, 20.0)
    *q_params, q = block.process_q_params(q_features, 20.0)
    z = q.mean + 0.3 * q.stddev
    last = {"z": z} if by_name else {}
    return block.compute_kl_metrics(
        p, tuple(p_params), q, tuple(q_params), False, *analytical_kl, *[z][by_name:], **last
    )


@pytest.mark.parametrize("by_name", [False, True])
def test_the_metrics_can_be_asked_for_in_either_form(by_name: bool) -> None:
    upstream = model()[0]
    ours = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=4)
    ours.load_state_dict(upstream.state_dict())
    expected = metrics_of(upstream, by_name=by_name)
    for found in (metrics_of(ours, by_name=by_name), metrics_of(ours, False, by_name=by_name)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    analytic = metrics_of(ours, True, by_name=by_name)["kl_samplewise"]
    assert not torch.allclose(analytic, expected["kl_samplewise"], rtol=1e-2)
