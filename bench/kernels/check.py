"""Nothing wrong is timed: a provider's sample, KL sums and gradients beside the plain formulas in float64.

These are the torch backend's. Were they wrong themselves, upstream would be found wrong.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from bench.kernels.cases import LOGVAR_MAX, Case, Inputs
from bench.kernels.providers import SUMS, Provider, noise_of, output
from bench.measure.timing import Stages
from ladder_kernels.backends import torch as oracle
from ladder_kernels.backends.step import Step, StepGrads
from ladder_kernels.geometry import restricted_window
from ladder_kernels.variance import VarianceMap

SEED = 7
# Of the largest value of a sample's tensor. Upstream computes its KL in 16 bits on a CPU, under autocast.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
STANDARD_ERRORS = 6.0


def fault(provider: Provider, stages: Stages, case: Case, inputs: Inputs) -> str | None:
    """What is wrong with the results of a provider's `stages`, or None. Raises what they raise."""
    torch.manual_seed(SEED)
    with stages.context():
        result = stages.forward(inputs)
        found = {"z": output(result, "z").detach()}
        if stages.backward is not None:
            grads = stages.backward(result, inputs)
            found |= {name: output(result, name).detach() for name in SUMS}
            found |= dict(zip(("gradient of q", "gradient of p"), grads, strict=True))
    torch.manual_seed(SEED)  # again, for the noise that it drew
    noise = noise_of(provider, inputs)
    if noise is None:
        # Its noise is what makes its z, and must then look like noise.
        noise = _residual(found["z"], inputs.q.detach())
        if not looks_normal(noise, TOLERANCE[case.dtype]):
            return "its noise is not standard normal"
    for sample in range(case.batch):
        for name, exact in _expected(slice(sample, sample + 1), noise, case, inputs).items():
            error = (found[name][sample].double() - exact).abs().max().item()
            bound = TOLERANCE[case.dtype] * exact.abs().max().item()
            if not error <= bound:  # NaN is not
                return f"{name} is off by {error:.2g}, allowed are {bound:.2g}"
    return None


def _expected(rows: slice, noise: Tensor, case: Case, inputs: Inputs) -> dict[str, Tensor]:
    """The exact results of a slice of the batch, by the names of `fault`. Of all of it they might not fit in memory."""
    q, p, eps = (tensor.detach()[rows].double() for tensor in (inputs.q, inputs.p, noise))
    # Without a window the restricted KL is the whole one.
    window = restricted_window(case.space, case.window) or (0, case.space[-2], 0, case.space[-1])
    kl: Literal["analytic", "monte_carlo"] = "analytic" if case.analytic else "monte_carlo"
    step = Step("noise", kl, variance=VarianceMap("stable", raw_max=LOGVAR_MAX), window=window)
    if case.prediction:
        return {"z": oracle.sample(q, eps, step)}
    grad_z, grad_kl = inputs.grad_z[case.dtype][rows].double(), inputs.grad_kl[torch.float32][rows].double()
    grads = StepGrads(grad_z, kl_samplewise_restricted=grad_kl)
    grad_q, grad_p, _ = oracle.backward(q, p, eps, step, grads, (True, True, False))
    outputs = oracle.forward(q, p, eps, step)._asdict()
    return {name: outputs[name] for name in ("z", *SUMS)} | {"gradient of q": grad_q, "gradient of p": grad_p}


def _residual(z: Tensor, q: Tensor) -> Tensor:
    """(z - mean) / std (B, C, *S), in float32 (what a 16-bit z has lost stays lost)."""
    mean, raw = q.double().chunk(2, dim=1)
    variance = torch.where(raw <= 0, raw.clamp(max=0).exp(), 1 + raw.clamp(max=LOGVAR_MAX)) + 1e-6
    return ((z.double() - mean) / variance.sqrt()).float()


def looks_normal(noise: Tensor, tolerance: float = 0.0) -> bool:
    """Whether these may be independent standard normals: moments, neighbours, halves.

    Arithmetic in 16 bits may bias each statistic by `tolerance` of its standard deviation.
    """
    values = noise.flatten().double()
    half = values.numel() // 2
    # Each has expectation 0; beside it its variance.
    terms = [(values, 1), (values**2 - 1, 2), (values**4 - 3, 96)]
    terms += [(values[:-1] * values[1:], 1), (values[:half] * values[half : 2 * half], 1)]
    deviations = [each.mean().abs().item() / math.sqrt(variance) for each, variance in terms]
    return all(deviation <= STANDARD_ERRORS / math.sqrt(half) + tolerance for deviation in deviations)
