"""`python -m bench.gpu.sanitizer_calls [BACKEND]`: calls that reach every kernel, few enough for compute-sanitizer.

Every memory layout, dtype and source of z, both KLs, sizes that nothing divides; forward, backward and sampling.
"""

import argparse
from itertools import product
from typing import Any

import torch

from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.backends.select import NAMES
from ladder_kernels.variance import VarianceMap

SHAPES = ((2, 3, 7), (3, 5, 7, 9), (2, 8, 16, 16), (2, 3, 2, 5, 4))
DTYPES = (torch.float32, torch.bfloat16)


def packed(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, channels_last: bool) -> torch.Tensor:
    """Random packed parameters (B, 2C, *S), a leaf that requires a gradient."""
    batch, channels, *space = shape
    values = torch.randn(batch, 2 * channels, *space, device=device).to(dtype)
    if channels_last:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    return values.requires_grad_()


def call(shape: tuple[int, ...], dtype: torch.dtype, device: str, *, channels_last: bool, analytical: bool) -> None:
    """One forward and backward for each source of z and kind of prior, and one sample."""
    q = packed(shape, dtype, device, channels_last=channels_last)
    learned = packed(shape, dtype, device, channels_last=channels_last)
    broadcast = packed((1, *shape[1:]), dtype, device, channels_last=channels_last)
    latent = torch.randn(shape, device=device, requires_grad=True)
    sources: tuple[dict[str, Any], ...] = ({"seed": 7}, {"noise": latent.detach()}, {"latent": latent}, {"mode": True})
    priors = (learned, broadcast, None, learned)
    for source, p in zip(sources, priors, strict=True):
        step = normal_sample_kl(
            q,
            p,
            **source,
            analytical_kl=analytical,
            variance=VarianceMap("stable", raw_max=2.0),
            window=4,
            elementwise=True,
        )
        sums = [value.float().sum() for value in step if value is not None and value.requires_grad]
        torch.stack(sums).sum().backward()
    normal_sample(q, seed=7).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitizer_calls", description=__doc__.splitlines()[0])
    parser.add_argument("backend", nargs="?", choices=NAMES, default="cuda")
    backend = parser.parse_args().backend
    device = "cuda" if torch.cuda.is_available() and backend != "cpp" else "cpu"
    torch.manual_seed(0)
    with use_backend(backend):
        for shape, dtype, last, analytical in product(SHAPES, DTYPES, (False, True), (False, True)):
            call(shape, dtype, device, channels_last=last, analytical=analytical)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(SHAPES) * len(DTYPES) * 4} groups of calls done on {backend}")


if __name__ == "__main__":
    main()
