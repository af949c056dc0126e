"""torch.compile, export, torch.func and checkpointing: what wraps the step gets the numbers of the plain call."""

import contextlib
import io
import threading

import pytest
import torch
import torch._dynamo.testing
from careamics.models.lvae.lvae import LadderVAE
from onnx.reference import ReferenceEvaluator
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ladder_kernels import NormalStochasticBlock, normal_sample, normal_sample_kl, ops, patch_model, use_backend
from ladder_kernels.backends import select
from ladder_kernels.backends.step import Step
from ladder_kernels.geometry import is_channels_last
from ladder_kernels.variance import KINDS, VarianceMap
from tests.conftest import BACKENDS
from tests.test_paths import channels_last, sliced

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


@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_inductor_gives_the_eager_numbers_and_draws(backend, rng):
    """Values, gradients and what is drawn, now and next: Inductor would make other random numbers than ATen."""
    block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=2, rng=rng)
    leaves = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2)]

    def call(p, q):
        out, data = block(p, q, var_clip_max=20.0)
        return out, *(data[key] for key in STEP_OUTPUTS)

    assert_same(call, torch.compile(call, fullgraph=True), leaves, [*leaves, *block.parameters()])


def test_a_compiled_prediction_is_one_graph(backend):
    call, inputs, _ = block_call({"mode_pred": True})
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.manual_seed(0)
        expected = call(*inputs)
        torch.manual_seed(0)
        for out, want in zip(compiled(*inputs), expected, strict=True):
            torch.testing.assert_close(out, want)


def test_all_of_the_data_survives_compilation(backend):
    block = NormalStochasticBlock(4, 3, 4)
    p, q = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call():
        _, data = block(p, q)
        return data["kl_elementwise"], data["kl_samplewise"], data["q_params"][1].get_std()

    elementwise, samplewise, std = call()
    torch.testing.assert_close(elementwise.flatten(1).sum(1), samplewise)
    assert std.shape == (2, 3, 8, 8)


def test_a_compiled_prediction_computes_p_only_for_its_reader(backend):
    block = NormalStochasticBlock(4, 3, 4)
    p, q, graphs = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    def call(read):
        _, data = block(p, q, mode_pred=True)
        return (data["z"], data["p_params"][0].get()) if read else (data["z"],)

    with torch.no_grad():
        for read in (False, True):
            torch._dynamo.reset()
            compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
            found = compiled(read)
            if read:
                torch.testing.assert_close(found[1], block.conv_in_p(p)[:, :3])
    convolutions = [sum("convolution" in str(node.target) for node in graph.graph.nodes) for graph in graphs]
    assert convolutions == [1, 2]


def test_another_backend_is_another_graph():
    params = torch.randn(1, 4, 3)
    compiled = torch.compile(lambda x: normal_sample(x, seed=torch.tensor(3)), fullgraph=True, backend="aot_eager")
    for name in BACKENDS:
        with use_backend(name):
            torch.testing.assert_close(compiled(params), normal_sample(params, seed=3))


def test_a_graph_keeps_to_the_backend_forced_in_its_own_thread(monkeypatch):
    params, served = torch.randn(1, 4, 3), []
    compiled = torch.compile(lambda x: normal_sample(x, seed=torch.tensor(3)), fullgraph=True, backend="aot_eager")
    for name in ("cpp", "triton"):
        module = select.load(name)
        original = module.sample
        monkeypatch.setattr(
            module, "sample", lambda *args, name=name, original=original: served.append(name) or original(*args)
        )

    def run(name):
        with use_backend(name):
            compiled(params)

    with use_backend("cpp"):
        thread = threading.Thread(target=run, args=("triton",))
        thread.start()
        thread.join()
        compiled(params)
    assert served == ["triton", "cpp"]


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


