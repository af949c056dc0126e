"""Tiles of an image: they cover it, their weights sum to one, and what is cut out is NumPy's and CAREamics' padding."""

import itertools

import numpy as np
import pytest
import torch
from careamics.dataset.patch_constructor.microsplit_patch_constructors import _extract_lc_patch
from torch import Tensor

from ladder_kernels.tiles import cut, cut_with_context, tiles

LAYOUTS = [
    ((90, 70), (32, 32), (8, 8)),
    ((90, 20), (32, 32), (20, 0)),
    ((33, 33), (32, 32), (31, 31)),
    ((5, 33, 40), (8, 32, 16), (3, 24, 5)),
    ((64, 64), (32, 32), (0, 0)),
    ((1, 1), (16, 16), (4, 4)),
    ((100,), (16,), (15,)),
]
every_layout = pytest.mark.parametrize(("sizes", "sides", "overlaps"), LAYOUTS)


@every_layout
def test_the_weights_sum_to_one_everywhere(
    sizes: tuple[int, ...], sides: tuple[int, ...], overlaps: tuple[int, ...]
) -> None:
    image = torch.zeros(2, *sizes)
    for tile in tiles(sizes, sides, overlaps):
        assert tile.sides == sides
        tile.add_to(image, torch.ones(2, *sides))
    torch.testing.assert_close(image, torch.ones_like(image), rtol=1e-6, atol=0)


@every_layout
def test_tiles_of_an_image_blend_to_the_image(
    sizes: tuple[int, ...], sides: tuple[int, ...], overlaps: tuple[int, ...]
) -> None:
    image = torch.randn(1, 3, *sizes)
    blended = torch.zeros_like(image)
    for tile in tiles(sizes, sides, overlaps):
        tile.add_to(blended[0], cut(image, 0, tile.starts, sides)[0])
    torch.testing.assert_close(blended, image, rtol=1e-5, atol=1e-6)


def test_neighbours_share_what_is_asked_for_and_no_tile_is_needless() -> None:
    for size in range(33, 200):
        starts = [tile.starts[0] for tile in tiles((size,), (32,), (8,))]
        assert starts[0] == 0
        assert starts[-1] == size - 32
        assert max(b - a for a, b in itertools.pairwise(starts)) <= 24
        assert len(starts) == -(-(size - 8) // 24)


def test_a_tile_counts_least_at_its_own_border_and_fully_at_the_images() -> None:
    first, *_, last = tiles((100,), (32,), (8,))
    assert first.weights[0][0] == last.weights[0][-1] == 1
    assert 0 < first.weights[0][-1] < 0.02
    assert (first.weights[0].diff() <= 0).all()


def test_a_prediction_of_fewer_dims_is_added() -> None:
    (tile,) = tiles((5, 16, 16), (5, 16, 16), (0, 0, 0))
    image = torch.zeros(2, 16, 16)
    tile.add_to(image, torch.ones(2, 16, 16))
    assert image.eq(1).all()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("start", [-9, -1, 0, 3])
def test_what_lies_outside_is_reflected_as_numpy_pads(size: int, start: int) -> None:
    image = np.arange(size, dtype=np.uint16)
    padded = np.pad(image, (20, 20), mode="reflect")
    found = cut(image[None, None], 0, (start,), (12,))
    assert found.dtype == torch.float32
    assert np.array_equal(found[0, 0], padded[20 + start : 32 + start])
    torch.testing.assert_close(cut(torch.from_numpy(image.astype("f4"))[None, None], 0, (start,), (12,)), found)


def test_an_array_on_disk_is_read_tile_by_tile() -> None:
    class OnDisk:
        shape, dtype = (3, 1, 50, 60), np.dtype("<u2")

        def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
            sizes = [stop - start for start, stop in ((s.start, s.stop) for s in box if s.start is not None)]
            read.append(np.prod(sizes))
            return np.zeros((sizes[0], 1, *sizes[1:]), dtype=self.dtype)

    read: list[int] = []
    assert cut(OnDisk(), 1, (40, 8), (16, 16)).shape == (1, 1, 16, 16)
    assert read == [10 * 16]


# Lateral context.


class Extractor:
    """What CAREamics' function reads an array (B, C, *S) with."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.image_stacks = [type("Stack", (), {"data_shape": image.shape})]

    def extract_channel_patch(self, _: int, number: int, __: None, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        box = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return self.image[(number, slice(None), *box)]


def careamics_context(image: np.ndarray, starts: tuple[int, ...], sides: tuple[int, ...], count: int) -> Tensor:
    return torch.from_numpy(_extract_lc_patch(Extractor(image), 0, 1, None, starts, sides, count))


@pytest.mark.parametrize(
    ("sizes", "starts", "sides", "count"),
    [
        ((90, 70), (0, 0), (32, 32), 3),
        ((90, 70), (58, 38), (32, 32), 2),
        ((90, 70), (10, 20), (16, 32), 4),
        ((9, 40, 50), (2, 8, 20), (5, 16, 16), 2),
    ],
)
def test_lateral_context_is_careamics_own(
    sizes: tuple[int, ...], starts: tuple[int, ...], sides: tuple[int, ...], count: int
) -> None:
    image = np.random.default_rng(0).normal(size=(2, 1, *sizes)).astype(np.float32)
    found = cut_with_context(image, 1, starts, sides, count)
    assert found.shape == (1, count, *sides)
    torch.testing.assert_close(found, careamics_context(image, starts, sides, count), rtol=1e-5, atol=1e-6)
