"""The likelihood of a noise model, upstream's and ours, forward and backward; `make bench`.

Two channels, for each a mixture of 3 Gaussians whose parameters have 2 coefficients: what denoiSplit trains with.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.kernels.cases import GPU
from bench.kernels.run import Row
from bench.measure.counts import count
from bench.measure.timing import Stages, spread, synchronize
from bench.report.results import OK
from ladder_kernels import patch_model, use_backend
from tests.careamics_models import noise_model_likelihood

PROVIDERS = {
    **{"upstream": None, "upstream, compiled": None},
    **{"torch": "torch", "torch, compiled": "torch", "triton": "triton"},
}
"""And the backend."""
SHAPE = (8, 2, 64, 64)
# In float32, of a pixel: prediction and target read, its likelihood written; the same and its gradient read again.
BYTES = 4 * (3 + 4) * torch.Size(SHAPE).numel()
ROUNDS = 50


@pytest.mark.parametrize("provider", PROVIDERS)
def test_likelihood(benchmark: Any, add_row: Callable[[Row], None], provider: str, device: torch.device) -> None:
    backend, compiled = PROVIDERS[provider], "compiled" in provider
    if backend == "triton" and device.type != GPU:
        pytest.skip("there is no GPU")
    torch.compiler.reset()
    torch.manual_seed(0)
    batch, channels, *space = SHAPE
    options = {"output_channels": channels, "decoder_conv_strides": space}
    upstream, likelihood = (noise_model_likelihood(options) for _ in range(2))
    prediction, target, incoming = (torch.randn(SHAPE, device=device) for _ in range(3))
    prediction.requires_grad_()

    def backward(value: Any, _: Any = None) -> Any:
        return torch.autograd.grad(value, prediction, incoming)

    def step(function: Any) -> tuple[Any, ...]:
        value, _ = function(prediction, target)
        gradients = backward(value)
        synchronize(device)
        return value, *gradients

    if backend is not None:
        patch_model(likelihood)
    function: Any = torch.compile(likelihood, dynamic=False) if compiled else likelihood
    with use_backend(backend or "torch"):
        for found, expected in zip(step(function), step(upstream), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        stages = Stages(lambda _: function(prediction, target)[0], backward)
        counts = count(stages, None, device, compiled=compiled)["step"]
        benchmark.group, benchmark.name = "likelihood, step", provider
        benchmark.pedantic(step, (function,), rounds=ROUNDS, warmup_rounds=3)
    if benchmark.stats is not None:  # None with --benchmark-disable
        row = {"case": "likelihood", "provider": provider, "pass": "step", "status": OK, "rounds": ROUNDS}
        row |= {"batch": batch, "channels": channels, "space": "x".join(map(str, space)), "dtype": "float32"}
        add_row(row | counts | {"bytes": BYTES} | spread(benchmark.stats.stats.data, "us"))
