"""`DiagonalGaussianDistribution`: the posterior of LDM and diffusers, on the fused functions.

The class has the name, methods and attributes of that in diffusers' models/autoencoders/vae.py and LDM's
modules/distributions/distributions.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ladder_kernels.backends.step import HALF_LOG_TWO_PI, compute_dtype
from ladder_kernels.backends.torch import formulas
from ladder_kernels.functional import normal_kl, normal_log_prob, normal_sample
from ladder_kernels.geometry import latent_shape
from ladder_kernels.noise import draw_noise
from ladder_kernels.variance import VarianceMap

_VARIANCE = VarianceMap.diffusers()


class DiagonalGaussianDistribution:
    """The diagonal Gaussian of packed parameters: means, then log-variances, which are clamped to [-30, 20].

    Parameters
    ----------
    parameters
        (B, 2C, *S), S of 1 to 3 dims; float16, bfloat16, float32 or float64; any strides.
    deterministic
        Whether the distribution is its mean: std and var are 0, kl and nll too, and a sample draws no number.

    Nothing is computed before it is asked for, and every method is a pass of its own: who only samples pays for
    nothing else. `mean`, `logvar`, `std` and `var` (B, C, *S) are computed at every reading, in the parameters' dtype.

    Where upstream's class works, so does this one, with the same numbers for the same generator or seed. The
    differences: `kl` and `nll` sum over everything but the batch, in float32 (float64 for float64), whatever the number
    of dims (upstream's leave (B, W) of a video and fail on 1D); a deterministic `kl` is zeros (B,) on the parameters'
    device. In float16 and bfloat16 the noise is upstream's, drawn in that dtype, but z is computed in float32 and
    rounded once, so it differs by the roundings that upstream makes on the way.

    To use it in diffusers, set it where the model's module looks it up:
    `diffusers.models.autoencoders.autoencoder_kl.DiagonalGaussianDistribution = DiagonalGaussianDistribution`.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic

    @property
    def mean(self) -> Tensor:
        """A view of the parameters."""
        return self.parameters.chunk(2, dim=1)[0]

    @property
    def logvar(self) -> Tensor:
        """Clamped."""
        return self.parameters.chunk(2, dim=1)[1].clamp(_VARIANCE.raw_min, _VARIANCE.raw_max)

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The mean, a view of the parameters."""
        return self.mean

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """z (B, C, *S) in the parameters' dtype, from the numbers that diffusers' `randn_tensor` draws.

        `generator` may be one, on the CPU too, or a list with one for each element of the batch.
        """
        if self.deterministic:
            return normal_sample(self.parameters, variance=_VARIANCE, mode=True)
        return normal_sample(self.parameters, variance=_VARIANCE, noise=self._noise(generator))

    def kl(self, other: Any = None) -> Tensor:
        """KL(self || other) in closed form (B,), in nats; without `other` that from N(0, I).

        `other`: a distribution of this class or upstream's, of the same shape or of batch 1. From a deterministic one
        the KL is infinite.
        """
        if self.deterministic:
            return self._zero().flatten(1).sum(1)
        if other is not None and other.deterministic:
            return self._zero().flatten(1).sum(1) + math.inf
        prior = None if other is None else other.parameters
        return normal_kl(self.parameters, prior, variance=_VARIANCE)

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log p(sample), differentiable in `sample` too, summed over `dims`: by default all but the batch, (B,)."""
        everything = tuple(range(1, self.parameters.dim()))
        dims = everything if dims is None else dims
        if self.deterministic:
            return self._zero().sum(tuple(dims))
        if tuple(sorted(dims)) == everything and sample.shape == latent_shape(self.parameters):
            return -normal_log_prob(self.parameters, sample, variance=_VARIANCE)
        dtype = compute_dtype(self.parameters, sample)
        mean, raw = self.parameters.to(dtype).chunk(2, dim=1)
        gaussian = formulas.gaussian(mean, raw, _VARIANCE)
        residual = gaussian.over_std(sample.to(dtype) - mean)
        return (HALF_LOG_TWO_PI - formulas.log_density(residual, gaussian)).sum(tuple(dims))

    def _zero(self) -> Tensor:
        """Of the latent's shape, in the dtype of sums."""
        return torch.zeros_like(self.mean, dtype=compute_dtype(self.parameters))

    def _noise(self, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        shape, dtype, device = latent_shape(self.parameters), self.parameters.dtype, self.parameters.device
        generators = generator if isinstance(generator, list) else [generator]
        each = shape if len(generators) == 1 else (1, *shape[1:])
        return torch.cat([draw_noise(each, dtype, device, one) for one in generators])
