"""`predict_mmse` of whole images: tiles, seams, sizes, lateral context, statistics, arrays; and what it refuses."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from careamics.models.lvae import LadderVAE
from torch import Tensor, nn

from ladder_kernels import images, patch_model, predict_mmse, unpatch_model
from ladder_kernels.ladder import misfit, multiples
from ladder_kernels.tiles import cut_with_context
from tests.careamics_models import SETUPS, TINY, TINY_HDN, Setup, train

IMAGE = (90, 70)  # its sides are no multiples of anything the models take


def build(setup: Setup = TINY_HDN, **options: Any) -> LadderVAE:
    model = setup.build()
    inputs, _ = next(setup.batches())
    with torch.no_grad():
        model(inputs)
    patch_model(model, rng="torch", **options)
    return model


def picture(*sizes: int, images: int = 1) -> Tensor:
    return torch.randn(images, 1, *(sizes or IMAGE), generator=torch.Generator().manual_seed(5))


def mmse(model: nn.Module, image: Any, samples: int = 2, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return predict_mmse(model, image, samples, **options)


# Tiles.


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_an_image_in_tiles_is_the_same_with_any_batch(batch: int) -> None:
    model, image = build(), picture(images=2)
    expected = mmse(model, image, 3, tile=32)
    assert {each.shape for each in expected} == {(2, 1, *IMAGE)}
    torch.testing.assert_close(mmse(model, image, 3, tile=32, batch=batch), expected, rtol=1e-4, atol=1e-5)


def test_an_image_of_a_tiles_size_is_predicted_as_the_tile() -> None:
    model, image = build(), picture(32, 32)
    whole, tile = mmse(model, image), mmse(model, image, tile=32)
    torch.testing.assert_close(whole, tile, rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "sides"), [((64, 256), (64, 256)), ((65, 256), (16, 256)), ((16, 1030), (16, 256))])
def test_by_default_small_images_are_whole_and_others_in_tiles(
    sizes: tuple[int, ...], sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(images.TILES, 2, (16, 1024))
    model, image = build(), picture(*sizes)
    plan = images.plan(image, model, None, None)
    assert plan.sides == (sides if sizes != (16, 1030) else (16, 1024))


def test_memory_does_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees a tile at a time, and no feature of an earlier one is kept: nothing but the result is larger."""
    model, seen = build(), []
    model.first_bottom_up.register_forward_hook(lambda _, x, __: seen.append(tuple(x[0].shape)))
    mmse(model, picture(200, 70), tile=32, batch=4)
    assert set(seen) <= {(2, 1, 32, 32), (1, 1, 32, 32)}


class Patchy(nn.Module):
    """Of every tile it gives a level and a spread of its own, the same all over the tile."""

    def forward(self, x: Tensor) -> Tensor:
        level, spread = x.mean().item() * 100, 1 + abs(x.std().item() * 100 % 1)
        return torch.full_like(x, level) + spread * torch.randn(())


@pytest.mark.filterwarnings("ignore:every prediction is a whole one")
@pytest.mark.parametrize("which", [0, 1], ids=["mean", "std"])
def test_no_seam_shows_however_much_tiles_differ(which: int) -> None:
    """No step between neighbouring pixels is larger than that of the cosine between the two tiles that differ most."""
    image, overlap = picture(320, 192), 32
    blended, cut = (mmse(Patchy(), image, 8, tile=64, overlap=each)[which] for each in (overlap, 0))
    difference = (cut.max() - cut.min()).item()
    for dim in (2, 3):
        assert cut.diff(dim=dim).abs().max() > 0.2 * difference
        assert blended.diff(dim=dim).abs().max() < 2 * difference * np.pi / 2 / overlap


def test_the_tiles_of_a_model_show_no_seam() -> None:
    """At their borders neighbouring pixels differ as in the image predicted whole."""
    model = build()
    train(model, TINY_HDN, steps=5)
    image = torch.nn.functional.avg_pool2d(picture(300, 300), 5, stride=1, padding=2) * 3
    starts = [tile.starts[1] for tile in images.plan(image, model, 64, 32).tiles][1:9]
    borders = torch.tensor([*starts, *(start + 64 for start in starts[:-1])])
    whole = mmse(model, image, 8, tile=304)
    for found, expected in zip(mmse(model, image, 8, tile=64, overlap=32), whole, strict=True):
        for dim in (2, 3):
            steps = found.diff(dim=dim).abs().index_select(dim, borders - 1)
            assert steps.mean() < 1.05 * expected.diff(dim=dim).abs().mean()


@pytest.mark.parametrize("name", ["3d_to_3d", "3d_to_2d"])
def test_volumes_are_cut_too(name: str) -> None:
    model, volume = build(SETUPS[name]), picture(5, 70, 40)
    mean, std = mmse(model, volume, tile=(5, 32, 32))
    sizes = (70, 40) if name == "3d_to_2d" else (5, 70, 40)
    assert mean.shape == std.shape == (1, SETUPS[name].config["output_channels"], *sizes)
    assert torch.isfinite(mean).all()
    assert (std > 0).all()


