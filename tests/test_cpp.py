"""What is particular to the native CPU backend: threads, instruction sets, and arguments that do not fit."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ladder_kernels import normal_sample_kl, use_backend
from ladder_kernels.backends import cpp
from ladder_kernels.backends.step import Step, StepGrads, compute_dtype
from ladder_kernels.variance import KINDS, VarianceMap
from tests import oracle
from tests.inputs import packed, random_incoming


def step_and_gradients(shape, p_batch, layout=torch.contiguous_format):
    torch.manual_seed(0)
    q = packed(shape).contiguous(memory_format=layout).requires_grad_()
    p = packed(shape, batch=p_batch).contiguous(memory_format=layout).requires_grad_()
    incoming = random_incoming(shape, oracle.OUTPUTS)
    with use_backend("cpp"):
        outputs = normal_sample_kl(
            q, p, seed=7, variance=VarianceMap("stable", raw_max=20.0), window=8, elementwise=True
        )._asdict()
        return [*outputs.values(), *oracle.gradients(outputs, [q, p], incoming)]


@pytest.mark.parametrize("p_batch", [6, 1], ids=["learned", "batch 1"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(layout, p_batch):
    shape, results = (6, 24, 33, 31), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(step_and_gradients(shape, p_batch, layout))
    torch.set_num_threads(1)
    for values in results[1:]:
        assert all(torch.equal(value, expected) for value, expected in zip(values, results[0], strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of Linux")
def test_the_threads_are_those_of_torch():
    """No second pool of them, which would fight the first one for the cores."""
    code = """
import os, torch, ladder_kernels
torch.set_num_threads(3)
torch.randn(2**22).exp()
before = len(os.listdir("/proc/self/task"))
with ladder_kernels.use_backend("cpp"):
    ladder_kernels.normal_sample(torch.zeros(8, 64, 64, 64), seed=1)
