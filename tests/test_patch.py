"""patch_model on single blocks: what stays true of a patched one, and why a block is left alone."""

import copy
import functools
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, patch_model, unpatch_model


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
    assert report.patched == ["0"]
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
    assert patch_model(model).patched == ["0"]
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
    assert patch_model(model).patched == ["0"]


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
    assert patch_model(model, allow_oddsizes=True).patched == ["0"]
    assert model[0].allow_oddsizes
    torch.testing.assert_close(run(model[0]), run(twin[0]), rtol=1e-5, atol=1e-6)


def test_a_block_inside_a_sharded_model_that_kept_its_class_is_patched_and_unpatched(shard: Any) -> None:
    class Model(nn.Sequential):
        def forward(self, seed: int) -> Tensor:
            return run(self[0], seed)

    model, twin = Model(*upstream()), upstream()
    shard(model)
    assert patch_model(model).patched == ["0"]
    out = model(4)
    torch.testing.assert_close(out, run(twin[0]), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert unpatch_model(model) == ["0"]
    torch.testing.assert_close(model(4), out)


@pytest.mark.parametrize("wrong", [{"rng": "numpy"}, {"typo": 1}], ids=["value", "name"])
def test_a_wrong_option_of_a_block_is_refused(wrong: dict[str, Any]) -> None:
    block = NormalStochasticBlock(2, 2, 2)
    with pytest.raises((TypeError, ValueError), match=r"rng|typo"):
        block.set_options(**wrong)


def test_options_that_are_not_given_stay_as_they_are() -> None:
    block = NormalStochasticBlock(2, 2, 2, allow_oddsizes=True, validate_args=True)
    block.set_options(rng="philox")
    assert (block.allow_oddsizes, block.rng, block.validate_args) == (True, "philox", True)
    model = upstream()
    patch_model(model, rng="philox")
    patch_model(model, allow_oddsizes=True)
    assert (model[0].allow_oddsizes, model[0].rng, model[0].validate_args) == (True, "philox", False)
