"""`predict_mmse` on real CAREamics models: the loop's distribution, and its very numbers with the same noise."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch._dynamo.testing
from careamics.lightning.prediction.lvae.lvae_prediction import lvae_predict_mmse_tiled_batch
from careamics.models.lvae.likelihoods import GaussianLikelihood
from torch import Tensor, nn

from ladder_kernels import ladder, predict_mmse, use_backend
from ladder_kernels.predict import CPU_PIXELS, Moments, default_batch
from tests.careamics_models import HDN, TILES, Setup
from tests.predictions import (
    LEVELS,
    SAMPLES,
    assert_moments,
    build,
    inputs_of,
    loop,
    mmse,
    state_of,
)

every_model = pytest.mark.parametrize(
    ("setup", "tile"), TILES, ids=[f"{setup.name}-{'x'.join(map(str, tile))}" for setup, tile in TILES]
)
with_and_without_patch = pytest.mark.parametrize("patched", [False, True], ids=["upstream", "patched"])


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


@pytest.mark.filterwarnings("ignore:every prediction is a whole one")
def test_a_prediction_ends_before_the_next_begins() -> None:
    """Its latents would lie beside the next one's, and the peak of memory be twice as high."""
    alive: list[weakref.ref[Tensor]] = []

    class WithLatents(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            assert all(each() is None for each in alive)
            latents = x + 1
            alive.append(weakref.ref(latents))
            return x, latents

    mmse(WithLatents(), inputs_of(images=3), 3, batch=1)
    assert len(alive) == 9


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


@pytest.mark.parametrize(("name", "options"), [("samples", {"samples": 0}), ("batch", {"samples": 1, "batch": 0})])
def test_less_than_one_is_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        predict_mmse(build(), inputs_of(), **options)
