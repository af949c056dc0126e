"""What must hold at the ends of the range of floats, on any backend and by any of its formulas."""

import torch

from ladder_kernels import normal_sample, normal_sample_kl
from ladder_kernels.variance import VarianceMap
from tests import oracle
from tests.against_oracle import run
from tests.inputs import one, packed, tensors

# Each against the plain formula in float64, which is finite there.
EXTREMES = {
    "exp map, 1 / std overflows, mean equal": (
        {"q_params": one(1.0, -180.0), "p_params": one(1.0, -180.0)},
        {"mode": True, "variance": VarianceMap("exp")},
    ),
    "exp map, 1 / std overflows, means apart": (
        {"q_params": one(0.0, -185.0), "p_params": one(0.0, -181.0), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("exp")},
    ),
    "exp map, analytic, 1 / std overflows": (
        {"q_params": one(1.0, -200.0), "p_params": one(1.0, -200.25)},
        {"mode": True, "variance": VarianceMap("exp"), "analytical_kl": True},
    ),
    "exp map, given latent, analytic": (
        {"q_params": one(1.0, -110.0), "p_params": one(0.7, 1.35), "latent": torch.zeros(1, 1, 1)},
        {"variance": VarianceMap("exp"), "analytical_kl": True},
    ),
    "logstd, 1 / std overflows, means apart": (
        {"q_params": one(0.0, -92.5), "p_params": one(0.0, -90.5), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("logstd")},
    ),
    "logstd, analytic, 1 / std overflows": (
        {"q_params": one(1.0, -100.0), "p_params": one(1.0, -100.125)},
        {"mode": True, "variance": VarianceMap("logstd"), "analytical_kl": True},
    ),
    "softplus, analytic, both stds underflow": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.25)},
        {"mode": True, "variance": VarianceMap("softplus"), "analytical_kl": True},
    ),
    "softplus, the ratio underflows": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, 3.0)},
        {"mode": True, "variance": VarianceMap("softplus"), "analytical_kl": True},
    ),
    "softplus, a large ratio": (
        {"q_params": one(0.0, -60.0), "p_params": one(0.0, 1e30)},
        {"mode": True, "variance": VarianceMap("softplus", beta=0.5), "analytical_kl": True},
    ),
    "softplus, stds of a normal float's smallest": (
        {"q_params": one(0.0, -85.0), "p_params": one(0.0, -84.0), "noise": torch.tensor([[[0.5]]])},
        {"variance": VarianceMap("softplus")},
    ),
    "stable, the smallest floor": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.0)},
        {"mode": True, "variance": VarianceMap("stable", floor=1.2e-38)},
    ),
    "softplus, the smallest floor": (
        {"q_params": one(1.0, -300.0), "p_params": one(1.0, -300.0)},
        {"mode": True, "variance": VarianceMap("softplus", floor=1.2e-38)},
    ),
    "a gradient next to overflow": (
        {"q_params": one(1.5e19, 0.0), "p_params": one(0.0, 0.0)},
        {"mode": True},
    ),
}


def naive_variances_that_underflow(logvar):
    q = packed((1, 2, 3, 3))
    q[:, 2:] = logvar
    q.requires_grad_()
    step = normal_sample_kl(q, packed((1, 2, 3, 3)), variance=VarianceMap("exp"), noise=torch.randn(1, 2, 3, 3))
    (step.z.sum() + step.kl_samplewise.sum()).backward()
    assert torch.isfinite(step.kl_samplewise).all()
    assert torch.isfinite(q.grad).all()
    with torch.no_grad():
        q[:, :2] = 0
    assert (normal_sample(q, variance=VarianceMap("exp"), noise=torch.full((1, 2, 3, 3), 1e35)) > 0).all()


def naive_variances_that_overflow(logvar, analytical):
    """At 176 the inverse std is denormal; beyond 177 the std would overflow."""
    given = tensors((1, 2, 3, 3), "noise")
    given["noise"].clamp_(-1, 1)
    for name in ("q_params", "p_params"):
        given[name][:, 2:] = logvar + torch.randn(1, 2, 3, 3).clamp(-1, 1)
    arguments = {"variance": VarianceMap("exp"), "analytical_kl": analytical}, {"kl_samplewise": torch.ones(1)}
    outputs, grads = run(normal_sample_kl, given, *arguments)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), *arguments)
    torch.testing.assert_close(outputs["z"].double(), exact["z"], rtol=1e-5, atol=0)
    torch.testing.assert_close(outputs["kl_samplewise"].double(), exact["kl_samplewise"], rtol=0, atol=1e-2)
    for name, grad in grads.items():
        torch.testing.assert_close(grad.double(), exact_grads[name], rtol=0, atol=1e-3)


def nothing_overflows(given, options):
    incoming = {"kl_samplewise": torch.tensor([1.9])}
    ours, our_grads = run(normal_sample_kl, given, {**options, "elementwise": True}, incoming)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), options, incoming)
    assert ours["z"].isfinite().all()
    torch.testing.assert_close(ours["kl_samplewise"].double(), exact["kl_samplewise"], rtol=1e-4, atol=1e-4)
    for name, grad in our_grads.items():
        # To float32's range: what the truth rounds to.
        torch.testing.assert_close(grad, exact_grads[name].float(), rtol=1e-4, atol=1e-30)


def equal_means(kind, analytical):
    """0 / 0 is 0 there: both stds are 0 in every float."""
    given = {"q_params": one(1.0, -1e4), "p_params": one(1.0, -1e4)}
    variance = VarianceMap(kind, floor=0.0)
    options = {"mode": True, "variance": variance, "analytical_kl": analytical}
    outputs, grads = run(normal_sample_kl, given, options, {"kl_samplewise": torch.tensor([1.9])})
    assert outputs["kl_samplewise"].item() == 0.0
    # Of log_var the gradients are 0, or 1.9 / 2 of p's and minus that of q's; of raw twice that if raw is log std.
    slope = {"exp": 0.5, "logstd": 1.0, "softplus": 1.0, "stable": 0.5}[kind] * (not analytical)
    torch.testing.assert_close(grads["q_params"], one(0.0, -1.9 * slope))
    torch.testing.assert_close(grads["p_params"], one(0.0, 1.9 * slope))
