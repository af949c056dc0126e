"""torch.compile, export, torch.func and checkpointing: what wraps the step gets the numbers of the plain call."""

import pytest
import torch
from careamics.models.lvae.lvae import LadderVAE
from torch.utils.checkpoint import checkpoint

from ladder_kernels import NormalStochasticBlock, normal_sample, normal_sample_kl, ops, patch_model, use_backend
from ladder_kernels.backends.step import Step
from tests.conftest import BACKENDS

STEP_OUTPUTS = ("z", "kl_samplewise", "kl_samplewise_restricted", "kl_channelwise", "kl_spatial", "logprob_q")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients_of(outputs, leaves):
    generator = torch.Generator().manual_seed(3)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    return torch.autograd.grad(loss, leaves)


def block_call(options):
    block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=4)
    leaves = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2)]

    def call(p, q):
        out, data = block(p, q, var_clip_max=20.0, **options)
        return out, *(data[key] for key in STEP_OUTPUTS if data[key] is not None)

    return call, leaves, [*leaves, *block.parameters()]


def assert_same(call, compiled, inputs, leaves):
    torch.manual_seed(0)
    expected = call(*inputs)
    torch.manual_seed(0)
    outputs = compiled(*inputs)
    for out, want in zip(outputs, expected, strict=True):
        assert out.stride() == want.stride()
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    used = [leaf for leaf in leaves if leaf.requires_grad]
    for grad, want in zip(gradients_of(outputs, used), gradients_of(expected, used), strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"analytical_kl": True}], ids=["mc", "analytic"])
def test_a_compiled_block_is_one_graph(backend, options):
    call, inputs, leaves = block_call(options)
    assert_same(call, torch.compile(call, fullgraph=True, backend="aot_eager"), inputs, leaves)


def test_inductor_compiles_the_step(backend):
    leaves, noise = [torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2)], torch.randn(2, 3, 4, 4)

    def call(q, p):
        return normal_sample_kl(q, p, noise=noise, logvar_max=20.0, vanilla_latent_hw=2)[:6]

    assert_same(call, torch.compile(call, fullgraph=True), leaves, leaves)


def test_a_compiled_prediction_is_one_graph(backend):
    call, inputs, _ = block_call({"mode_pred": True})
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.manual_seed(0)
        expected = call(*inputs)
        torch.manual_seed(0)
        for out, want in zip(compiled(*inputs), expected, strict=True):
            torch.testing.assert_close(out, want)


def test_the_lazy_values_survive_compilation(backend):
    block = NormalStochasticBlock(4, 3, 4)
    p, q = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call():
        _, data = block(p, q)
        return data["kl_elementwise"], data["kl_samplewise"], data["q_params"][1].get_std()

    elementwise, samplewise, std = call()
    torch.testing.assert_close(elementwise.flatten(1).sum(1), samplewise)
    assert std.shape == (2, 3, 8, 8)


def test_another_backend_is_another_graph():
    params = torch.randn(1, 4, 3)
    compiled = torch.compile(lambda x: normal_sample(x, seed=torch.tensor(3)), fullgraph=True, backend="aot_eager")
    for name in BACKENDS:
        with use_backend(name):
            torch.testing.assert_close(compiled(params), normal_sample(params, seed=3))


SOURCES = {
    "noise": lambda: torch.randn(2, 3, 4, 4),
    "latent": lambda: torch.randn(2, 3, 4, 4, requires_grad=True),
    "seed": lambda: torch.tensor(5),
    "mode": lambda: None,
}