@pytest.mark.parametrize("draw", SOURCES)
@pytest.mark.parametrize(
    ("layout", "p_layout"),
    [
        ("nchw", "nchw"),
        ("channels_last", "channels_last"),
        ("channels_last", "nchw"),
        ("nchw", "channels_last"),
        ("slice", "transposed space"),
        ("transposed space", "slice"),
    ],
)
@pytest.mark.parametrize("prior", ["learned", "batch 1", "standard"])
def test_opcheck(backend, draw, layout, p_layout, prior):
    """Schema, fake outputs and gradients with the real ones' strides, autograd."""
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
        draw, kl, variance=VarianceMap(raw_max=20.0), window=window, elementwise=draw != "seed", channels_last=last
    )
    # Recompiling under symbolic shapes is tested apart: it takes seconds.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.ladder_kernels.step.default, (q, p, source, *ops.arguments(step, backend)), test_utils=tests
    )
    check_backward(q, p, source, step, backend)


def check_backward(q, p, source, step, backend):
    grads = [torch.randn(2, 3, 4, 6), *[None] * 7]
    if step.draw == "latent":
        grads[0] = None
    needs = (True, p is not None, step.draw == "latent")
    given = [None if x is None else x.detach() for x in (q, p, source)]
    torch.library.opcheck(
        torch.ops.ladder_kernels.step_backward.default,
        (*given, *grads, *needs, *ops.arguments(step, backend)),
        test_utils=("test_schema", "test_faketensor"),
    )


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


def count_graphs():
    return torch._dynamo.testing.CompileCounterWithBackend("aot_eager")


def test_one_dynamic_graph_serves_every_batch_and_size(backend):
    def call(q, p):
        step = normal_sample_kl(q, p, variance=VarianceMap("softplus"), vanilla_latent_hw=4, elementwise=True)
        return (*step[:6], step.kl_elementwise)

    counter = count_graphs()
    compiled, counts = torch.compile(call, fullgraph=True, backend=counter, dynamic=True), []
    for batch, side in ((2, 8), (3, 16), (4, 12)):
        inputs = [torch.randn(batch, 6, side, side, requires_grad=True) for _ in range(2)]
        assert_same(call, compiled, inputs, inputs)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


@pytest.mark.parametrize("source", [{"seed": 3}, {"noise": torch.randn(1, 2, 4, 4)}], ids=["seed", "noise"])
def test_an_annealed_temperature_is_two_graphs(backend, source):
    counter, q = count_graphs(), torch.randn(1, 4, 4, 4)
    compiled = torch.compile(lambda t: normal_sample(q, temperature=t, **source), fullgraph=True, backend=counter)
    for temperature in (0.9, 0.8, 0.7, 0.6, 0.5):
        torch.testing.assert_close(compiled(temperature), normal_sample(q, temperature=temperature, **source))
    assert counter.frame_count <= 2


def test_an_export_with_dynamic_batch_and_size_serves_them(backend):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=2)

        def forward(self, p, q):
            out, data = self.block(p, q)
            return out, data["z"], data["kl_samplewise"], data["kl_samplewise_restricted"]

    batch, half = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("half", min=2, max=64)
    shapes, model = {0: batch, 2: 2 * half}, Model()
    inputs = (torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8))
    program = torch.export.export(model, inputs, dynamic_shapes=(shapes, shapes)).module()
    for batch, height in ((2, 8), (5, 12)):
        p, q = torch.randn(batch, 4, height, 8), torch.randn(batch, 4, height, 8)
        torch.manual_seed(0)
        expected = model(p, q)
        torch.manual_seed(0)
        for out, want in zip(program(p, q), expected, strict=True):
            torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


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


