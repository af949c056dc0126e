"""`mixture_log_likelihood`: against its formula, CAREamics' noise models, and itself on every path."""

import itertools

import pytest
import torch
from careamics.config.noise_model import GaussianMixtureNMConfig
from careamics.models.lvae.likelihoods import NoiseModelLikelihood
from careamics.models.lvae.noise_models import GaussianMixtureNoiseModel, MultiChannelNoiseModel
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap

from ladder_kernels import mixture_log_likelihood
from ladder_kernels.likelihood import run as run_table
from tests import oracle
from tests.conftest import interpreted, serving

NAMES = ("x", "signal", "weight")
# Signals from below the range to above it, variances some of which are at the smallest.
CONSTANTS = {"min_signal": [0.0, -1.0], "max_signal": [2.0, 3.0], "min_sigma": [0.3, 0.8], "tolerance": 1e-4}
NORMALISED = {**CONSTANTS, "mean": [0.5, 0.1], "std": [1.5, 0.7]}


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    """The backends that have it; what else serves takes one of theirs."""
    with serving(request.param):
        yield request.param


LAYOUTS = ("nchw", "channels_last", "cut")


def tensors(shape=(2, 2, 3, 5), n=3, c=2, dtype=torch.float32):
    return {
        "x": torch.randn(shape).to(dtype),
        "signal": torch.randn(shape).to(dtype),
        "weight": torch.randn(shape[1], 3 * n, c, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
    }


def value_and_gradients(function, given, constants, arriving):
    leaves = {k: v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for k, v in given.items()}
    out = function(**leaves, **constants)
    return out, torch.autograd.grad(out, list(leaves.values()), arriving.to(out.dtype))


def check(given, constants, arriving=None):
    """Values and gradients within the bound of every fast path; returns ours."""
    arriving = torch.randn(given["x"].shape) if arriving is None else arriving
    ours = value_and_gradients(mixture_log_likelihood, given, constants, arriving)
    compute = torch.float64 if torch.float64 in (given["x"].dtype, given["signal"].dtype) else torch.float32
    plain, exact = (
        value_and_gradients(oracle.mixture_log_likelihood, oracle.cast(given, dtype), constants, arriving)
        for dtype in (compute, torch.float64)
    )
    assert ours[0].dtype == compute
    # In float64 the truth itself has roundings, for which plain PyTorch's error, then 0, allows nothing.
    slack = 16.0 if compute == torch.float64 else oracle.SLACK
    oracle.assert_as_exact_as_plain("log-likelihood", ours[0], plain[0], exact[0], slack)
    for name, *values in zip(NAMES, ours[1], plain[1], exact[1], strict=True):
        assert values[0].dtype == given[name].dtype
        truncates = torch.bfloat16 in (given["x"].dtype, given["signal"].dtype)
        oracle.assert_as_exact_as_plain(f"grad {name}", *values, slack, truncates)
    return ours


# The formula.


@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_formula(backend, n, c):
    check(tensors(n=n, c=c), NORMALISED)


@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 7), (2, 2, 3, 2, 5), (1, 2, 40, 60), (0, 2, 4)])
def test_any_number_of_dims(backend, shape):
    check(tensors(shape), CONSTANTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(backend, dtype):
    check(tensors(dtype=dtype), NORMALISED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_x_and_signal_in_different_dtypes(backend, dtype):
    given = tensors()
    check({**given, "signal": given["signal"].to(dtype)}, NORMALISED)


@pytest.mark.parametrize("signal_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts(backend, x_layout, signal_layout):
    def lay(tensor, layout):
        if layout == "cut":
            wide = torch.randn(2, 5, 7, 9)
            wide[:, 2:4, 1:4, 2:7] = tensor
            return wide[:, 2:4, 1:4, 2:7]
        return tensor.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else tensor

    given = tensors()
    leaves = {"x": lay(given["x"], x_layout), "signal": lay(given["signal"], signal_layout), "weight": given["weight"]}
    expected = mixture_log_likelihood(**given, **NORMALISED)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    found = mixture_log_likelihood(**leaves, **NORMALISED)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, [leaves["x"], leaves["signal"]], torch.randn(found.shape))
    like = leaves["signal"] if signal_layout == "channels_last" else given["signal"]
    assert {each.stride() for each in (found, *grads)} == {like.stride()}


def test_one_weight_and_one_constant_serve_all_channels(backend):
    given = tensors()
    one = {**given, "weight": given["weight"][:1]}
    constants = {"min_signal": 0.0, "max_signal": torch.tensor(2.0), "min_sigma": torch.tensor([0.3])}
    twice = {**given, "weight": given["weight"][:1].expand(2, -1, -1)}
    twice_constants = {"min_signal": [0.0, 0.0], "max_signal": torch.full((1, 2, 1, 1), 2.0), "min_sigma": 0.3}
    assert torch.equal(mixture_log_likelihood(**one, **constants), mixture_log_likelihood(**twice, **twice_constants))
    _, found = value_and_gradients(mixture_log_likelihood, one, constants, torch.ones(2, 2, 3, 5))
    assert found[2].shape == one["weight"].shape


def test_more_components_than_triton_writes_out(backend):
    check(tensors(n=9, c=6), NORMALISED)


# Numerics.


@pytest.mark.parametrize("tolerance", [0.0, 1e-10])
def test_residuals_of_forty_standard_deviations(backend, tolerance):
    given = tensors(n=2, c=1)
    given["x"] = given["x"] + 60
    check(given, {**CONSTANTS, "tolerance": tolerance})


@pytest.mark.parametrize("logit", [200.0, -200.0])
def test_logits_far_from_0(backend, logit):
    given = tensors(n=2, c=1)
    given["weight"][:, 4:] = torch.tensor([[logit], [0.0]])
    out, grads = check(given, CONSTANTS)
    assert all(each.isfinite().all() for each in (out, *grads))


def test_signals_far_outside_of_the_range(backend):
    given = tensors(n=2, c=2)
    given = {**given, **{name: given[name] * 1e4 for name in ("x", "signal")}}
    out, grads = check(given, CONSTANTS, torch.randn(2, 2, 3, 5) * 1e-3)
    assert all(each.isfinite().all() for each in (out, *grads))


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_gives_nan_out_and_nowhere_else(backend, name):
    given = tensors()
    given[name].view(-1)[0] = float("nan")
    out = mixture_log_likelihood(**given, **CONSTANTS)
    if name == "weight":
        assert out[:, 0].isnan().all()
        assert out[:, 1].isfinite().all()
    else:
        assert out.isnan().sum() == out[0, 0, 0, 0].isnan() == 1


def test_the_same_call_twice_gives_the_same_bits(backend):
    given, arriving = tensors((4, 2, 8, 9)), torch.randn(4, 2, 8, 9)
    first, second = (value_and_gradients(mixture_log_likelihood, given, NORMALISED, arriving) for _ in range(2))
    assert all(map(torch.equal, (first[0], *first[1]), (second[0], *second[1])))


# Gradients.


@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_gradcheck(backend, n, c):
    values = [each.requires_grad_() for each in tensors((1, 2, 2, 2), n, c, torch.float64).values()]
    slow = interpreted(backend)
    assert torch.autograd.gradcheck(
        lambda *given: mixture_log_likelihood(*given, **NORMALISED), values, fast_mode=slow, check_undefined_grad=False
    )


def test_second_derivatives(backend):
    values = [each.requires_grad_() for each in tensors((1, 2, 2), 2, 2, torch.float64).values()]
    assert torch.autograd.gradgradcheck(lambda *given: mixture_log_likelihood(*given, **NORMALISED), values)


@pytest.mark.parametrize("wanted", [names for k in (1, 2) for names in itertools.combinations(NAMES, k)])
def test_some_gradients_without_the_others(backend, wanted):
    given, arriving = tensors(), torch.randn(2, 2, 3, 5)
    _, every = value_and_gradients(mixture_log_likelihood, given, NORMALISED, arriving)
    leaves = {name: given[name].clone().requires_grad_(name in wanted) for name in NAMES}
    found = torch.autograd.grad(mixture_log_likelihood(**leaves, **NORMALISED), [leaves[n] for n in wanted], arriving)
    assert all(map(torch.equal, found, [every[NAMES.index(name)] for name in wanted]))


def test_nothing_is_kept_for_backward_but_the_inputs(backend):
    given, kept = {k: v.requires_grad_() for k, v in tensors((2, 2, 16, 16)).items()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixture_log_likelihood(**given, **NORMALISED)
    large = {each.data_ptr() for each in kept if each.numel() > 64}
    assert large == {given["x"].data_ptr(), given["signal"].data_ptr()}


# Paths.


@pytest.mark.usefixtures("fresh_compiler")
def test_one_dynamic_graph_serves_every_batch_and_size(backend):
    counter, counts = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(mixture_log_likelihood, dynamic=True, fullgraph=True, backend=counter)
    for shape in ((5, 2, 4, 6), (7, 2, 8, 9)):
        given, arriving = tensors(shape, n=1), torch.randn(shape)  # a component takes a compiler seconds
        ours = value_and_gradients(mixture_log_likelihood, given, NORMALISED, arriving)
        found = value_and_gradients(compiled, given, NORMALISED, arriving)
        torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(backend, layout):
    given = tensors()
    x, signal = (given[name].contiguous(memory_format=layout).requires_grad_() for name in ("x", "signal"))
    constants = torch.rand(6, 2) + torch.tensor([0, 1, 0, 0, 0, 0])[:, None]
    arguments = (x, signal, given["weight"].requires_grad_(), constants, backend)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ladder_kernels.mixture.default, arguments, test_utils=tests)
    incoming = torch.randn(x.shape).contiguous(memory_format=layout)
    arguments = (incoming, *arguments[:-1], True, False, True, backend)
    with torch.no_grad():
        torch.library.opcheck(torch.ops.ladder_kernels.mixture_backward.default, arguments, test_utils=tests[::2])
    assert torch.equal(
        torch.ops.ladder_kernels.mixture(x, signal, given["weight"], constants, backend),
        run_table(x, signal, given["weight"], constants),
    )


def test_torch_func(backend):
    given = tensors((3, 2, 4))

    def of_one(x, signal):
        return mixture_log_likelihood(x[None], signal[None], given["weight"], **CONSTANTS).sum()

    found = vmap(grad(of_one, argnums=(0, 1)))(given["x"], given["signal"])
    expected = value_and_gradients(mixture_log_likelihood, given, CONSTANTS, torch.ones(3, 2, 4))[1][:2]
    torch.testing.assert_close(found, expected)


def test_batched_gradients(backend):
    leaves = {name: value.requires_grad_() for name, value in tensors().items()}
    out, arriving = mixture_log_likelihood(**leaves, **CONSTANTS), torch.randn(3, 2, 2, 3, 5)
    found = torch.autograd.grad(out, list(leaves.values()), arriving, is_grads_batched=True, retain_graph=True)
    for index, each in enumerate(arriving):
        expected = torch.autograd.grad(out, list(leaves.values()), each, retain_graph=True)
        torch.testing.assert_close(tuple(grads[index] for grads in found), expected, rtol=1e-4, atol=1e-5)


# CAREamics.


def noise_model(n, c, min_sigma):
    model = GaussianMixtureNoiseModel(GaussianMixtureNMConfig(n_gaussian=n, max_signal=200.0, min_sigma=min_sigma))
    model.register_parameter("weight", torch.nn.Parameter(torch.randn(3 * n, c)))
    model.weight.data[n : 2 * n] += 4
    model.n_coeff = c
    return model


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 2, 6, 6), (2, 2, 3, 4, 4)])
@pytest.mark.parametrize(("n", "c", "min_sigma"), [(1, 2, 1e-3), (2, 3, 1e-3), (3, 2, 80.0), (3, 3, 25.0)])
def test_the_values_and_gradients_of_careamics(backend, n, c, min_sigma, shape):
    """Of data of mean 100 and standard deviation 80: signals below 0 and above 200."""
    channels = shape[1]
    models = [noise_model(n, c, min_sigma) for _ in range(channels)]
    upstream = NoiseModelLikelihood(MultiChannelNoiseModel(models))
    one = torch.ones(1, channels, *[1] * (len(shape) - 2))
    upstream.set_data_stats(100 * one, 80 * one)
    given = tensors(shape)
    given = {"x": given["signal"] + 0.2 * given["x"], "signal": given["signal"]}

    def theirs(x, signal):
        return upstream(signal, x)[0]

    def ours(x, signal):
        return mixture_log_likelihood(
            x,
            signal,
            torch.stack([model.weight for model in models]),
            **{name: [getattr(m, name) for m in models] for name in ("min_signal", "max_signal", "min_sigma")},
            tolerance=models[0].tolerance,
            mean=upstream.data_mean,
            std=upstream.data_std,
        )

    arriving = torch.randn(shape)
    found, expected = (value_and_gradients(each, given, {}, arriving) for each in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected[1][1].abs().max().item())


# Errors.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": torch.zeros(2, 2, 3, 4)}, r"\(2, 2, 3, 5\), got \(2, 2, 3, 4\)"),
        ({"weight": torch.zeros(2, 8, 2)}, "weight must be .* got .2, 8, 2."),
        ({"weight": torch.zeros(3, 9, 2)}, "weight must be"),
        ({"min_signal": [0.0, 1.0, 2.0]}, "min_signal must have one value, or one for each of 2 channels; got 3"),
        ({"std": torch.ones(2, requires_grad=True)}, "std is a constant"),
        ({"x": torch.zeros(2)}, "x must be"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        mixture_log_likelihood(**{**tensors(), **NORMALISED, **changes})


def test_a_dtype_that_is_not_one_of_the_four():
    with pytest.raises(TypeError, match="signal must be one of"):
        mixture_log_likelihood(**{**tensors(), "signal": torch.zeros(2, 2, 3, 5, dtype=torch.int32)}, **NORMALISED)
