"""patch_model on single blocks: what stays true of a patched one, and why a block is left alone."""

import copy
import functools
import inspect
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, normal_sample_kl, patch_model, unpatch_model
from ladder_kernels.variance import VarianceMap


def upstream() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(UpstreamBlock(2, 2, 2, vanilla_latent_hw=4))


def run(block: nn.Module, seed: int = 4) -> Tensor:
    features = torch.linspace(-1, 1, 2 * 2 * 4 * 4).view(2, 2, 4, 4)
    torch.manual_seed(seed)
    return block(features, features.flip(-1))[0]


# What stays true.


@pytest.mark.parametrize("model", [upstream(), nn.Sequential(nn.Conv2d(1, 2, 3))], ids=["block", "no_block"])
def test_patching_draws_no_random_number(model: nn.Module) -> None:
    before = torch.get_rng_state()
    patch_model(model)
    patch_model(model)
    unpatch_model(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_printed_report_is_fit_for_a_bug_report() -> None:
    report = patch_model(upstream(), rng="philox")
    assert report == (["0"], {})
    first, block, cpu, gpu, versions = str(report).splitlines()
    assert (first, block) == ("1 stochastic blocks run fused", "  0")
    assert re.fullmatch(r"CPU tensors: cpp, Philox noise, .*", cpu)
    assert re.fullmatch(r"GPU tensors: .*triton, Philox noise, .*", gpu)
    for name in ("ladder_kernels", "python", "platform", "torch", "triton", "careamics"):
        assert re.search(rf"(^|, ){name} \S", versions), name
    assert "torch's generator" in str(patch_model(upstream(), rng="torch")).splitlines()[2]
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


def test_a_patched_block_is_an_instance_of_its_own_class_and_of_ours() -> None:
    model = upstream()
    patch_model(model)
    assert isinstance(model[0], UpstreamBlock)
    assert isinstance(model[0], NormalStochasticBlock)
    assert type(model[0]).__name__ == "NormalStochasticBlock"
    unpatch_model(model)
    assert type(model[0]) is UpstreamBlock


def test_a_patched_block_runs_our_methods_fused() -> None:
    model, twin = upstream(), upstream()
    patch_model(model)
    for name in ("forward", "sample_from_q", "get_z", "process_q_params", "compute_kl_metrics"):
        assert getattr(type(model[0]), name) is getattr(NormalStochasticBlock, name)
    assert not model[0]._has_overrides()
    torch.testing.assert_close(run(model[0]), run(twin[0]), rtol=1e-5, atol=1e-6)


def test_blocks_of_one_class_share_one_patched_class() -> None:
    model = nn.Sequential(*upstream(), *upstream())
    patch_model(model)
    assert type(model[0]) is type(model[1])


class PlainSubclass(UpstreamBlock):
    """A user's block that changes nothing but how it is built."""

    def __init__(self) -> None:
        super().__init__(2, 2, 2, vanilla_latent_hw=4)


def test_a_subclass_that_overrides_nothing_is_patched_and_gets_its_very_class_back() -> None:
    model = nn.Sequential(PlainSubclass())
    assert patch_model(model) == (["0"], {})
    assert isinstance(model[0], PlainSubclass)
    assert type(model[0]).__name__ == "PlainSubclass"
    unpatch_model(model)
    assert type(model[0]) is PlainSubclass


def saved_and_loaded(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "old_pickle": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_patched_block_is_patched_alike(make_copy: Any) -> None:
    model = upstream()
    patch_model(model, allow_oddsizes=True)
    other = make_copy(model[0])
    assert type(other) is type(model[0])
    assert vars(other).keys() == vars(model[0]).keys()
    assert other.allow_oddsizes
    assert torch.equal(run(other), run(model[0]))
    unpatch_model(other)
    assert type(other) is UpstreamBlock
    assert isinstance(model[0], NormalStochasticBlock)


def test_a_saved_patched_block_loads_in_a_process_that_never_patched(tmp_path: Any) -> None:
    model = upstream()
    patch_model(model)
    torch.save(model, tmp_path / "model.pt")
    code = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False)[0]).__mro__)"
    command = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    lineage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ladder_kernels.block.NormalStochasticBlock" in lineage
    assert "careamics.models.lvae.stochastic.NormalStochasticBlock" in lineage