def test_volumes_have_tiles_as_deep_as_the_models_patches() -> None:
    model = build(SETUPS["3d_to_3d"])
    for sizes, sides in (((24, 40, 40), (5, 48, 48)), ((24, 128, 128), (5, 64, 64)), ((3, 32, 32), (3, 32, 32))):
        assert images.plan(picture(*sizes), model, None, None).sides == sides


@pytest.mark.parametrize(("planes", "tile"), [(24, (8, 32, 32)), (24, 32), (5, (3, 32, 32))])
def test_a_tile_of_another_depth_is_said_to_be_wrong(planes: int, tile: Any, recwarn: pytest.WarningsRecorder) -> None:
    model, volume = build(SETUPS["3d_to_3d"]), picture(planes, 40, 40)
    images.plan(volume, model, (5, 32, 32), None)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"planes deep, but the model was built for 5"):
        images.plan(volume, model, tile, None)


# Sizes.


@pytest.mark.parametrize("size", [1, 15, 33])
def test_any_size_is_padded_by_reflection_and_cut_back(size: int) -> None:
    model, image = build(), picture(size, 20)
    unpatch_model(model)
    mean, _ = mmse(model, image, 1)
    before, side = [-((size - -(-size // 16) * 16) // 2), 6], [-(-size // 16) * 16, 32]
    pads = [(lead, whole - lead - n) for lead, whole, n in zip(before, side, (size, 20), strict=True)]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), *pads], mode="reflect"))
    torch.manual_seed(0)
    torch.randint(2**62, ())  # predict_mmse draws a seed
    model.mode_pred = True
    with torch.no_grad():
        expected = model.eval()(padded)[0][:, :1, before[0] : before[0] + size, 6:26]
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


THIN = {"encoder_n_filters": 4, "decoder_n_filters": 4, "predict_logvar": None}


