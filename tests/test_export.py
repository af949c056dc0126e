"""Programs that are written to a file: torch.export, AOTInductor's packages, torch.jit.trace, ONNX."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, normal_sample, normal_sample_kl
from ladder_kernels.variance import KINDS, VarianceMap

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_export_keeps_the_step(backend):
    class Metrics(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = NormalStochasticBlock(4, 3, 4)

        def forward(self, p, q, latent):
            out, data = self.block(p, q, forced_latent=latent)
            return out, data["kl_samplewise"]

    model, inputs = Metrics(), (*torch.randn(2, 2, 4, 8, 8), torch.randn(2, 3, 8, 8))
    program = torch.export.export(model, inputs)
    for out, want in zip(program.module()(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(out, want)


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


class Drawing(nn.Module):
    """A block that draws a seed; z and a KL."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.block = NormalStochasticBlock(4, 3, 4, conv_dims=dims, rng="philox")

    def forward(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        _, data = self.block(p, q)
        return data["z"], data["kl_samplewise"]


CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("example", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dims", [2, 3])
def test_an_exported_block_draws_in_the_memory_order_that_it_meets(backend, dims, example, dtype):
    """The order of the eager call, whatever the example's was, or that of the fake convolution while tracing.

    Of a 3D convolution the fake is contiguous; whether the real one is depends on its dtype.
    """
    model = Drawing(dims).to(dtype)
    features = [torch.randn(2, 4, 4, *[6] * (dims - 1), dtype=dtype) for _ in range(2)]
    last = [each.contiguous(memory_format=CHANNELS_LAST[dims]) for each in features]
    layouts = {"contiguous": tuple(features), "channels_last": tuple(last)}
    program = torch.export.export(model, layouts[example], strict=False).module()
    for given in layouts.values():
        expected, found = (drawn_with_gradients(module, given) for module in (model, program))
        for value, want in zip(found, expected, strict=True):
            torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4)
        assert found[0].stride() == expected[0].stride()


def drawn_with_gradients(module: nn.Module, given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    z, kl = module(*given)
    loss = (z * torch.linspace(-1, 1, z.numel(), dtype=z.dtype).view(z.shape)).sum() + (
        kl * kl.new_tensor([1, -2])
    ).sum()
    weights = dict(module.named_parameters())
    return z, kl, *torch.autograd.grad(loss, [weights["block.conv_in_q.weight"], weights["block.conv_in_p.weight"]])


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_sample_of_a_seed_has_the_order_of_the_tensor_given(backend, strict):
    class Sample(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return normal_sample(q, seed=7)

    q = torch.randn(2, 6, 4, 6)
    program = torch.export.export(Sample(), (q,), strict=strict).module()
    for given in (q, q.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(program(given), normal_sample(given, seed=7))


class Prediction(nn.Module):
    """A block in prediction; its output and a statistic."""

    def __init__(self, **call_options: Any) -> None:
        super().__init__()
        self.block, self._options = NormalStochasticBlock(4, 3, 4), call_options

    def forward(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        out, data = self.block(p, q, mode_pred=True, **self._options)
        return out, data["logprob_q"]


LOAD = """
import sys
import torch
import ladder_kernels

inputs, expected = torch.load(sys.argv[1])
package = torch._inductor.aoti_load_package(sys.argv[2])
torch.manual_seed(0)
torch.testing.assert_close(tuple(package(*inputs)), expected)
assert "careamics" not in sys.modules
"""


def test_a_package_of_aotinductor_draws_the_same_numbers_where_only_the_library_was_imported(tmp_path: Path) -> None:
    model, inputs = Prediction().eval(), tuple(torch.randn(2, 1, 4, 8, 8))
    with torch.no_grad():
        program = torch.export.export(model, inputs)
        # Compiling torch's headers ahead takes longer than everything else.
        slow = "precompile_headers"
        options = {f"aot_inductor.{slow}": False} if hasattr(torch._inductor.config.aot_inductor, slow) else {}
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2"), inductor_configs=options
        )
        torch.manual_seed(0)
        torch.save((inputs, model(*inputs)), tmp_path / "expected.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "expected.pt"), package]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr


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


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_in_double_precision_is_computed_in_it(backend, kind):
    def call(q: Tensor, p: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            normal_sample_kl(
                q, p, noise=noise, variance=VarianceMap(kind, raw_max=0.3), window=2, temperature=0.7, elementwise=True
            )
        )

    inputs = *torch.randn(2, 2, 6, 4, 6, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    traced = torch.jit.trace(call, inputs, check_trace=False)
    for found, want in zip(traced(*inputs), call(*inputs), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-11)  # a float32 constant: 1e-7


def test_onnx_has_the_plain_formula(backend):
    """The mean, because a random number of ONNX is another one than torch's."""
    model, inputs = Prediction(use_uncond_mode=True).eval(), (torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8))
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
