"""torch.compile: one graph, whose numbers, gradients and draws are those of the eager call."""

import contextlib
import functools
import threading

import pytest
import torch
import torch._dynamo.testing
from careamics.models.lvae.lvae import LadderVAE
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ladder_kernels import NormalStochasticBlock, normal_sample, normal_sample_kl, patch_model, use_backend
from ladder_kernels.backends import select
from ladder_kernels.noise import draw_seed
from ladder_kernels.variance import VarianceMap
from tests.conftest import BACKENDS
from tests.inputs import gradients_of

pytestmark = pytest.mark.usefixtures("fresh_compiler")


STEP_OUTPUTS = ("z", "kl_samplewise", "kl_samplewise_restricted", "kl_channelwise", "kl_spatial", "logprob_q")


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


def recomputes_all_but_convolutions(_, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if "conv" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("selective", [False, True], ids=["all", "selective"])
@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_a_checkpoint_inside_a_graph_draws_the_same_noise_again(backend, rng, selective):
    block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=2, rng=rng)
    leaves = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2)]
    options = {}
    if selective:
        of = functools.partial(create_selective_checkpoint_contexts, recomputes_all_but_convolutions)
        options["context_fn"] = of

    def step(p, q):
        out, data = block(p, q, var_clip_max=20.0)
        return out, *(data[key] for key in STEP_OUTPUTS)

    def call(p, q):
        return checkpoint(step, p, q, use_reentrant=False, **options)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(call, compiled, leaves, [*leaves, *block.parameters()])


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_inductors_own_cpp_calls_every_operator(name, monkeypatch):
    """A seed that is drawn, a window and a temperature, each way: what C++ passes is less than what Python does."""
    monkeypatch.setattr(torch._inductor.config, "cpp_wrapper", True)
    if hasattr(torch._inductor.config, "cpp_cache_precompile_headers"):
        monkeypatch.setattr(torch._inductor.config, "cpp_cache_precompile_headers", False)  # it takes a minute

    def call(q, p):
        source = {"seed": draw_seed(q.device)}
        step = normal_sample_kl(q, p, variance=VarianceMap(raw_max=20), window=2, temperature=0.5, **source)
        return *(out for out in step if out is not None and out.requires_grad), normal_sample(q)

    leaves = [torch.randn(2, 6, 4, 6, requires_grad=True) for _ in range(2)]
    with use_backend(name):
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


def test_a_compiled_prediction_does_not_compute_p(backend):
    block, graphs = NormalStochasticBlock(4, 3, 4), []
    p, q = torch.randn(2, 2, 4, 8, 8)

    def keep(graph, _):
        graphs.append(graph)
        return graph

    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
        _, data = compiled(p, q, mode_pred=True)
    (graph,) = graphs
    assert sum("convolution" in str(node.target) for node in graph.graph.nodes) == 2  # q's and the output's
    for read in (lambda: data["p_params"][0].get(), torch.compile(lambda: data["p_params"][1].get(), backend="eager")):
        with pytest.raises(RuntimeError, match="process_p_params"):
            read()


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


def count_graphs():
    return torch._dynamo.testing.CompileCounterWithBackend("aot_eager")


def test_one_dynamic_graph_serves_every_batch_and_size(backend):
    def call(q, p):
        *sums, _, elementwise = normal_sample_kl(q, p, variance=VarianceMap("softplus"), window=4, elementwise=True)
        return (*sums, elementwise)

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