@pytest.mark.parametrize("allow_oddsizes", [False, True])
@pytest.mark.parametrize(("levels", "contexts"), [(2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (4, 5)])
def test_the_rule_of_sizes_is_what_the_model_does(levels: int, contexts: int, allow_oddsizes: bool) -> None:
    """Without lateral context 2 ** (levels + 1), half of it with the option."""
    config = {**TINY, **THIN, "z_dims": [4] * levels, "multiscale_count": contexts, "input_shape": (32, 32)}
    model = Setup("thin", config).build().eval()
    patch_model(model, allow_oddsizes=allow_oddsizes)
    (multiple, _) = multiples(model)
    if contexts == 1:
        assert multiple == 2 ** (levels + 1) // (2 if allow_oddsizes else 1)
    for side in (multiple, 3 * multiple, 5 * multiple):
        assert misfit(model, (side, side)) is None
        model.reset_for_inference((side, side))
        with torch.no_grad():
            assert model(torch.randn(1, contexts, side, side))[0].shape[2:] == (side, side)
    side = 5 * multiple // 2
    if contexts == 1:
        option = "" if allow_oddsizes else rf", or of {multiple // 2} after patch_model\(model, allow_oddsizes=True\)"
        sentence = (
            rf"the sides of {side} x {side} must be multiples of {multiple} for this LadderVAE of .*levels{option}$"
        )
        with pytest.raises(ValueError, match=sentence), torch.no_grad():
            model(torch.randn(1, 1, side, side))
        with pytest.raises(ValueError, match=f"tile: {sentence}"):
            predict_mmse(model, picture(), 1, tile=side)


def test_what_a_patched_model_says_of_a_size_holds_for_training_and_ends_with_unpatching() -> None:
    model = build().train()
    with pytest.raises(ValueError, match=r"the sides of 24 x 24 must be multiples of 16"):
        model(picture(24, 24))
    with pytest.raises(ValueError, match=r"built for patches of another size than 32 x 32: .* use predict_mmse"):
        model(picture(32, 32))
    unpatch_model(model)
    assert type(model) is LadderVAE
    with pytest.raises(AssertionError, match="Spatial dimensions"):
        model(picture(24, 24))


# Lateral context.


@pytest.mark.parametrize("tile", [None, 16, 32])
def test_lateral_context_is_made_for_every_tile(tile: int | None) -> None:
    model, image, seen = build(SETUPS["musplit-context-kl"]), picture(48, 40), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = mmse(model, image, 1, tile=tile)
    assert mean.shape == std.shape == (1, 2, 48, 40)
    side = (48, 40) if tile is None else (tile, tile)
    torch.testing.assert_close(seen[0][:1], cut_with_context(image, 0, (0, 0), side, 3))


def test_images_that_have_their_context_are_predicted_whole() -> None:
    model = build(SETUPS["musplit-context-kl"])
    image = picture(32, 32)
    crops = cut_with_context(image, 0, (0, 0), (32, 32), 3)
    torch.testing.assert_close(mmse(model, crops), mmse(model, image))
    with pytest.raises(ValueError, match="lateral context are predicted whole: leave tile out"):
        mmse(model, crops, tile=16)
    with pytest.raises(ValueError, match="predicted whole: the sides of 30 x 32 must be multiples"):
        mmse(model, crops[:, :, :30])


def everything_of(model: nn.Module) -> dict[str, Any]:
    generators = ("output_expected_shape",)
    return {
        f"{name}.{key}": id(value) if isinstance(value, nn.Module) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in generators
    }


@pytest.mark.parametrize("name", ["tiny", "musplit-context-kl"])
def test_afterwards_the_model_is_as_it_was_and_trains(name: str) -> None:
    setup = SETUPS.get(name, TINY_HDN)
    model = build(setup).train()
    before = everything_of(model)
    mmse(model, picture(48, 48), tile=32)
    assert everything_of(model) == before
    assert not model.mode_pred
    train(model, setup, steps=1)


# Statistics and arrays.


def test_an_array_is_normalised_predicted_and_brought_back() -> None:
    model = build()
    image = (1000 + 200 * picture()).numpy().astype(">u2")
    mean, std = predicted = mmse(model, image, tile=32, mean=1000, std=200)
    assert isinstance(mean, np.ndarray)
    assert predicted.mean is mean
    assert predicted.std is std
    normalised = (torch.from_numpy(image.astype("f4")) - 1000) / 200
    expected = mmse(model, normalised, tile=32)
    torch.testing.assert_close(torch.from_numpy(mean), expected[0] * 200 + 1000, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(torch.from_numpy(std), expected[1] * 200, rtol=1e-4, atol=1e-2)


class Noisy(nn.Module):
    """Any other model, of two channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.filterwarnings("ignore:every prediction is a whole one")
def test_each_channel_has_its_own_statistics() -> None:
    image = torch.tensor([100.0, 2000.0]).view(1, 2, 1, 1) + torch.zeros(1, 2, 40, 40)
    mean, std = mmse(Noisy(), image, 200, tile=32, mean=[100.0, 2000.0], std=(1.0, 50.0))
    torch.testing.assert_close(mean.mean((0, 2, 3)), image.mean((0, 2, 3)), rtol=1e-2, atol=0)
    torch.testing.assert_close(std.mean((0, 2, 3)), torch.tensor([1.0, 50.0]), rtol=0.05, atol=0)


def test_the_log_variance_is_left_out_unless_output_keeps_it() -> None:
    model, image = build(), picture(32, 32)
    mean, _ = mmse(model, image)
    both, _ = mmse(model, image, output=lambda out: out)
    assert mean.shape == (1, 1, 32, 32)
    assert both.shape == (1, 2, 32, 32)
    torch.testing.assert_close(both[:, :1], mean)


def test_progress_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    mmse(model, picture(), 3, tile=32, progress=True)
    assert "36/36" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"progress=True needs tqdm \(pip install tqdm\)"):
        mmse(model, picture(), progress=True)


# What it refuses, in one sentence.


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda out: out[0], r"\(2, 32, 32\)"),
        (lambda out: out.squeeze(), r"\(2, 32, 32\)"),
        (lambda out: (out, out), "a tuple"),
        (lambda out: out.numpy(), "a ndarray"),
        (lambda out: out.mean((2, 3)), r"\(1, 2\)"),
        (lambda out: out[..., 1:], r"\(1, 2, 32, 31\)"),
        (lambda out: out.chunk(2, 1), "a tuple"),
    ],
)
def test_an_output_that_gives_no_images_is_refused(output: Any, found: str) -> None:
    says = (
        rf"output, given the model's tensor \(1, 2, 32, 32\), must give images \(1, C, 32, 32\), .*; it gave {found}$"
    )
    with pytest.raises(ValueError, match=says):
        mmse(build(), picture(32, 32), batch=1, output=output)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"samples": 2.5}, TypeError, "samples must be an integer, got 2.5"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"image": [[1.0]]}, TypeError, "image must be a tensor or an array, got a list"),
        ({"image": np.zeros((1, 32, 32))}, ValueError, r"axes B, C, Y, X, got the shape \(1, 32, 32\): .*image\[None"),
        ({"image": torch.zeros(0, 1, 32, 32)}, ValueError, r"image is empty, its shape is \(0, 1, 32, 32\)"),
        ({"image": torch.zeros(1, 3, 32, 32)}, ValueError, "takes images of 1 channel, got 3"),
        ({"tile": 32.5}, ValueError, "tile must be one integer of at least 1, or 2 of them, got 32.5"),
        ({"tile": (32, 32, 32)}, ValueError, r"tile must be .*got \(32, 32, 32\)"),
        ({"overlap": -1}, ValueError, "overlap must be one integer of at least 0"),
        ({"tile": 32, "overlap": 32}, ValueError, r"overlap must be smaller than the tile \(32, 32\), got \(32, 32\)"),
        ({"mean": [1.0, 2.0]}, ValueError, "mean must be one number or one for each of 1 channels, got 2"),
        ({"std": 0}, ValueError, "std must be above 0, got 0"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        predict_mmse(build(), **{"image": picture(), "samples": 2, **options})


def test_a_numpy_integer_is_an_integer() -> None:
    assert mmse(build(), picture(16, 16), np.int64(2)).mean.shape == (1, 1, 16, 16)