def test_a_patched_block_compiles_in_one_graph() -> None:
    model = upstream()
    patch_model(model)
    expected = run(model[0])
    torch._dynamo.reset()
    compiled = torch.compile(model[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled), expected)


# Blocks that somebody wrapped.


@pytest.fixture
def wrapped_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's forward in a wrapper that does not say what it wraps."""
    original = UpstreamBlock.forward
    monkeypatch.setattr(UpstreamBlock, "forward", lambda self, *args, **kwargs: original(self, *args, **kwargs))


@pytest.mark.usefixtures("wrapped_class")
def test_a_class_whose_forward_is_wrapped_is_patched() -> None:
    model = upstream()
    assert patch_model(model) == (["0"], {})


def wrap_forward(block: nn.Module) -> None:
    original = block.forward
    block.forward = lambda *args, **kwargs: original(*args, **kwargs)


def test_a_block_whose_own_forward_is_wrapped_is_left_alone_and_told_to_be_patched_first() -> None:
    model = upstream()
    wrap_forward(model[0])
    report = patch_model(model)
    assert report.patched == []
    assert "forward was replaced" in report.skipped["0"]
    assert "patch_model before" in report.skipped["0"]
    assert type(model[0]) is UpstreamBlock


def test_unpatching_a_block_whose_forward_was_wrapped_since_is_an_error_and_changes_nothing() -> None:
    model = nn.Sequential(*upstream(), *upstream())
    patch_model(model)
    wrap_forward(model[1])
    with pytest.raises(RuntimeError, match="the forward of '1' was replaced"):
        unpatch_model(model)
    assert all(isinstance(block, NormalStochasticBlock) for block in model)
    run(model[1])
    del model[1].forward
    assert unpatch_model(model) == ["0", "1"]


def test_a_block_with_its_own_method_on_the_instance_is_left_alone() -> None:
    model = upstream()
    model[0].get_z = functools.partial(UpstreamBlock.get_z, model[0])
    assert "get_z" in patch_model(model).skipped["0"]


# FSDP2.


