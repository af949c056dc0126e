"""What is particular to the Triton backend: launches, block sizes, layouts without copies, the fast formulas."""

from collections import Counter

import pytest
import torch
import triton
import triton.language as tl

from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.backends.step import Step
from ladder_kernels.backends.triton import formulas, philox, plan, settings
from ladder_kernels.backends.triton import math as triton_math
from ladder_kernels.variance import KINDS, VarianceMap
from tests import extremes, oracle
from tests.inputs import layouts, packed
from tests.maps import MAPS

KERNELS = ("forward_kernel", "reduce_kernel", "backward_kernel", "sample_kernel")


@pytest.fixture(autouse=True)
def _triton(device):
    with use_backend("triton"), device:
        yield
    # Tests change what settings are found from.
    settings.forget()


class Recorder:
    """A kernel that remembers what it was launched with."""

    def __init__(self, name, kernel, launches):
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launches.append((self.name, args, kwargs))
            self.kernel[grid](*args, **kwargs)

        return launch


@pytest.fixture
def launches(monkeypatch):
    """The launches of the test, in order: (kernel, arguments, keyword arguments)."""
    recorded = []
    for name in KERNELS:
        monkeypatch.setattr(settings, name, Recorder(name, getattr(settings, name), recorded))
    settings.forget()
    return recorded


def test_two_launches_forward_and_one_backward(launches):
    q, p = packed((2, 3, 4, 4)).requires_grad_(), packed((1, 3, 4, 4)).requires_grad_()
    step = normal_sample_kl(q, p, seed=1, window=2, elementwise=True)
    assert Counter(name for name, *_ in launches) == {"forward_kernel": 1, "reduce_kernel": 1}
    launches.clear()
    (step.z.sum() + step.kl_samplewise.sum()).backward()
    assert Counter(name for name, *_ in launches) == {"backward_kernel": 1}
    launches.clear()
    normal_sample(q, seed=1)
    assert Counter(name for name, *_ in launches) == {"sample_kernel": 1}


def test_every_device_has_launches_of_its_own():
    look = settings.Look.of(packed((2, 3, 4, 4)))
    first, second = (settings.sample(look, None, torch.device("cuda", index), Step("mode")) for index in range(2))
    assert first.step is not second.step


