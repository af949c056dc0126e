"""`predict_mmse` of models in wrappers, of compiled ones, and of what is no LadderVAE."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import lightning.fabric
import pytest
import torch
import torch._dynamo.testing
from careamics.models.lvae import LadderVAE
from torch import Tensor, nn

from ladder_kernels import noise
from tests.careamics_models import HDN
from tests.predictions import SAMPLES, assert_moments, build, inputs_of, loop, mmse, state_of


class Wrapped(nn.Module):
    """As a Lightning module has its model, under a name of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.anything = model

    def forward(self, x: Tensor) -> Any:
        raise AssertionError("its forward may do more than predict")


class PassThrough(nn.Module):
    """Shows attributes of the model as its own, and sets them there, as Lightning Fabric's wrapper does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, x: Tensor) -> Any:
        return self.wrapped(x)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "wrapped" in self.__dict__.get("_modules", {}):
            setattr(self.wrapped, name, value)
        super().__setattr__(name, value)


def set_up_by_fabric(model: nn.Module) -> nn.Module:
    return lightning.fabric.Fabric(accelerator="cpu", devices=1).setup(model)


def with_a_bound_forward(model: nn.Module) -> nn.Module:
    """As mixed precision is prepared for."""
    forward = type(model).forward

    @functools.wraps(forward)
    def in_float32(self: nn.Module, x: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return forward(self, x)

    model.forward = MethodType(in_float32, model)
    return model


def with_an_offloading_hook(model: nn.Module) -> nn.Module:
    """As a hook that brings the weights is put around a forward, here and in every module."""

    def hooked(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module._forward_before(*args, **kwargs)

    for module in list(model.modules()):
        module._forward_before = module.forward
        module.forward = functools.partial(hooked, module)
    return model


def with_an_adapter(model: nn.Module) -> nn.Module:
    """As fine-tuning puts one around a layer, inside of two modules of its own."""
    model.output_layer = nn.Sequential(model.output_layer, nn.Identity())
    return Wrapped(PassThrough(model))


WRAPPERS = (
    Wrapped,
    PassThrough,
    set_up_by_fabric,
    nn.Sequential,
    with_a_bound_forward,
    with_an_offloading_hook,
    with_an_adapter,
)


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_what_wraps_a_model_changes_neither_the_numbers_nor_the_work(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x, passes = build(), inputs_of(), []
    expected = loop(model, x, SAMPLES)
    wrapped = wrap(model.train())
    model.first_bottom_up.register_forward_hook(lambda *_: passes.append("bottom-up"))
    before = state_of(wrapped), state_of(model)
    assert_moments(mmse(wrapped, x, batch=1), expected)
    assert passes == ["bottom-up"]
    assert (state_of(wrapped), state_of(model)) == before
    torch.testing.assert_close(loop(model, x, SAMPLES), expected, rtol=1e-5, atol=1e-6)


def with_a_forward_of_the_original(model: nn.Module) -> nn.Module:
    """A closure knows the model itself, so nothing can stand in for it."""
    forward = model.forward
    model.forward = lambda x: forward(x)
    return model


def test_a_forward_that_cannot_be_shared_is_said_once_and_costs_no_pass_more() -> None:
    model, x, passes = with_a_forward_of_the_original(build()), inputs_of(), []
    expected = loop(model, x, SAMPLES)
    model.train().first_bottom_up.register_forward_hook(lambda *_: passes.append("bottom-up"))
    with pytest.warns(UserWarning, match="the forward of LadderVAE does not use its bottomup_pass") as warned:
        found = mmse(model, x, batch=1)
    assert len(warned) == 1
    assert warned[0].filename == mmse.__code__.co_filename  # who calls predict_mmse
    assert len(passes) == SAMPLES
    assert_moments(found, expected)


def test_of_several_models_none_is_chosen() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = build(), build()

        def forward(self, x: Tensor) -> Tensor:
            return (self.first(x)[0] + self.second(x)[0]) / 2

    model, x = Ensemble(), inputs_of()
    with pytest.warns(UserWarning, match=r"Ensemble has several LadderVAEs \(first, second\)"):
        mean, _ = mmse(model, x, 1)
    torch.manual_seed(0)
    with noise.seeded_each([int(torch.randint(2**62, ()))], x.device):
        torch.testing.assert_close(mean, model.eval()(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_keeps_its_numbers_and_runs_compiled(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is tested is that the right thing is compiled, not Inductor, which takes a minute.
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    model, x = build(), inputs_of()
    expected = loop(model, x, SAMPLES)
    if in_place:
        model.compile(backend="eager")
    wrapped = model if in_place else torch.compile(model, backend="eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    assert_moments(mmse(wrapped, x, batch=1), expected)
    assert counter.frame_count == 1
    mmse(wrapped, x, batch=1)
    assert counter.frame_count == 1


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x + torch.randn_like(x)


class OwnForward(LadderVAE):
    """Has both passes and uses neither."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return 2 * x, {}


def test_any_other_model_is_called_so_many_times() -> None:
    model, x = Plain(), inputs_of()
    torch.manual_seed(0)
    torch.randint(2**62, ())  # predict_mmse draws a seed
    expected = torch.stack([x + torch.randn_like(x) for _ in range(SAMPLES)])
    with pytest.warns(UserWarning, match="Plain has no LadderVAE") as warned:
        assert_moments(mmse(model, x), expected)
    assert len(warned) == 1
    assert model.training


def test_a_forward_that_uses_neither_pass_is_honoured() -> None:
    x = inputs_of()
    with pytest.warns(UserWarning, match="the forward of OwnForward does not use its bottomup_pass and topdown_pass"):
        mean, std = mmse(OwnForward(**HDN.config), x)
    torch.testing.assert_close(mean, 2 * x)
    assert not std.any()
