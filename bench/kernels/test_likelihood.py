"""The likelihood of a noise model, upstream's and ours, forward and backward; `make bench`.

Two channels, for each a mixture of 3 Gaussians whose parameters have 2 coefficients: what denoiSplit trains with.
"""

from typing import Any, NamedTuple

import pytest
import torch

from bench import cli
from bench.conftest import Session
from bench.kernels.cases import CPU, GPU
from bench.measure import launches
from bench.measure.memory import bytes_kept
from bench.measure.timing import spread, synchronize
from bench.report.results import OK, rounded
from ladder_kernels import patch_model, use_backend
from tests.careamics_models import noise_model_likelihood

SHAPE = (8, 2, 64, 64)
# In float32, of a pixel: prediction and target read, its likelihood written; the same and its gradient read again.
BYTES = 4 * (3 + 4) * torch.Size(SHAPE).numel()
ROUNDS = 50


class Provider(NamedTuple):
    name: str
    backend: str | None = None
    compiled: bool = False
    devices: tuple[str, ...] = (CPU, GPU)


PROVIDERS = (
    Provider("upstream"),
    Provider("upstream, compiled", compiled=True),
    Provider("torch", "torch"),
    Provider("torch, compiled", "torch", compiled=True),
    Provider("triton", "triton", devices=(GPU,)),
)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_likelihood(benchmark: Any, session: Session, provider: Provider, pytestconfig: pytest.Config) -> None:
    device = pytestconfig.getoption("device") or cli.default_device()
    if device.type not in provider.devices:
        pytest.skip("there is no GPU")
    torch.compiler.reset()
    torch.manual_seed(0)
    upstream, likelihood = (
        noise_model_likelihood({"output_channels": SHAPE[1], "decoder_conv_strides": SHAPE[2:]}) for _ in range(2)
    )
    prediction, target, incoming = (torch.randn(SHAPE, device=device) for _ in range(3))
    prediction.requires_grad_()

    def step(function: Any) -> Any:
        value, _ = function(prediction, target)
        found = torch.autograd.grad(value, prediction, incoming)[0]
        synchronize(device)
        return value, found

    expected = step(upstream)
    function: Any = likelihood
    if provider.backend is not None:
        patch_model(likelihood)
    if provider.compiled:
        function = torch.compile(likelihood, dynamic=False)
    with use_backend(provider.backend or "torch"):
        for found, each in zip(step(function), expected, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-4 * each.abs().max().item())
        kept = bytes_kept(lambda: function(prediction, target))
        count = launches.count_launches if device.type == GPU else launches.count_calls
        # On a CPU a compiled function does not go through the dispatcher.
        calls = None if provider.compiled and device.type == CPU else count(lambda: step(function))
        benchmark.group, benchmark.name = "likelihood, step", provider.name
        benchmark.pedantic(step, (function,), rounds=ROUNDS, warmup_rounds=3)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    batch, channels, *space = SHAPE
    row = {"case": "likelihood", "provider": provider.name, "pass": "step", "status": OK, "rounds": ROUNDS}
    row |= {"batch": batch, "channels": channels, "space": "x".join(map(str, space)), "dtype": "float32"}
    row |= spread(benchmark.stats.stats.data, "us") | {"bytes": BYTES}
    row |= {"kept_mib": rounded(kept / 2**20), "launches": calls and calls.total}
    session.add_once(row)