@pytest.mark.parametrize("layout", layouts())
def test_no_layout_is_copied(launches, layout):
    q, p = layouts()[layout].requires_grad_(), layouts()[layout].requires_grad_()
    step = normal_sample_kl(q, p, seed=1)
    torch.autograd.grad(step.kl_samplewise.sum() + step.z.square().sum(), (q, p))
    for name, args, _ in launches:
        if name in ("forward_kernel", "backward_kernel"):
            assert [args[0].data.data_ptr(), args[1].data.data_ptr()] == [q.data_ptr(), p.data_ptr()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_fast_dimension_is_the_contiguous_one(launches, layout):
    q = packed((2, 5, 6, 7)).contiguous(memory_format=layout)
    normal_sample(q, seed=1)
    _, args, _ = launches[0]
    channels_inner = args[-1].channels_inner.value
    assert channels_inner == (layout == torch.channels_last)
    assert args[3].sizes == ((2, 42, 5) if channels_inner else (2, 5, 42))


@pytest.mark.parametrize(("tile", "columns", "full_grid"), [(64, 16, 1), (128, 32, 4), (4096, 512, 10**6)])
def test_z_is_bitwise_the_same_for_any_block_size(monkeypatch, tile, columns, full_grid):
    q, p = packed((3, 6, 10, 9)), packed((3, 6, 10, 9))
    expected = normal_sample_kl(q, p, seed=5)
    for name, value in (("TILE", tile), ("MAX_COLUMNS", columns), ("FULL_GRID", full_grid)):
        monkeypatch.setattr(plan, name, value)
    settings.forget()
    step = normal_sample_kl(q, p, seed=5)
    assert torch.equal(step.z, expected.z)
    for name in ("kl_samplewise", "kl_channelwise", "kl_spatial", "logprob_q", "logvar_max"):
        torch.testing.assert_close(getattr(step, name), getattr(expected, name))


@pytest.mark.parametrize("shape", [(2, 7, 33), (5, 300, 3), (4, 64, 16, 16)], ids=str)
def test_the_tiles_cover_every_row_and_column_once(shape):
    q = torch.empty(shape[0], 2 * shape[1], *shape[2:])
    laid = plan.make_plan(shape, q.stride(), None, None, False)
    _, rows, columns = laid.sizes
    for tiles in (laid.forward, laid.backward):
        assert tiles.column_blocks * tiles.block_columns >= columns > (tiles.column_blocks - 1) * tiles.block_columns
        covered = tiles.row_blocks * tiles.tiles * tiles.block_rows
        assert covered >= rows > (tiles.row_blocks - 1) * tiles.tiles * tiles.block_rows
        assert tiles.masked == (covered != rows or columns % tiles.block_columns != 0)


@pytest.mark.parametrize(("shape", "longest"), [((2, 6, 60), 0), ((2, 40, 7), 1), ((5, 6, 7), 2)], ids=str)
def test_the_longest_dim_of_a_grid_comes_first_where_others_may_not_be_long(monkeypatch, shape, longest):
    q, p = packed(shape).requires_grad_(), packed(shape)
    monkeypatch.setattr(plan, "TILE", 64)
    monkeypatch.setattr(plan, "MAX_COLUMNS", 16)

    def run():
        settings.forget()
        step = normal_sample_kl(q, p, seed=5)
        return (*step[:2], *step[3:6], *torch.autograd.grad(step.kl_spatial.square().sum(), q))

    expected = run()
    monkeypatch.setattr(plan, "MAX_GRID", 1)
    assert plan.make_plan(shape, q.stride(), p.stride(), None, False).forward.first_axis() == longest
    assert all(torch.equal(out, want) for out, want in zip(run(), expected, strict=True))


def test_samples_beyond_32_bits_are_addressed_with_64():
    shape = (1, 2**16, 2**8, 2**8)
    strides = (2**33, 2**16, 2**8, 1)
    assert plan.make_plan(shape, strides, None, None, False).wide
    assert not plan.make_plan((8, 128, 64, 64), (2**20, 2**12, 2**6, 1), None, None, False).wide


def test_64_bit_addresses_give_the_same_bits(monkeypatch):
    q, p = packed((2, 3, 4, 5)).requires_grad_(), packed((1, 3, 4, 5)).requires_grad_()
    weights = torch.randn(2)

    def run():
        step = normal_sample_kl(q, p, seed=5)
        return (*step[:6], *torch.autograd.grad((step.kl_samplewise * weights).sum() + step.z.sum(), (q, p)))

    expected = run()
    monkeypatch.setattr(settings, "make_plan", lambda *args: plan.make_plan(*args)._replace(wide=True))
    settings.forget()
    assert all(torch.equal(out, want) for out, want in zip(run(), expected, strict=True))


SMALLEST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def emulated(instruction: tl.constexpr, x):
    """The instruction as the interpreter can run it: exact to float32, with .ftz denormals are zeros, in and out."""
    flushes = ".ftz." in instruction
    if flushes:
        x = tl.where(tl.abs(x) < SMALLEST_NORMAL, 0.0, x)
    if instruction.startswith("ex2"):
        y = tl.exp2(x)
    elif instruction.startswith("lg2"):
        y = tl.log2(x)
    elif instruction.startswith("sqrt"):
        y = tl.sqrt(x)
    elif instruction.startswith("rsqrt"):
        y = 1.0 / tl.sqrt(x)
    elif instruction.startswith("rcp"):
        y = 1.0 / x
    elif instruction.startswith("cos"):
        y = tl.cos(x)
    else:
        tl.static_assert(instruction.startswith("sin"))
        y = tl.sin(x)
    return tl.where(tl.abs(y) < SMALLEST_NORMAL, 0.0, y) if flushes else y


@pytest.fixture
def fast(monkeypatch):
    """The formulas of NVIDIA's GPUs, in the interpreter."""
    if not settings.INTERPRETED:
        pytest.skip("on a GPU the fast formulas are what every other test runs")
    monkeypatch.setattr(triton_math, "_approximate", emulated)
    original = settings.tile_mode
    monkeypatch.setattr(settings, "tile_mode", lambda *args: original(*args)._replace(fast=tl.constexpr(True)))
    settings.forget()


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("variance", MAPS.values(), ids=MAPS)
@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_are_the_formulas(analytical, variance):
    p = packed((2, 4, 6, 6))
    # Half of q close to p, where the polynomial takes over.
    q = torch.where(torch.rand_like(p) < 0.5, p + 1e-2 * torch.randn_like(p), packed((2, 4, 6, 6))).requires_grad_()
    options = {"analytical_kl": analytical, "variance": variance}
    step = normal_sample_kl(q, p, seed=3, elementwise=True, **options)
    eps = noise_of(3, (2, 4, 6, 6))
    torch.testing.assert_close(step.z, normal_sample(q, noise=eps, variance=variance), rtol=0, atol=1e-5)
    exact_q = q.detach().double().requires_grad_()
    exact = oracle.step(exact_q, p.double(), noise=eps.double(), **options)
    torch.testing.assert_close(step.kl_elementwise.double(), exact["kl_elementwise"], rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(step.kl_samplewise.sum(), q)
    (exact_grad,) = torch.autograd.grad(exact["kl_samplewise"].sum(), exact_q)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_keep_naive_stds_that_underflow():
    extremes.naive_variances_that_underflow(-200.0)


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_keep_naive_stds_whose_inverse_underflows(analytical):
    extremes.naive_variances_that_overflow(176.0, analytical)


@pytest.mark.parametrize(("given", "options"), extremes.EXTREMES.values(), ids=extremes.EXTREMES)
@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_overflow_nowhere_where_the_truth_does_not(given, options):
    extremes.nothing_overflows(given, options)


@pytest.mark.parametrize("analytical", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize("kind", ["exp", "logstd", "softplus"])
@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_divide_zero_by_a_std_of_zero(kind, analytical):
    extremes.equal_means(kind, analytical)


@pytest.mark.usefixtures("fast")
def test_the_fast_formulas_keep_the_logarithm_of_a_ratio_that_underflows():
    """vq / vp is 1e-6 / 3e38, which no float32 holds."""
    q, p = (torch.tensor([0.0, raw]).view(1, 2, 1, 1) for raw in (-103.0, 3e38))
    options = {"analytical_kl": True, "variance": VarianceMap("stable")}
    step = normal_sample_kl(q, p, mode=True, **options)
    exact = oracle.step(q.double(), p.double(), noise=torch.zeros(1, 1, 1, 1).double(), **options)
    torch.testing.assert_close(step.kl_samplewise.double(), exact["kl_samplewise"], rtol=1e-5, atol=0)


def noise_of(seed, shape):
    from ladder_kernels.noise import philox_normal

    return philox_normal(torch.tensor(seed), torch.Size(shape).numel(), torch.float32).view(shape)


@triton.jit
def ratio_kernel(q_std, q_log_var, out, variance):
    index = tl.arange(0, 1024)
    p = formulas.standard_normal(tl.float32)
    std, log_var = tl.load(q_std + index)[None, :], tl.load(q_log_var + index)[None, :]
    one = p.rest
    q = formulas.Gaussian(p.mean, std, p.exponent, std, one, one, one, p.raw, log_var, p.slope, p.clamped)
    _, excess = formulas.variance_ratio(q, p, variance, True)
    tl.store(out + index[None, :], excess)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not settings.INTERPRETED, reason="the emulated instructions are the interpreter's")
def test_the_polynomial_near_equality_is_exact_to_its_last_digits(monkeypatch, kind):
    """Relative to u^2/2, over the whole range in which the polynomial serves and beyond it."""
    monkeypatch.setattr(triton_math, "_approximate", emulated)
    log_ratio = torch.linspace(-1.0, 1.0, 1024, dtype=torch.float64)
    q_std, q_log_var = (log_ratio / 2).exp().float(), log_ratio.float()
    out = torch.empty(1024)
    variance = formulas.Variance.of(VarianceMap(kind))
    ratio_kernel[(1,)](q_std, q_log_var, out, variance)
    x = 2 * q_std.double().log() if variance.has_rest.value else q_log_var.double()
    exact = torch.expm1(x) - x
    # Where the polynomial serves, a few roundings of u^2/2; beyond, a rounding of the ratio.
    assert ((out.double() - exact).abs() <= 1e-6 * exact + 1.2e-7 * (x.abs() > 0.11)).all()


@triton.jit
def log1p_over_kernel(t, out):
    index = tl.arange(0, 4096)
    tl.store(out + index, triton_math.log1p_over(tl.load(t + index), False))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1.5e-7), (torch.float64, 4e-16)], ids=str)
