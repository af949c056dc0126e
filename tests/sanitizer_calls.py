"""`python -m tests.sanitizer_calls [BACKEND]`: calls that reach every kernel, few enough for compute-sanitizer.

Every memory layout, dtype and source of z, both KLs, sizes that nothing divides; forward, backward and sampling.
"""

import sys
from itertools import product

import torch

from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.variance import VarianceMap

SHAPES = ((2, 3, 7), (3, 5, 7, 9), (2, 8, 16, 16), (2, 3, 2, 5, 4))
DTYPES = (torch.float32, torch.bfloat16)
VARIANCE = VarianceMap("stable", raw_max=2.0)


def packed(shape: tuple[int, ...], dtype: torch.dtype, device: str, channels_last: bool) -> torch.Tensor:
    """Random packed parameters (B, 2C, *S), a leaf that requires a gradient."""
    batch, channels, *space = shape
    values = torch.randn(batch, 2 * channels, *space, device=device).to(dtype)
    if channels_last:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    return values.requires_grad_()


def call(shape: tuple[int, ...], dtype: torch.dtype, device: str, channels_last: bool, analytical: bool) -> None:
    """One forward and backward for each source of z and kind of prior, and one sample."""
    q, learned = (packed(shape, dtype, device, channels_last) for _ in range(2))
    shared = packed((1, *shape[1:]), dtype, device, channels_last)
    latent = torch.randn(shape, device=device, requires_grad=True)
    sources = ({"seed": 7}, {"noise": latent.detach()}, {"latent": latent}, {"mode": True})
    for source, p in zip(sources, (learned, shared, None, learned), strict=True):
        options = {"analytical_kl": analytical, "variance": VARIANCE, "window": 4, "elementwise": True, **source}
        step = normal_sample_kl(q, p, **options)
        sums = [value.float().sum() for value in step if value is not None and value.requires_grad]
        torch.stack(sums).sum().backward()
    normal_sample(q, seed=7).sum().backward()


def main() -> None:
    backend = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    device = "cuda" if torch.cuda.is_available() and backend != "cpp" else "cpu"
    torch.manual_seed(0)
    with use_backend(backend):
        for shape, dtype, last, analytical in product(SHAPES, DTYPES, (False, True), (False, True)):
            call(shape, dtype, device, last, analytical)
    print(f"{len(SHAPES) * len(DTYPES) * 4} groups of calls done on {backend}")


if __name__ == "__main__":
    main()
