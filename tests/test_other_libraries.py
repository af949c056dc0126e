"""patch_model on blocks of other libraries, by the names and arguments that theirs have: a page tells what to use."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ladder_kernels import normal_sample_kl, patch_model
from ladder_kernels.variance import VarianceMap


class Convolutions(nn.Module):
    """The attributes that they all share."""

    def __init__(self, c_in: int = 2, c_vars: int = 2, c_out: int = 2) -> None:
        super().__init__()
        self.transform_p_params = True
        self.c_in, self.c_vars, self.c_out = c_in, c_vars, c_out
        self.conv_in_p, self.conv_in_q = (nn.Conv2d(c_in, 2 * c_vars, 3, padding=1) for _ in "pq")
        self.conv_out = nn.Conv2d(c_vars, c_out, 3, padding=1)


class Stages(Convolutions):
    """Of uSplit and what came of it."""

    def process_p_params(self, p_params, var_clip_max): ...

    def process_q_params(self, q_params, var_clip_max, allow_oddsizes=False): ...

    def compute_kl_metrics(self, p, p_params, q, q_params, mode_pred, analytical_kl, z): ...

    def forward(
        self,
        p_params,
        q_params=None,
        forced_latent=None,
        use_mode=False,
        force_constant_output=False,
        analytical_kl=False,
        mode_pred=False,
        use_uncond_mode=False,
        var_clip_max=None,
    ): ...


def usplit() -> nn.Module:
    class NormalStochasticBlock2d(Stages):
        def get_z(self, sampling_distrib, forced_latent, use_mode, mode_pred, use_uncond_mode): ...

        def sample_from_q(self, q_params, var_clip_max): ...

    return NormalStochasticBlock2d()


def denoisplit() -> nn.Module:
    block = usplit()
    block._use_naive_exponential = False
    return block


def hdn() -> nn.Module:
    class NormalStochasticBlock2d(Convolutions):
        def forward(self, p_params, q_params=None, forced_latent=None, use_mode=False, analytical_kl=False): ...

    return NormalStochasticBlock2d()


def of_nobody() -> nn.Module:
    class LatentLayer(Convolutions):
        def forward(self, p_params, q_params=None): ...

    return LatentLayer()


def by_its_name() -> nn.Module:
    class MyStochasticBlock(nn.Module):
        def forward(self, features): ...

    return MyStochasticBlock()


@pytest.mark.parametrize("build", [usplit, denoisplit, hdn, of_nobody, by_its_name])
def test_a_block_of_another_library_is_left_alone_and_told_where_to_look(build: Any) -> None:
    block = build()
    cls = type(block)
    report = patch_model(nn.Sequential(block))
    assert report.patched == []
    assert "normal_sample_kl" in report.skipped["0"]
    assert "docs/other_models.md" in report.skipped["0"]
    assert type(block) is cls


def test_what_the_page_tells_to_use_can_be_called() -> None:
    page = (Path(__file__).parents[1] / "docs" / "other_models.md").read_text()
    told = {name for code in re.findall("`([^`]*)`", page) for name in re.findall(r"(\w+)=", code)}
    assert told >= {"variance", "raw_max", "analytical_kl"}
    known = [inspect.signature(function).parameters for function in (normal_sample_kl, VarianceMap)]
    assert told <= set().union(*known)
    for code in re.findall(r"VarianceMap\.\w+\([^`()]*\)", page):
        assert isinstance(eval(code, {"VarianceMap": VarianceMap, "var_clip_max": 20.0}), VarianceMap), code


def test_interleaved_softplus_parameters_give_their_kl_in_the_way_that_the_page_tells() -> None:
    q, p = torch.randn(2, 2, 6, 4, 4)
    normals = [torch.distributions.Normal(x[:, 0::2], F.softplus(x[:, 1::2])) for x in (q, p)]
    q, p = (torch.cat([x[:, 0::2], x[:, 1::2]], 1) for x in (q, p))
    kl = normal_sample_kl(q, p, variance=VarianceMap.cosdd(), analytical_kl=True).kl_samplewise
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(*normals).flatten(1).sum(1))


def test_a_compiled_block_of_another_library_is_named_once() -> None:
    assert list(patch_model(nn.Sequential(torch.compile(hdn()))).skipped) == ["0._orig_mod"]
