"""`python -m bench.audit.host_cost`: microseconds that one forward + backward costs the host, by layer, without a GPU.

Small latents are bound by this, not by the kernels. The Triton kernels are compiled for a GPU that is not there and
launched into nothing, so what is left is Python, autograd and Triton's launcher.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# The interpreter would run the kernels instead of launching them.
os.environ.pop("TRITON_INTERPRET", None)

import torch

from bench.audit.fake_gpu import install
from ladder_kernels.autograd import NormalSampleKL
from ladder_kernels.backends import triton as backend
from ladder_kernels.backends.step import Step, StepGrads
from ladder_kernels.backends.triton import settings
from ladder_kernels.variance import VarianceMap

SHAPE = (8, 128, 4, 4)
KERNELS = ("forward_kernel", "reduce_kernel", "backward_kernel")


class _Nothing:
    """A kernel whose launch is a no-op."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *_, **__: None


def microseconds(call: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    for _ in range(repeats // 10):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    deciles = statistics.quantiles(times, n=10)
    return statistics.median(times), deciles[1], deciles[7]


def measure(repeats: int) -> dict[str, tuple[float, float, float]]:
    """Rows of (median, p20, p80): each adds one layer to the one before."""
    batch, channels, *space = SHAPE
    q, p = (torch.randn(batch, 2 * channels, *space, requires_grad=True) for _ in range(2))
    seed, step = torch.tensor(1), Step("seed", variance=VarianceMap(raw_max=20.0), window=(1, 3, 1, 3))
    grad_z, grad_kl = torch.randn(SHAPE), torch.randn(batch)
    grads, needs = StepGrads(z=grad_z, kl_samplewise=grad_kl), (True, True, False)

    def direct() -> None:
        with torch.no_grad():
            backend.forward(q, p, seed, step)
            backend.backward(q, p, seed, step, grads, needs)

    def differentiated() -> None:
        z, kl, *_ = NormalSampleKL.apply(q, p, seed, step, backend)
        torch.autograd.grad((z, kl), (q, p), (grad_z, grad_kl))

    kernels = SimpleNamespace(**{name: getattr(settings, name) for name in KERNELS})
    rows = {}
    for name in KERNELS:
        setattr(settings, name, _Nothing())
    settings.forget()
    rows["python: plan, outputs, arguments"] = microseconds(direct, repeats)
    rows["+ autograd"] = microseconds(differentiated, repeats)
    for name in KERNELS:
        setattr(settings, name, getattr(kernels, name))
    install("sm_90")
    rows["+ Triton's launcher, three launches"] = microseconds(differentiated, repeats)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audit.host_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    print(f"host cost of one forward + backward of {SHAPE}, microseconds (median, p20, p80)")
    for name, (median, low, high) in measure(parser.parse_args().repeats).items():
        print(f"  {name:40s} {median:7.1f}  {low:7.1f}  {high:7.1f}")


if __name__ == "__main__":
    main()