print(before, len(os.listdir("/proc/self/task")))
"""
    before, after = map(int, python(code, OMP_NUM_THREADS="").stdout.split())
    assert before >= 3
    assert after == before


def test_python_threads_may_share_a_plan():
    q, p = packed((6, 24, 33, 31)), packed((6, 24, 33, 31))
    step = Step("mode", elementwise=True)
    inputs = [(q + i, p - i) for i in range(8)]
    expected = [cpp.forward(q, p, None, step) for q, p in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda qp: cpp.forward(*qp, None, step), inputs))
            for outputs, right in zip(found, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(outputs, right, strict=True) if b is not None)


Q, HALF = torch.zeros(2, 4, 3), torch.zeros(2, 2, 3)
MODE = Step("mode")
WRONG = {
    "q": (torch.zeros(2, 3, 3), None, None, MODE, {}, r"q must be .*got \(2, 3, 3\)"),
    "p": (Q, torch.zeros(3, 4, 3), None, MODE, {}, r"p must have shape \(2, 4, 3\), .*got \(3, 4, 3\)"),
    "dtype": (Q, Q.int(), None, MODE, {}, "must be one of torch.float16, .*got torch.int32"),
    "no noise": (Q, None, None, Step("noise"), {}, "'noise' needs a source"),
    "noise": (Q, None, Q, Step("noise"), {}, r"noise must have shape \(2, 2, 3\), got \(2, 4, 3\)"),
    "seed": (Q, None, HALF, Step("seed"), {}, "seed must be one int64 element, got torch.float32"),
    "window": (Q, None, None, Step("mode", window=(0, 1, 0, 4)), {}, r"1 rows and 3 columns, got \(0, 1, 0, 4\)"),
    "gradient": (Q, None, None, MODE, {"kl_spatial": torch.zeros(2, 4)}, r"kl_spatial must be .* shape \(2, 3\)"),
    "gradient's dtype": (Q, None, None, MODE, {"z": HALF.double()}, "z must be torch.float32 .*got torch.float64"),
    "gradient of no KL": (Q, None, None, Step("mode", "none"), {"kl_samplewise": Q}, "has no kl_samplewise"),
    "gradient of no window": (Q, None, None, MODE, {"kl_samplewise_restricted": Q}, "no kl_samplewise_restricted"),
    "gradient of a given z": (Q, None, HALF, Step("latent"), {"z": HALF}, "the step has no z"),
}


@pytest.mark.parametrize(("q", "p", "source", "step", "grads", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_never_reaches_the_library(q, p, source, step, grads, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cpp.backward(q, p, source, step, StepGrads(**grads), (True, False, False))
    if not grads:
        with pytest.raises((ValueError, TypeError), match=message):
            cpp.forward(q, p, source, step)


def run(step, q, p, source, grads, needs=(True, True, True)):
    """Outputs and gradients by name, those that are there."""
    outputs = cpp.forward(q, p, source, step)
    found = cpp.backward(q, p, source, step, grads, needs)
    named = {**outputs._asdict(), **dict(zip(("grad_q", "grad_p", "grad_latent"), found, strict=True))}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def ones(**shapes):
    return StepGrads(**{name: torch.ones(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("draw", ["seed", "latent"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("p_batch", [3, 1], ids=["learned", "batch 1"])
def test_the_element_order_is_the_one_given_whatever_the_strides_of_q(draw, channels_last, p_batch):
    """A saved q may come back from a pack hook with other strides than the forward pass saw."""
    shape = (3, 6, 5, 9)
    given, other = torch.contiguous_format, torch.channels_last
    if channels_last:
        given, other = other, given
    q, p, latent = packed(shape), packed(shape, batch=p_batch), torch.randn(shape)
    source = torch.tensor(7) if draw == "seed" else latent
    step = Step(draw, window=(1, 4, 2, 7), elementwise=True, channels_last=channels_last)
    incoming = random_incoming(shape, oracle.OUTPUTS[draw == "latent" :])
    grads = StepGrads(**incoming)
    results = []
    for layout in (given, other):
        laid_out = [x.contiguous(memory_format=layout) if x.dim() == 4 else x for x in (q, p, source)]
        results.append(run(step, *laid_out, grads, (True, True, draw == "latent")))
    expected, found = results
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        assert value.stride() == expected[name].stride(), name
        assert value.dim() < 4 or value.is_contiguous(memory_format=given), name


def test_outputs_of_a_single_position_have_the_strides_of_the_order_given():
    q = packed((2, 3, 1, 1))
    z = cpp.forward(q, None, None, Step("mode", kl="none", channels_last=True)).z
    assert z.stride() == torch.empty(6).view(2, 1, 1, 3).movedim(-1, 1).stride()


@pytest.mark.parametrize("draw", ["seed", "noise", "latent", "mode"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kl_the_rest_is_that_of_a_step_with_one(draw, kind):
    shape = (3, 5, 17, 33)
    q, noise = packed(shape), torch.randn(shape)
    source = {"seed": torch.tensor(7), "noise": noise, "latent": noise, "mode": None}[draw]
    step = Step(draw, variance=VarianceMap(kind, raw_max=1.0), temperature=0.7)
    incoming = random_incoming(shape, ("z", "logprob_q")[draw == "latent" :])
    needs = (True, False, draw == "latent")
    expected = run(step, q, None, source, StepGrads(**incoming), needs)
    found = run(step._replace(kl="none"), q, None, source, StepGrads(**incoming), needs)
    assert found.keys() == {name for name in expected if not name.startswith("kl")}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)], ids=str)
def test_without_a_kl_empty_tensors_have_empty_sums(shape):
    out = cpp.forward(
        packed(shape, batch=shape[0]) if shape[0] else torch.empty(0, 6, 4), None, None, Step("mode", "none")
    )
    assert out.logprob_q.tolist() == [0.0] * shape[0]
    assert out.logvar_max == -torch.inf


def at_one_element(mean, raw):
    return torch.tensor([mean, raw]).view(1, 2, 1)


# Raw parameters of one element of q and p, z or noise, the map, the KL, and the incoming gradients. In each, some
# product leaves the range of floats unless it is taken in the right order.
KL, LOG_Q = "kl_samplewise", "logprob_q"
EXTREMES = {
    "1 / std beyond the range": ((0.5, -190.0), (0.5, -185.0), "mode", None, "exp", "monte_carlo", {KL: 1.0}),
    "1 / std beyond the range, analytic": ((0.5, -190.0), (0.5, -185.0), "mode", None, "exp", "analytic", {KL: 1.0}),
    "variances beyond the range": ((0.0, 150.0), (0.0, 160.0), "noise", 0.3, "exp", "analytic", {KL: 1.0, "z": 1.0}),
    "a ratio of variances that underflows": ((0.0, -50.0), (0.0, 1e34), "mode", None, "stable", "analytic", {KL: 1.0}),
    "two variances beyond the range": ((0.0, 370.0), (0.0, 365.0), "mode", None, "exp", "analytic", {KL: 1.0}),
    "a square, halved last": ((1.5e19, 0.0), (0.0, 0.0), "mode", None, "exp", "monte_carlo", {KL: 1.9}),
    "a square, halved last, analytic": ((1.5e19, 0.0), (0.0, 0.0), "mode", None, "exp", "analytic", {KL: 1.9}),
    "a square of eps": ((0.0, -100.0), (0.0, 0.0), "latent", 0.1, "exp", "monte_carlo", {LOG_Q: 1e-6}),
    "an eps that nothing flows through": ((1.0, -110.0), (0.7, 1.35), "latent", 0.0, "exp", "analytic", {KL: 1.0}),
    "logstd, 1 / std beyond the range": ((0.5, -100.0), (0.5, -98.0), "mode", None, "logstd", "monte_carlo", {KL: 1.0}),
    "logstd, 1 / std beyond it, analytic": ((0.5, -100.0), (0.5, -98.0), "mode", None, "logstd", "analytic", {KL: 1.0}),
    "logstd, two stds beyond the range": ((0.5, 100.0), (0.25, 98.0), "mode", None, "logstd", "analytic", {KL: 1.0}),
    "softplus, a std that underflows": ((0.5, -300.0), (0.5, 2.0), "mode", None, "softplus", "monte_carlo", {KL: 1.0}),
    "softplus, two of them": ((0.5, -300.0), (0.5, -298.0), "mode", None, "softplus", "analytic", {KL: 1.0}),
    "softplus, a denormal std": ((0.0, -80.0), (0.0, -90.0), "noise", 0.3, "softplus", "analytic", {KL: 1.0, "z": 1.0}),
    "softplus, 1e4": ((0.5, 1e4), (0.25, 1.0), "noise", 0.3, "softplus", "monte_carlo", {KL: 1.0, "z": 1.0}),
    "softplus, 1e4, analytic": ((0.5, 1e4), (0.25, 5e3), "mode", None, "softplus", "analytic", {KL: 1.0}),
    "softplus, 1e30": ((0.5, 1e30), (0.25, 1.0), "mode", None, "softplus", "monte_carlo", {KL: 1.0, LOG_Q: 1.0}),
    "a std that nothing flows through": ((0.0, 180.0), (0.0, 180.0), "noise", 0.0, "exp", "analytic", {KL: 1.0}),
}


@pytest.mark.parametrize(("q", "p", "draw", "value", "kind", "kl", "incoming"), EXTREMES.values(), ids=EXTREMES)
def test_values_and_gradients_are_finite_where_the_truth_is(q, p, draw, value, kind, kl, incoming):
    q, p = at_one_element(*q), at_one_element(*p)
    source = None if value is None else torch.full((1, 1, 1), value)
    variance = VarianceMap(kind)
    step = Step(draw, kl, variance)
    shapes = {"z": (1, 1, 1), KL: (1,), LOG_Q: (1,)}
    grads = {name: torch.full(shapes[name], grad) for name, grad in incoming.items()}
    found = run(step, q, p, source, StepGrads(**grads), (True, True, draw == "latent"))

    leaves = {"q_params": q, "p_params": p} | ({draw: source} if draw == "latent" else {})
    exact = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    more = {"noise": source.double()} if draw == "noise" else {}
    outputs = oracle.step(**exact, **more, mode=draw == "mode", variance=variance, analytical_kl=kl == "analytic")
    expected = oracle.gradients(outputs, list(exact.values()), grads)
    truths = {name: outputs[name].detach() for name in (KL, LOG_Q)}
    truths |= dict(zip(("grad_q", "grad_p", "grad_latent"), expected, strict=False))
    for name, truth in truths.items():
        value = found.get(name, torch.zeros(()))
        torch.testing.assert_close(value.expand(truth.shape), truth.float(), rtol=3e-6, atol=0.0)


# Where float64 has no std either: log_var and its slope are known.
@pytest.mark.parametrize("kl", ["monte_carlo", "analytic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "slope"), [("exp", 1.0), ("logstd", 2.0), ("softplus", 2.0)])
def test_two_stds_far_below_the_range_are_equal(kind, slope, dtype, kl):
    q = at_one_element(0.5, -1e4).to(dtype)
    step = Step("mode", kl, VarianceMap(kind))
    found = run(step, q, q.clone(), None, StepGrads(kl_samplewise=torch.ones(1, dtype=dtype)), (True, True, False))
    assert found[KL].item() == 0.0
    assert found[LOG_Q].item() == pytest.approx(0.5e4 * slope - 0.5 * math.log(2 * math.pi), rel=1e-6)
    grad_raw = 0.5 * slope if kl == "monte_carlo" else 0.0
    assert found["grad_q"].flatten().tolist() == [0.0, -grad_raw]
    assert found["grad_p"].flatten().tolist() == [0.0, grad_raw]


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_variance_that_nothing_flows_through_may_be_nan(kind):
    q = at_one_element(0.5, torch.nan)
    for step, source in (
        (Step("mode", variance=VarianceMap(kind)), None),
        (Step("noise", "none", variance=VarianceMap(kind)), torch.ones(1, 1, 1)),
    ):
        grads = ones(z=(1, 1, 1)) if step.draw == "mode" else StepGrads()
        grad_q, _, _ = cpp.backward(q, None, source, step, grads, (True, False, False))
        assert grad_q.flatten().tolist() == [1.0 if step.draw == "mode" else 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_gradient_passes_up_to_the_clamp_and_at_it(dtype):
    bound = 20.1
    at = torch.tensor(bound, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    above, below = at.nextafter(at + 1), torch.tensor(20.0)
    raws = [below, above, at, torch.tensor(torch.nan)]
    passes = [True, False, True, None]
    if dtype == torch.bfloat16:  # which has no such bound
        raws, passes = [below, torch.tensor(20.125)], [True, False]
    q = torch.stack([torch.zeros(len(raws)), torch.stack([raw.to(dtype) for raw in raws])]).to(dtype).unsqueeze(0)
    step = Step("mode", variance=VarianceMap("stable", raw_max=bound))
    grads = StepGrads(kl_samplewise=torch.ones(1, dtype=compute_dtype(q)))
    grad_q, _, _ = cpp.backward(q, None, None, step, grads, (True, False, False))
    for grad, expected in zip(grad_q[0, 1].tolist(), passes, strict=True):
        assert grad != grad if expected is None else (grad != 0) == expected


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


SUMS = """
import torch
from tests.test_cpp import step_and_gradients
torch.save([t.detach() for t in step_and_gradients((2, 5, 9, 8), 2)], {path!r})
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same_numbers(capability, tmp_path):
    path = str(tmp_path / "values.pt")
    result = python(SUMS.format(path=path), ATEN_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr
    for value, expected in zip(torch.load(path), step_and_gradients((2, 5, 9, 8), 2), strict=True):
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-4)
