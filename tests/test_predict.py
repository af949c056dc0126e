"""`predict_mmse` on real CAREamics models: the loop's distribution, and its very numbers with the same noise."""

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import lightning.fabric
import pytest
import torch
import torch._dynamo.testing
from careamics.lightning.prediction.lvae.lvae_prediction import lvae_predict_mmse_tiled_batch
from careamics.models.lvae import LadderVAE
from careamics.models.lvae.likelihoods import GaussianLikelihood
from torch import Tensor, nn

from ladder_kernels import ladder, noise, patch_model, predict_mmse, use_backend
from ladder_kernels.predict import CPU_PIXELS, Moments, default_batch
from tests.careamics_models import HDN, TILES, Setup

SAMPLES = 5
TILE = (32, 32)
LEVELS = 3

every_model = pytest.mark.parametrize(
    ("setup", "tile"), TILES, ids=[f"{setup.name}-{'x'.join(map(str, tile))}" for setup, tile in TILES]
)
with_and_without_patch = pytest.mark.parametrize("patched", [False, True], ids=["upstream", "patched"])


def build(setup: Setup = HDN, tile: tuple[int, ...] = TILE, patched: bool = True) -> LadderVAE:
    """A model whose batch norms have seen something, in training mode."""
    model = setup.build()
    inputs, _ = next(setup.batches())
    with torch.no_grad():
        model(inputs)
    if patched:
        patch_model(model, rng="torch")
    model.reset_for_inference(tile)
    return model.train()


