"""patch_model on a whole model: what it touches, what it reports and leaves alone, and what it leaves behind."""

import copy
import io
from typing import Any

import pytest
import torch
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, patch_model, unpatch_model
from tests.careamics_models import HDN, assert_bitwise_equal, blocks, forward, is_upstream, patched, runs_fused


def test_patch_model_names_every_block() -> None:
    model = HDN.build()
    report = patch_model(model)
    assert report.patched == [f"top_down_layers.{level}.stochastic" for level in range(3)]
    assert report.skipped == {}
    assert runs_fused(model)


def test_patching_again_patches_the_same_blocks_and_unpatching_once_restores_them() -> None:
    model = HDN.build()
    assert patch_model(model) == patch_model(model)
    assert unpatch_model(model) == [f"top_down_layers.{level}.stochastic" for level in range(3)]
    assert is_upstream(model)
    assert unpatch_model(model) == []


def test_unpatch_model_leaves_no_attribute_and_upstream_behaviour_to_the_bit() -> None:
    model, twin = HDN.build(), HDN.build()
    patched(model, allow_oddsizes=True, rng="philox", validate_args=True)
    patch_model(model)
    unpatch_model(model)
    assert [list(vars(block)) for block in blocks(model).values()] == [list(vars(b)) for b in blocks(twin).values()]
    assert is_upstream(model)
    assert_bitwise_equal(forward(model), forward(twin))


def test_another_model_of_the_same_class_stays_upstream() -> None:
    model, other = HDN.build(), HDN.build()
    expected = forward(copy.deepcopy(other))
    patched(model)
    assert is_upstream(other)
    assert is_upstream(HDN.build())
    assert_bitwise_equal(forward(other), expected)


@pytest.mark.parametrize("through_a_file", [False, True], ids=["deepcopy", "torch.save"])
def test_a_copy_of_a_patched_model_is_patched_and_independent(through_a_file: bool) -> None:
    # Upstream itself cannot copy a model with lateral context, nor any after reset_for_inference: it keeps generators.
    model = patched(HDN.build(), rng="philox")
    if through_a_file:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(model)
    assert runs_fused(other)
    assert_bitwise_equal(forward(other), forward(model))
    unpatch_model(other)
    assert is_upstream(other)
    assert runs_fused(model)


def test_hooks_registered_before_patching_still_fire() -> None:
    model, fired = HDN.build(), []
    for name, block in blocks(model).items():
        block.register_forward_pre_hook(lambda *_, name=name: fired.append(("before", name)))
        block.register_forward_hook(lambda *_, name=name: fired.append(("after", name)))
    forward(patched(model))
    assert fired == [(when, name) for name in reversed(blocks(model)) for when in ("before", "after")]


class ModeBlock(UpstreamBlock):
    """A user's block that always takes the mean."""

    def get_z(self, sampling_distrib: Any, *args: Any, **kwargs: Any) -> Tensor:
        return sampling_distrib.mean


def test_a_block_with_its_own_get_z_is_reported_and_left_alone() -> None:
    model = HDN.build()
    special = model.top_down_layers[1].stochastic
    special.__class__ = ModeBlock
    attributes = list(vars(special))
    report = patch_model(model)
    assert report.patched == ["top_down_layers.0.stochastic", "top_down_layers.2.stochastic"]
    assert list(report.skipped) == ["top_down_layers.1.stochastic"]
    assert "get_z" in report.skipped["top_down_layers.1.stochastic"]
    assert type(special) is ModeBlock
    assert list(vars(special)) == attributes
    _, data = forward(model)
    assert torch.equal(data["z"][1], data["q_mu"][1].get())
    assert not torch.equal(data["z"][0], data["q_mu"][0].get())


class DescribedBlock(UpstreamBlock):
    """A user's block with a method of its own."""

    def describe(self) -> str:
        return "mine"


def test_a_block_with_a_method_of_its_own_is_left_alone() -> None:
    model = HDN.build()
    model.top_down_layers[0].stochastic.__class__ = DescribedBlock
    report = patch_model(model)
    assert "describe" in report.skipped["top_down_layers.0.stochastic"]
    assert model.top_down_layers[0].stochastic.describe() == "mine"


def test_a_compiled_block_is_patched_inside_its_wrapper() -> None:
    model = HDN.build()
    layer = model.top_down_layers[0]
    layer.stochastic = torch.compile(layer.stochastic, backend="eager")
    report = patch_model(model)
    assert report.skipped == {}
    assert "top_down_layers.0.stochastic._orig_mod" in report.patched
    assert len(report.patched) == 3


def test_a_wrong_option_is_an_error_and_changes_nothing() -> None:
    model = HDN.build()
    for wrong in ({"rng": "numpy"}, {"typo": 1}):
        with pytest.raises((TypeError, ValueError), match=r"rng|typo"):
            patch_model(model, **wrong)
        assert is_upstream(model)
        assert unpatch_model(model) == []


def test_our_own_blocks_keep_their_options() -> None:
    own = NormalStochasticBlock(2, 2, 2, allow_oddsizes=True, rng="philox")
    assert patch_model(nn.Sequential(own)).patched == []
    assert (own.allow_oddsizes, own.rng) == (True, "philox")


def test_a_model_without_stochastic_blocks_gives_an_empty_report() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ELU())
    assert patch_model(model).patched == []
    assert unpatch_model(model) == []


def test_options_reach_every_block_and_stay_until_another_is_given() -> None:
    model = HDN.build()
    for allow_oddsizes, rng in ((True, "philox"), (False, "torch")):
        patch_model(model, allow_oddsizes=allow_oddsizes, rng=rng)
        assert {(block.allow_oddsizes, block.rng) for block in blocks(model).values()} == {(allow_oddsizes, rng)}
    patch_model(model)
    assert {(block.allow_oddsizes, block.rng) for block in blocks(model).values()} == {(False, "torch")}