class Prediction(torch.nn.Module):
    """A block in prediction; its output alone, as writers of files want it."""

    def __init__(self):
        super().__init__()
        self.block = NormalStochasticBlock(4, 3, 4)

    def forward(self, p, q):
        return self.block(p, q, mode_pred=True)[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_prediction_can_be_saved(backend):
    model, inputs, file = Prediction().eval(), (torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    torch.manual_seed(0)
    expected = model(*inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(loaded(*inputs), expected)


def test_onnx_has_the_plain_formula(backend):
    """The mean, because a random number of ONNX is another one than torch's."""

    class Mean(Prediction):
        def forward(self, p, q):
            out, data = self.block(p, q, mode_pred=True, use_uncond_mode=True)
            return out, data["logprob_q"]

    model, inputs = Mean().eval(), (torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8))
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    for out, want in zip(
        ReferenceEvaluator(program.model_proto).run(None, feed(program, inputs)), model(*inputs), strict=True
    ):
        torch.testing.assert_close(torch.from_numpy(out), want.detach(), rtol=1e-4, atol=1e-4)
    torch.onnx.export(Prediction().eval(), inputs, dynamo=True, verbose=False)


def feed(program, inputs):
    """The inputs that the file kept, by name."""
    by_name = dict(zip(("p", "q"), inputs, strict=True))
    return {value.name: by_name[value.name].numpy() for value in program.model_proto.graph.input}


@pytest.mark.parametrize("draw", SOURCES)
def test_the_operator_gives_the_eager_numbers(backend, draw):
    q, p = (torch.randn(2, 6, 4, 4, requires_grad=True) for _ in range(2))
    source = SOURCES[draw]()
    step = Step(draw, variance=VarianceMap(raw_max=20.0), window=(1, 3, 1, 3), elementwise=True)
    outputs = [out for out in ops.step(q, p, source, step, backend) if out is not None and out.requires_grad]
    eager = normal_sample_kl(
        q,
        p,
        variance=VarianceMap(raw_max=20.0),
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


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_goes_through_the_plain_formula(backend, kind):
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)

    def loss(q, p, noise):
        step = normal_sample_kl(q, p, noise=noise, variance=VarianceMap(kind))
        return step.kl_samplewise.sum() + normal_sample(q, noise=noise, variance=VarianceMap(kind)).sum()

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, p, noise), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(q, p, noise), expected)
    stacked = torch.func.vmap(lambda q, p, noise: loss(q[None], p[None], noise[None]))(q, p, noise)
    torch.testing.assert_close(stacked.sum(), loss(q, p, noise))


TRANSFORMS = {
    "jvp": lambda f, q: torch.func.jvp(f, (q,), (torch.ones_like(q),))[1],
    "grad": lambda f, q: torch.func.grad(f)(q).sum(),
    "jacrev": lambda f, q: torch.func.jacrev(f)(q).sum(),
    "jacfwd": lambda f, q: torch.func.jacfwd(f)(q).sum(),
    "vmap of grad": lambda f, q: torch.func.vmap(torch.func.grad(f))(q[None]).sum(),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_compiled_or_not_have_the_gradient(backend, transform, compiled):
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)

    def loss(q):
        return normal_sample_kl(q, p, noise=noise).kl_samplewise.sum() + normal_sample(q, noise=noise).square().sum()

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)

    def run(q):
        return TRANSFORMS[transform](loss, q)

    found = torch.compile(run, backend="aot_eager")(q) if compiled else run(q)
    torch.testing.assert_close(found, expected.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_duals_carry_their_tangent(backend, kind):
    variance = VarianceMap(kind)
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    tangent, leaf = torch.randn(2, 6, 4), q.clone().requires_grad_()
    weights = torch.randn(2)
    (grad,) = torch.autograd.grad(
        normal_sample_kl(leaf, p, noise=noise, variance=variance).kl_samplewise, leaf, weights
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, tangent)
        step = normal_sample_kl(dual, p, noise=noise, variance=variance)
        found = forward_ad.unpack_dual(step.kl_samplewise).tangent
    torch.testing.assert_close((found * weights).sum(), (grad * tangent).sum(), rtol=1e-4, atol=1e-4)


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


def test_compiled_autograd_gives_the_eager_gradients():
    """Of the native nodes, which it calls; those in Python it traces, and refuses."""
    q = torch.randn(2, 6, 4, 6, requires_grad=True)
    grads = []
    for compiled in (False, True):
        step = normal_sample_kl(q, None, seed=3)
        context = torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))
        with context if compiled else contextlib.nullcontext():
            grads += torch.autograd.grad((step.z, step.kl_samplewise), q, (step.z.detach(), torch.tensor([0.3, -1.2])))
    torch.testing.assert_close(*grads)
