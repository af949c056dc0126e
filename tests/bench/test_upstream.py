"""The stand-in for upstream's block equals the real one, operation by operation."""

import pytest
import torch
from careamics.models.lvae.stochastic import NormalStochasticBlock

from bench.kernels.cases import CPU, LOGVAR_MAX, Case, make_inputs
from bench.measure.launches import count_calls
from bench.upstream import StandIn, upstream_block

CASES = (
    Case("mc", 3, (4, 4), 5),
    Case("analytic", 3, (4, 4), 5, analytic=True),
    Case("prediction", 3, (4, 4), 5, prediction=True),
    Case("window", 3, (8, 8), 5, window=4),
    Case("3d", 2, (2, 4, 4), 5, window=2),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_stand_in_is_upstreams_block(case):
    real, stand_in = upstream_block(case), StandIn(case.window or case.space[-1])
    assert isinstance(real, NormalStochasticBlock)
    inputs = make_inputs(case, torch.device(CPU))

    def run(block):
        torch.manual_seed(3)
        return block(
            inputs.p,
            inputs.q,
            analytical_kl=case.analytic,
            mode_pred=case.prediction,
            var_clip_max=LOGVAR_MAX,
        )

    (out, expected), (stand_in_out, found) = run(real), run(stand_in)
    assert torch.equal(out, stand_in_out)
    tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(found[name], value), name

    differentiable = [name for name in tensors if tensors[name].requires_grad]
    incoming = [torch.randn_like(tensors[name]) for name in differentiable]
    leaves = (inputs.q, inputs.p)
    grads, stand_in_grads = (
        torch.autograd.grad([data[name] for name in differentiable], leaves, incoming, allow_unused=True)
        for data in (expected, found)
    )
    for grad, stand_in_grad in zip(grads, stand_in_grads, strict=True):
        torch.testing.assert_close(stand_in_grad, grad, rtol=1e-6, atol=1e-6)
    # As many calls and host synchronisations: as slow as the real one.
    assert count_calls(lambda: run(stand_in)) == count_calls(lambda: run(real))


def test_without_careamics_the_stand_in_serves(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bench.careamics_parts", None)
    assert isinstance(upstream_block(CASES[0]), StandIn)