@pytest.mark.parametrize("draw", SOURCES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("prior", ["learned", "batch 1", "standard"])
def test_opcheck(backend, draw, layout, prior):
    q = torch.randn(2, 6, 4, 4).contiguous(memory_format=layout).requires_grad_()
    p = None if prior == "standard" else torch.randn(1 if prior == "batch 1" else 2, 6, 4, 4, requires_grad=True)
    step = Step(draw, logvar_max=20.0, window=(1, 3, 1, 3), elementwise=draw != "seed")
    torch.library.opcheck(torch.ops.ladder_kernels.step.default, (q, p, SOURCES[draw](), *ops.arguments(step, backend)))


def test_opcheck_of_the_sample(backend):
    q = torch.randn(2, 6, 4, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.ladder_kernels.sample.default, (q, torch.tensor(1), *ops.arguments(Step("seed"), backend)))


@pytest.mark.parametrize("draw", SOURCES)
def test_the_operator_gives_the_eager_numbers(backend, draw):
    q, p = (torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2))
    source = SOURCES[draw]()
    step = Step(draw, logvar_max=20.0, window=(1, 3, 1, 3), elementwise=True)
    outputs = [out for out in ops.step(q, p, source, step, backend) if out is not None and out.requires_grad]
    eager = normal_sample_kl(
        q,
        p,
        logvar_max=20.0,
        vanilla_latent_hw=2,
        elementwise=True,
        **{draw: True if draw == "mode" else source},
    )
    expected = [out for out in eager if out is not None and out.requires_grad and out is not source]
    leaves = [q, p] + ([source] if draw == "latent" else [])
    for out, want in zip(outputs, expected, strict=True):
        assert torch.equal(out, want)
    for grad, want in zip(gradients_of(outputs, leaves), gradients_of(expected, leaves), strict=True):
        torch.testing.assert_close(grad, want)


def test_export_keeps_the_step(backend):
    block = NormalStochasticBlock(4, 3, 4)
    p, q = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    latent = torch.randn(2, 3, 8, 8)

    class Metrics(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, p, q):
            out, data = self.block(p, q, forced_latent=latent)
            return out, data["kl_samplewise"]

    program = torch.export.export(Metrics(), (p, q))
    for out, want in zip(program.module()(p, q), Metrics()(p, q), strict=True):
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_checkpointing_gives_the_same_bits(backend, use_reentrant, rng):
    block = NormalStochasticBlock(4, 3, 4, rng=rng)
    p, q = (torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2))

    def call(p, q):
        out, data = block(p, q)
        return out, data["kl_samplewise"]

    torch.manual_seed(0)
    expected = call(p, q)
    torch.manual_seed(0)
    outputs = checkpoint(call, p, q, use_reentrant=use_reentrant)
    assert all(torch.equal(out, want) for out, want in zip(outputs, expected, strict=True))
    grads = []
    for results in (outputs, expected):
        generator = torch.Generator().manual_seed(3)
        block.zero_grad()
        p.grad = q.grad = None
        sum((out * torch.randn(out.shape, generator=generator)).sum() for out in results).backward()
        grads.append([leaf.grad.clone() for leaf in (p, q, *block.parameters())])
    assert all(torch.equal(grad, want) for grad, want in zip(*grads, strict=True))


def test_torch_func_goes_through_the_plain_formula(backend):
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)

    def loss(q, p, noise):
        step = normal_sample_kl(q, p, noise=noise)
        return step.kl_samplewise.sum() + normal_sample(q, noise=noise).sum()

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, p, noise), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(q, p, noise), expected)
    _, tangent = torch.func.jvp(lambda x: loss(x, p, noise), (q,), (torch.ones_like(q),))
    torch.testing.assert_close(tangent, expected.sum())
    stacked = torch.func.vmap(lambda q, p, noise: loss(q[None], p[None], noise[None]))(q, p, noise)
    torch.testing.assert_close(stacked.sum(), loss(q, p, noise))


@pytest.fixture(scope="module")
def model():
    model = LadderVAE(
        input_shape=(16, 16),
        output_channels=1,
        multiscale_count=1,
        z_dims=[4, 4],
        encoder_n_filters=8,
        decoder_n_filters=8,
        encoder_conv_strides=[2, 2],
        decoder_conv_strides=[2, 2],
        encoder_dropout=0.0,
        decoder_dropout=0.0,
        nonlinearity="ELU",
        predict_logvar="pixelwise",
        analytical_kl=False,
    )
    patch_model(model)
    return model.eval()


def test_every_stochastic_layer_of_a_patched_ladder_vae_compiles_into_one_graph(backend, model):
    """The top-down layers, stochastic blocks and what lies around them."""
    x = torch.randn(2, 1, 16, 16)

    def top_down(bu_values):
        out, data = model.topdown_pass(bu_values)
        return out, *data["kl"], *data["kl_restricted"], *data["z"], *data["debug_qvar_max"]

    with torch.no_grad():
        bu_values = model.bottomup_pass(x)
        torch.manual_seed(0)
        expected = top_down(bu_values)
        torch.manual_seed(0)
        outputs = torch.compile(top_down, fullgraph=True, backend="aot_eager")(bu_values)
    for out, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