def inputs_of(setup: Setup = HDN, tile: tuple[int, ...] = TILE, images: int = 1) -> Tensor:
    return torch.randn(images, setup.config["multiscale_count"], *tile, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def loop(model: nn.Module, x: Tensor, samples: int, seed: int = 0) -> Tensor:
    """Upstream's way, (samples, B, ...), image by image, with the generators that a patched model draws from."""
    model.eval()
    torch.manual_seed(seed)
    first = int(torch.randint(2**62, ()))
    images = []
    for number, image in enumerate(x):
        for sample in range(samples):
            with noise.seeded_each([first + number * samples + sample], x.device):
                images.append(without_logvar(model, model(image[None])[0]))
    return torch.cat(images).unflatten(0, (-1, samples)).transpose(0, 1)


def without_logvar(model: nn.Module, out: Tensor) -> Tensor:
    return out if model.predict_logvar is None else out.chunk(2, 1)[0]


def mmse(model: nn.Module, x: Tensor, samples: int = SAMPLES, seed: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return predict_mmse(model, x, samples, **options)


def assert_moments(found: tuple[Tensor, Tensor], samples: Tensor) -> None:
    expected = samples.double()
    torch.testing.assert_close(found[0].double(), expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1].double(), expected.std(0), rtol=1e-4, atol=1e-6)


# The numbers.


@every_model
@with_and_without_patch
def test_one_sample_at_a_time_draws_the_numbers_of_the_loop(setup: Setup, tile: tuple[int, ...], patched: bool) -> None:
    model, x = build(setup, tile, patched), inputs_of(setup, tile, images=2)
    assert_moments(mmse(model, x, batch=1), loop(model, x, SAMPLES))


@every_model
def test_a_patched_model_gives_the_same_with_any_batch_of_samples_and_tiles(
    setup: Setup, tile: tuple[int, ...]
) -> None:
    model, x = build(setup, tile), inputs_of(setup, tile, images=3)
    with use_backend("cpp"):
        found = {batch: mmse(model, x, batch=batch) for batch in (2, 3, 5, 10, 16)}
        expected = loop(model, x, SAMPLES)
    for moments in found.values():
        assert_moments(moments, expected)


@with_and_without_patch
def test_samples_in_batches_are_distributed_as_those_of_the_loop(patched: bool) -> None:
    """Mean and spread agree within Monte-Carlo error; samples that shared noise would miss the mean by far."""
    samples, x = 192, inputs_of(tile=(16, 16))
    model = build(tile=(16, 16), patched=patched)
    expected = loop(model, x, samples, seed=1)
    mean, std = mmse(model, x, samples, seed=2, batch=16)
    error = ((std.square() + expected.var(0)) / samples).sqrt()
    assert 0.7 < ((mean - expected.mean(0)) / error).square().mean() < 1.4
    assert 0.97 < std.mean() / expected.std(0).mean() < 1.03


def test_it_is_what_careamics_own_function_gives() -> None:
    setup = Setup("careamics", HDN.base)
    model, x = build(setup, patched=False), inputs_of(setup, images=1)
    torch.manual_seed(0)
    torch.randint(2**62, ())  # predict_mmse draws a seed
    (mean,), (std,), _ = lvae_predict_mmse_tiled_batch(model, GaussianLikelihood("pixelwise"), (x,), SAMPLES)
    torch.testing.assert_close(tuple(mmse(model, x, batch=1)), (mean, std), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_seed_gives_the_same_bits_again(batch: int) -> None:
    model, x = build(), inputs_of()
    first, again = (mmse(model, x, batch=batch) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], mmse(model, x, seed=1, batch=batch)[0])


def test_a_single_sample_has_no_spread() -> None:
    model, x = build(), inputs_of()
    mean, std = mmse(model, x, 1)
    torch.testing.assert_close(mean, loop(model, x, 1)[0])
    assert not std.any()


def test_moments_of_batches_are_those_of_all_even_far_from_zero() -> None:
    """Around 10 000 float32 resolves 0.001, so a difference of squares would have no digit of this spread."""
    samples = 1e4 + torch.randn(64, 3, 7)
    moments = Moments()
    for batch in samples.split([1, 10, 16, 16, 16, 5]):
        moments.add(batch)
    expected = samples.double()
    assert moments.count == 64
    torch.testing.assert_close(moments.mean.double(), expected.mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(moments.variance().sqrt().double(), expected.std(0), rtol=2e-3, atol=0)


# The work.


def test_the_bottom_up_pass_runs_once_and_samples_share_the_top_down_pass() -> None:
    model, x, images = build(), inputs_of(images=2), []
    model.first_bottom_up.register_forward_hook(lambda *_: images.append("bottom-up"))
    model.final_top_down.register_forward_hook(lambda _, __, out: images.append(out.shape[0]))
    mmse(model, x, 7, batch=3)
    assert images == ["bottom-up", 3, 3, 1] * 2
    images.clear()
    mmse(model, torch.cat([x, x[:1]]), 3, batch=7)
    assert images == ["bottom-up", 6, "bottom-up", 3]


def test_no_prediction_outlives_its_batch() -> None:
    """Which is why memory does not grow with the number of samples."""
    kept: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def output(out: Tensor) -> Tensor:
        kept.append(weakref.ref(out))
        alive.append(sum(each() is not None for each in kept))
        return out

    mmse(build(), inputs_of(), 12, batch=2, output=output)
    assert max(alive) <= 2


def test_no_feature_outlives_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor waits for a garbage collector: a GPU's memory would fill up, tile by tile."""
    kept: list[weakref.ref[Tensor]] = []

    def keep(features: Tensor) -> Tensor:
        copied = features.clone()
        kept.append(weakref.ref(copied))
        return copied

    monkeypatch.setattr(ladder, "_fast_layout", keep)
    gc.disable()
    try:
        mmse(build(), inputs_of())
        assert len(kept) == LEVELS
        assert not any(each() is not None for each in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize(("sides", "expected"), [((64, 64), 4), ((256, 256), 1), ((32, 32), 16), ((4, 64, 64), 1)])
def test_the_default_batch_holds_so_many_pixels(sides: tuple[int, ...], expected: int) -> None:
    assert default_batch(sides, torch.device("cpu")) == expected
    assert CPU_PIXELS == 4 * 64 * 64


def test_progress_is_told_after_every_batch() -> None:
    told: list[tuple[int, int]] = []
    mmse(build(), inputs_of(images=2), 5, batch=2, progress=lambda done, samples: told.append((done, samples)))
    assert told == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]


# The model.


def state_of(model: nn.Module) -> tuple[list[bool], dict[str, Any]]:
    attributes = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    return [module.training for module in model.modules()], attributes


@pytest.mark.parametrize("mode_pred", [False, True])
def test_modes_and_attributes_are_what_they_were(mode_pred: bool) -> None:
    model = build()
    model.mode_pred = mode_pred
    model.first_bottom_up.eval()
    before = state_of(model)
    mmse(model, inputs_of())
    assert state_of(model) == before
    assert not {"bottomup_pass", "topdown_pass"} & set(vars(model))


def test_modes_are_restored_after_an_exception() -> None:
    model = build()
    before = state_of(model)

    def fails(out: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        mmse(model, inputs_of(), output=fails)
    assert state_of(model) == before


def test_nothing_needs_a_gradient() -> None:
    assert not any(each.requires_grad for each in mmse(build(), inputs_of()))


@with_and_without_patch
def test_under_autocast_the_moments_are_float32(patched: bool) -> None:
    model, x = build(patched=patched), inputs_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = mmse(model, x, batch=1)
        expected = loop(model, x, SAMPLES)
    assert expected.dtype == torch.bfloat16
    assert {each.dtype for each in found} == {torch.float32}
    # bfloat16 has 8 bits; the layouts differ, and with them its roundings.
    for each, value in zip(found, (expected.float().mean(0), expected.float().std(0)), strict=True):
        assert (each - value).abs().mean() < 0.02 * expected.float().abs().mean()


def test_a_float64_model_has_float64_moments() -> None:
    model, x = build().double(), inputs_of().double()
    found = mmse(model, x, batch=1)
    assert {each.dtype for each in found} == {torch.float64}
    torch.testing.assert_close(found[0], loop(model, x, SAMPLES).mean(0), rtol=1e-11, atol=1e-12)


@with_and_without_patch
def test_a_generator_is_drawn_from_instead_of_the_default_one(patched: bool) -> None:
    model, x = build(patched=patched), inputs_of()
    state, generator = torch.get_rng_state(), torch.Generator().manual_seed(3)
    mean, _ = predict_mmse(model, x, 2, generator=generator)
    again, _ = predict_mmse(model, x, 2, generator=torch.Generator().manual_seed(3))
    other, _ = predict_mmse(model, x, 2, generator=generator)
    assert torch.equal(mean, again)
    assert not torch.equal(mean, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_share_a_model_in_training_mode() -> None:
    model, x, modes = build(), inputs_of(), []
    before, statistics = state_of(model), copy.deepcopy(model.state_dict())
    together = threading.Barrier(4)
    model.final_top_down.register_forward_hook(lambda *_: modes.extend(module.training for module in model.modules()))

    def predict_together(samples: int) -> None:
        together.wait()
        predict_mmse(model, x, samples, batch=1)

    threads = [threading.Thread(target=predict_together, args=(2 + 2 * thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(modes) == (2 + 4 + 6 + 8) * len(before[0])
    assert not any(modes)
    assert state_of(model) == before
    torch.testing.assert_close(dict(model.state_dict()), dict(statistics), rtol=0, atol=0)


def test_a_prediction_inside_of_another_leaves_the_modes_alone() -> None:
    model, x = build(), inputs_of()
    before = state_of(model)

    def output(out: Tensor) -> Tensor:
        assert not any(module.training for module in model.modules())
        mmse(model, x, 1)
        assert not any(module.training for module in model.modules())
        return out

    mmse(model, x, 2, output=output)
    assert state_of(model) == before


# What wraps a model.


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
    assert warned[0].filename == __file__
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


@pytest.mark.parametrize(("name", "options"), [("samples", {"samples": 0}), ("batch", {"samples": 1, "batch": 0})])
def test_less_than_one_is_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        predict_mmse(build(), inputs_of(), **options)