def test_the_logarithm_of_one_plus_t_is_exact_to_its_last_digits(dtype, error):
    """Over all of [0, 1], and down to where 1 + t is 1."""
    t = torch.cat([torch.linspace(0.0, 1.0, 2048, dtype=dtype), 2.0 ** -torch.linspace(1.0, 60.0, 2048, dtype=dtype)])
    out = torch.empty_like(t)
    log1p_over_kernel[(1,)](t, out)
    exact = torch.where(t == 0, 1.0, t.double().log1p() / t.double())
    assert ((out.double() / exact - 1).abs() <= error).all()


def test_the_words_of_philox_are_the_known_answer():
    @triton.jit
    def kernel(out):
        group = tl.zeros([1], tl.int64)
        w0, w1, w2, w3 = philox.philox4x32(group, tl.full([1], 42, tl.int64))
        index = tl.arange(0, 1)
        tl.store(out + index, w0.to(tl.int64))
        tl.store(out + 1 + index, w1.to(tl.int64))
        tl.store(out + 2 + index, w2.to(tl.int64))
        tl.store(out + 3 + index, w3.to(tl.int64))

    out = torch.zeros(4, dtype=torch.int64)
    kernel[(1,)](out)
    assert [f"{word:08x}" for word in out.tolist()] == ["9ceaf053", "77f5493b", "12bf50ad", "5742b3d7"]