@pytest.fixture
def shard() -> Iterator[Any]:
    """`fully_shard` over one process."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield functools.partial(fully_shard, mesh=init_device_mesh("cpu", (1,)))
    finally:
        distributed.destroy_process_group()


def test_a_sharded_block_is_left_alone_and_told_to_be_patched_first(shard: Any) -> None:
    model = upstream()
    shard(model[0])
    cls = type(model[0])
    report = patch_model(model)
    assert report.patched == []
    assert "patch_model before fully_shard" in report.skipped["0"]
    assert type(model[0]) is cls


def test_unpatching_a_block_that_was_sharded_since_is_an_error_and_changes_nothing(shard: Any) -> None:
    model = nn.Sequential(*upstream(), *upstream())
    patch_model(model)
    shard(model[1])
    classes = [type(block) for block in model]
    with pytest.raises(RuntimeError, match=r"'1' became a FSDPNormalStochasticBlock .* fully_shard"):
        unpatch_model(model)
    assert [type(block) for block in model] == classes


def test_a_block_patched_before_it_was_sharded_takes_new_options_and_has_upstream_numbers(shard: Any) -> None:
    model, twin = upstream(), upstream()
    patch_model(model)
    shard(model[0])
    assert patch_model(model, allow_oddsizes=True) == (["0"], {})
    assert model[0].allow_oddsizes
    torch.testing.assert_close(run(model[0]), run(twin[0]), rtol=1e-5, atol=1e-6)


def test_a_block_inside_a_sharded_model_that_kept_its_class_is_patched_and_unpatched(shard: Any) -> None:
    class Model(nn.Sequential):
        def forward(self, seed: int) -> Tensor:
            return run(self[0], seed)

    model, twin = Model(*upstream()), upstream()
    shard(model)
    assert patch_model(model) == (["0"], {})
    out = model(4)
    torch.testing.assert_close(out, run(twin[0]), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert unpatch_model(model) == ["0"]
    torch.testing.assert_close(model(4), out)


# Blocks of other libraries, by the names and arguments that theirs have.


class Convolutions(nn.Module):
    """The attributes that they all share."""

    def __init__(self, c_in: int = 2, c_vars: int = 2, c_out: int = 2) -> None:
        super().__init__()
        self.transform_p_params = True
        self.c_in, self.c_vars, self.c_out = c_in, c_vars, c_out
        self.conv_in_p, self.conv_in_q = (nn.Conv2d(c_in, 2 * c_vars, 3, padding=1) for _ in "pq")
        self.conv_out = nn.Conv2d(c_vars, c_out, 3, padding=1)


def ladder_vae_pytorch() -> nn.Module:
    class NormalStochasticBlock2d(Convolutions):
        def forward(
            self,
            p_params,
            q_params=None,
            forced_latent=None,
            use_mode=False,
            force_constant_output=False,
            analytical_kl=False,
        ): ...

    return NormalStochasticBlock2d()


def hdn() -> nn.Module:
    class NormalStochasticBlock2d(Convolutions):
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
        ): ...

    return NormalStochasticBlock2d()


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


def usplit_mean() -> nn.Module:
    class NonStochasticBlock2d(Stages):
        pass

    return NonStochasticBlock2d()


def cosdd() -> nn.Module:
    class NormalStochasticBlock(Convolutions):
        def forward(self, p_params, q_params=None, forced_latent=None, use_mode=False, force_constant_output=False): ...

    return NormalStochasticBlock()


def of_nobody() -> nn.Module:
    class LatentLayer(Convolutions):
        def forward(self, p_params, q_params=None): ...

    return LatentLayer()


def by_its_name() -> nn.Module:
    class MyStochasticBlock(nn.Module):
        def forward(self, features): ...

    return MyStochasticBlock()


OTHERS = {
    ladder_vae_pytorch: "VarianceMap.hdn()",
    hdn: "VarianceMap.hdn()",
    usplit: "VarianceMap.careamics(",
    denoisplit: "VarianceMap.careamics(",
    usplit_mean: "nothing to fuse",
    cosdd: "VarianceMap.cosdd()",
    of_nobody: "normal_sample_kl",
    by_its_name: "normal_sample_kl",
}


@pytest.mark.parametrize(("build", "said"), OTHERS.items(), ids=[build.__name__ for build in OTHERS])
def test_a_block_of_another_library_is_left_alone_with_what_to_use_instead(build: Any, said: str) -> None:
    block = build()
    cls = type(block)
    report = patch_model(nn.Sequential(block))
    assert report.patched == []
    assert said in report.skipped["0"]
    assert type(block) is cls


def test_what_a_report_tells_to_use_can_be_called() -> None:
    reasons = patch_model(nn.Sequential(*(build() for build in OTHERS))).skipped
    told = {name for reason in reasons.values() for name in re.findall(r"(\w+)=", reason)}
    assert told >= {"variance", "raw_max", "analytical_kl"}
    known = [inspect.signature(function).parameters for function in (normal_sample_kl, VarianceMap)]
    assert told <= set().union(*known)


def test_interleaved_softplus_parameters_give_their_kl_in_the_way_that_the_report_tells() -> None:
    q, p = torch.randn(2, 2, 6, 4, 4)
    normals = [torch.distributions.Normal(x[:, 0::2], F.softplus(x[:, 1::2])) for x in (q, p)]
    q, p = (torch.cat([x[:, 0::2], x[:, 1::2]], 1) for x in (q, p))
    kl = normal_sample_kl(q, p, variance=VarianceMap.cosdd(), analytical_kl=True).kl_samplewise
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(*normals).flatten(1).sum(1))


def test_a_compiled_block_of_another_library_is_named_once() -> None:
    assert list(patch_model(nn.Sequential(torch.compile(hdn()))).skipped) == ["0._orig_mod"]


@pytest.mark.parametrize("wrong", [{"rng": "numpy"}, {"typo": 1}], ids=["value", "name"])
def test_check_options_raises_as_set_options_does(wrong: dict[str, Any]) -> None:
    block = NormalStochasticBlock(2, 2, 2)
    for check in (NormalStochasticBlock.check_options, block.set_options):
        with pytest.raises((TypeError, ValueError), match=r"rng|typo"):
            check(**wrong)
