"""The noise: published known answers, and the distribution it claims to have. All seeds fixed."""

import math

import pytest
import torch
from scipy import stats

from ladder_kernels import normal_sample, use_backend
from ladder_kernels.noise import box_muller, draw_seed, philox4x32, philox_normal
from ladder_kernels.variance import VarianceMap

COUNT = 1 << 20


def words(counter, key):
    as_tensor = [torch.tensor(word, dtype=torch.int64) for word in (*counter, *key)]
    return [f"{int(word):08x}" for word in philox4x32(tuple(as_tensor[:4]), tuple(as_tensor[4:]))]


def test_philox_known_answer():
    assert words((0, 0, 0, 0), (42, 0)) == ["9ceaf053", "77f5493b", "12bf50ad", "5742b3d7"]


# The kat_vectors of Random123, the generator's reference implementation.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_reference_vectors(counter, key, expected):
    assert words(counter, key) == expected.split()


def test_lanes_are_the_words_of_a_group_in_order():
    seed = torch.tensor((7 << 32) + 42)
    normals = philox_normal(seed, 10, torch.float64)
    for index in range(10):
        block = philox4x32(tuple(torch.tensor(c) for c in (index // 4, 0, 0, 0)), (torch.tensor(42), torch.tensor(7)))
        pair = box_muller(*block[:2], torch.float64) + box_muller(*block[2:], torch.float64)
        assert normals[index] == pair[index % 4]


def test_the_extreme_words_are_finite():
    ends = torch.tensor([0, 1, 2**31, 2**32 - 1])
    first, second = torch.meshgrid(ends, ends, indexing="ij")
    for dtype in (torch.float32, torch.float64):
        normals = torch.cat(box_muller(first.flatten(), second.flatten(), dtype))
        assert normals.isfinite().all()
        assert normals.abs().max() <= math.sqrt(66 * math.log(2)) + 1e-6


def test_a_prefix_does_not_depend_on_the_count():
    seed = torch.tensor(1)
    assert torch.equal(philox_normal(seed, 1001, torch.float32)[:7], philox_normal(seed, 7, torch.float32))
    assert philox_normal(seed, 0, torch.float32).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 3])
def test_moments(seed, dtype):
    normals = philox_normal(torch.tensor(seed), COUNT, dtype).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        # Five standard errors of the sample moment.
        assert abs((normals**power).mean() - moment) < 5 * math.sqrt(variance / COUNT)


@pytest.mark.parametrize("seed", [0, 1, 123456789])
def test_kolmogorov_smirnov(seed):
    normals = philox_normal(torch.tensor(seed), COUNT, torch.float32)
    for lane in range(4):
        assert stats.kstest(normals[lane::4].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 123456789])
def test_tails(seed):
    normals = philox_normal(torch.tensor(seed), COUNT, torch.float32)
    for threshold in (2.0, 3.0, 4.0):
        expected = COUNT * 2 * stats.norm.sf(threshold)
        assert abs((normals.abs() > threshold).sum() - expected) < 5 * math.sqrt(expected)


def test_lanes_groups_and_seeds_are_uncorrelated():
    normals = philox_normal(torch.tensor(5), COUNT, torch.float32)
    other = philox_normal(torch.tensor(6), COUNT, torch.float32)
    high = philox_normal(torch.tensor(5 + (1 << 32)), COUNT, torch.float32)
    bound = 5 / math.sqrt(COUNT)
    for lag in (1, 2, 3, 4, 1024):
        assert abs((normals[lag:] * normals[:-lag]).mean()) < bound
    assert abs((normals * other).mean()) < bound
    assert abs((normals * high).mean()) < bound


def test_the_sample_follows_the_distribution(backend):
    params = torch.tensor([2.0, math.log(9.0)]).view(1, 2, 1).expand(1, 2, 1 << 14).contiguous()
    z = normal_sample(params, seed=11, variance=VarianceMap("exp"))
    assert stats.kstest(z.flatten().numpy(force=True), "norm", args=(2.0, 3.0)).pvalue > 1e-3


def test_fresh_seeds_differ_and_obey_manual_seed(device):
    torch.manual_seed(1)
    seeds = [draw_seed(device) for _ in range(3)]
    torch.manual_seed(1)
    assert [draw_seed(device) for _ in range(3)] == seeds
    assert len({int(seed) for seed in seeds}) == 3
    assert seeds[0].shape == ()
    assert seeds[0].dtype == torch.int64


def test_int_and_tensor_seeds_are_the_same():
    params = torch.randn(1, 4, 5)
    with use_backend("torch"):
        expected = normal_sample(params, seed=-3)
        assert torch.equal(normal_sample(params, seed=torch.tensor(-3)), expected)
        assert torch.equal(normal_sample(params, seed=torch.tensor([-3])), expected)
