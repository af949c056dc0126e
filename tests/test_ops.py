"""The registered operators: their schemas, their fake outputs, their autograd, and the eager call's numbers."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ladder_kernels import normal_sample, normal_sample_kl, ops
from ladder_kernels.backends.step import Step, StepGrads
from ladder_kernels.geometry import is_channels_last
from ladder_kernels.variance import VarianceMap
from tests.inputs import channels_last, gradients_of, sliced
from tests.pairwise import covering_rows

pytestmark = pytest.mark.usefixtures("fresh_compiler")


SOURCES = {
    "noise": lambda: torch.randn(2, 3, 4, 4),
    "latent": lambda: torch.randn(2, 3, 4, 4, requires_grad=True),
    "seed": lambda: torch.tensor(5),
    "mode": lambda: None,
}


LAYOUTS = {
    "nchw": lambda t: t,
    "channels_last": channels_last,
    "slice": sliced,
    "transposed space": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}


FACTORS = {
    "layouts": [
        ("nchw", "nchw"),
        ("channels_last", "channels_last"),
        ("channels_last", "nchw"),
        ("nchw", "channels_last"),
        ("slice", "transposed space"),
        ("transposed space", "slice"),
    ],
    "draw": list(SOURCES),
    "prior": ["learned", "batch 1", "standard"],
}


@pytest.mark.parametrize(
    tuple(FACTORS),
    [tuple(row[name] for name in FACTORS) for row in covering_rows(FACTORS, lambda row: True)],
    ids=str,
)
def test_opcheck(backend, layouts, draw, prior):
    """Schema, fake outputs and gradients, autograd; of the backward pass their strides as well."""
    layout, p_layout = layouts
    q = LAYOUTS[layout](torch.randn(2, 6, 4, 6)).detach().requires_grad_()
    p = None
    if prior != "standard":
        p = LAYOUTS[p_layout](torch.randn(1 if prior == "batch 1" else 2, 6, 4, 6)).detach().requires_grad_()
    source = SOURCES[draw]()
    if draw in ("noise", "latent"):
        source = LAYOUTS[p_layout](torch.randn(2, 3, 4, 6)).requires_grad_(draw == "latent")
    window, kl = (1, 3, 1, 5), "none" if prior == "standard" and draw != "mode" else "monte_carlo"
    last = is_channels_last(q)
    step = Step(
        draw,
        kl,
        variance=VarianceMap("stable", raw_max=20.0),
        window=window,
        elementwise=draw != "seed",
        channels_last=last,
    )
    # Recompiling under symbolic shapes is tested apart: it takes seconds.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.ladder_kernels.step.default, (q, p, source, *ops.arguments(step, backend)), test_utils=tests
    )
    check_backward(q, p, source, step, backend)


def check_backward(q, p, source, step, backend):
    grads = StepGrads(
        z=None if step.draw == "latent" else torch.randn(2, 3, 4, 6),
        kl_samplewise=None if step.kl == "none" else torch.randn(2),
        logprob_q=torch.randn(2),
    )
    needs = (True, p is not None and step.kl != "none", step.draw == "latent")
    given = [None if x is None else x.detach() for x in (q, p, source)]
    operator = torch.ops.ladder_kernels.step_backward.default
    arguments = (*given, *ops.arguments(step, backend), *needs, *grads)
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode:  # opcheck compares no strides
        fake = operator(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments))
    assert [x.stride() for x in fake] == [x.stride() for x in operator(*arguments)]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_opcheck_under_symbolic_shapes(backend, layout):
    q = LAYOUTS[layout](torch.randn(2, 6, 4, 6)).detach().requires_grad_()
    p = torch.randn(2, 6, 4, 6, requires_grad=True)
    step = Step("noise", window=(1, 3, 1, 5), elementwise=True, channels_last=is_channels_last(q))
    torch.library.opcheck(
        torch.ops.ladder_kernels.step.default, (q, p, torch.randn(2, 3, 4, 6), *ops.arguments(step, backend))
    )


def test_opcheck_of_the_sample(backend):
    q = torch.randn(2, 6, 4, 4, requires_grad=True)
    arguments = ops.arguments(Step("seed", kl="none", temperature=0.5), backend)
    torch.library.opcheck(torch.ops.ladder_kernels.sample.default, (q, torch.tensor(1), *arguments))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_fake_tensors_have_the_real_ones_shapes_and_strides(backend, layout):
    q = LAYOUTS[layout](torch.randn(2, 6, 4, 6))
    real = (*normal_sample_kl(q, q, elementwise=True), normal_sample(q))
    with FakeTensorMode() as mode:
        fake_q = mode.from_tensor(q)
        fake = (*normal_sample_kl(fake_q, fake_q, elementwise=True), normal_sample(fake_q))
    for found, expected in zip(fake, real, strict=True):
        assert isinstance(found, FakeTensor)
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("draw", SOURCES)
def test_the_operator_gives_the_eager_numbers(backend, draw):
    q, p = (torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2))
    source = SOURCES[draw]()
    step = Step(draw, variance=VarianceMap("stable", raw_max=20.0), window=(1, 3, 1, 3), elementwise=True)
    outputs = ops.Operators(backend).forward(q, p, source, step)
    eager = normal_sample_kl(
        q,
        p,
        variance=VarianceMap("stable", raw_max=20.0),
        window=2,
        elementwise=True,
        **{draw: True if draw == "mode" else source},
    )
    expected = [out for out in eager if out is not None and out.requires_grad and out is not source]
    leaves = [q, p] + ([source] if draw == "latent" else [])
    outputs = [out for out in outputs if out is not None and out.requires_grad]
    for out, want in zip(outputs, expected, strict=True):
        assert torch.equal(out, want)
    for grad, want in zip(gradients_of(outputs, leaves), gradients_of(expected, leaves), strict=True):
        torch.testing.assert_close(grad, want)
