"""The step spelled out in upstream's methods, for subclasses that override one of them.

`NormalStochasticBlock.forward` fuses these stages; where a stage is replaced it calls them one after the other.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ladder_kernels.autograd import default_is_philox
from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.geometry import (
    center_crop,
    crop,
    even_spatial,
    in_memory_order,
    is_channels_last,
    restricted_window,
    windowed,
)
from ladder_kernels.noise import draw_noise, draw_seed, philox_normal
from ladder_kernels.params import StableLogVar, StableMean, parameter_pair
from ladder_kernels.variance import VarianceMap

KL_KEYS = ("kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "kl_channelwise")
STAGES = ("get_z", "process_p_params", "process_q_params", "compute_kl_metrics")


class ComposedStep(nn.Module):
    """The stages, each a method, and the forward pass that calls them."""

    c_vars: int
    transform_p_params: bool
    conv_in_p: nn.Module
    conv_in_q: nn.Module
    conv_out: nn.Module
    allow_oddsizes: bool
    rng: Literal["torch", "philox"] | None
    validate_args: bool
    _vanilla_latent_hw: int | None
    _use_naive_exponential: bool

    def get_z(
        self,
        sampling_distrib: Normal,
        forced_latent: Tensor | None,
        mode_pred: bool,
        use_uncond_mode: bool,
    ) -> Tensor:
        """z (B, c_vars, *S): the forced latent, the mean of the distribution, or a sample of it."""
        if forced_latent is not None:
            return forced_latent
        if mode_pred and use_uncond_mode:
            return sampling_distrib.mean
        return self._sample(sampling_distrib)

    def process_p_params(self, p_params: Tensor, var_clip_max: float | None) -> tuple[StableMean, StableLogVar, Normal]:
        """p's mean, log-variance and distribution from its features, or from its packed parameters."""
        mean, logvar = self._parameter_pair(self._packed_p(p_params), var_clip_max)
        return mean, logvar, self._normal(mean, logvar)

    def process_q_params(
        self, q_params: Tensor, var_clip_max: float | None, allow_oddsizes: bool = False
    ) -> tuple[StableMean, StableLogVar, Normal]:
        """q's mean, log-variance and distribution from its features; odd sizes cropped unless allowed."""
        mean, logvar = self._parameter_pair(self._packed_q(q_params, allow_oddsizes), var_clip_max)
        return mean, logvar, self._normal(mean, logvar)

    def compute_kl_metrics(
        self,
        p: Normal,
        p_params: tuple[StableMean, StableLogVar],
        q: Normal,
        q_params: tuple[StableMean, StableLogVar],
        mode_pred: bool,
        analytical_kl: bool,
        z: Tensor,
    ) -> dict[str, Tensor | None]:
        """The five KL metrics of `forward`'s data, from distributions; all None if `mode_pred`."""
        if mode_pred:
            return dict.fromkeys(KL_KEYS)
        if analytical_kl:
            kl = kl_divergence(q, p)
        else:
            kl = self._normal(*q_params).log_prob(z) - self._normal(*p_params).log_prob(z)
        samplewise = restricted = kl.flatten(1).sum(1)
        window = restricted_window(kl.shape[2:], self._vanilla_latent_hw)
        if window is not None:
            restricted = windowed(kl, window).flatten(1).sum(1)
        values = (kl, samplewise, restricted, kl.sum(1), kl.flatten(2).sum(2))
        return dict(zip(KL_KEYS, values, strict=True))

    def forward_composed(
        self,
        p_params: Tensor,
        q_params: Tensor | None,
        forced_latent: Tensor | None,
        force_constant_output: bool,
        analytical_kl: bool,
        mode_pred: bool,
        use_uncond_mode: bool,
        var_clip_max: float | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """`forward`, through the stages."""
        p_mean, p_logvar, p = self.process_p_params(p_params, var_clip_max)
        q_pair, q = None, None
        if q_params is not None:
            q_mean, q_logvar, q = self.process_q_params(q_params, var_clip_max)
            q_pair = (q_mean, q_logvar)
            if not mode_pred and p.mean.shape[2:] != q.mean.shape[2:]:
                p_mean = StableMean(crop_to_q(p_mean.get(), q.mean))
                p_logvar.centercrop_to_size(q.mean.shape[2:])
                p = self._normal(p_mean, p_logvar)
        z = self.get_z(p if q is None else q, forced_latent, mode_pred, use_uncond_mode)
        if force_constant_output:
            z = copy_first(z)
            p_mean, p_logvar = self._parameter_pair(
                copy_first(torch.cat([p_mean.get(), p_logvar._tensor], 1)), var_clip_max
            )
            p = self._normal(p_mean, p_logvar)

        data: dict[str, Any] = dict.fromkeys(KL_KEYS)
        if q is not None and q_pair is not None:
            p_pair = (p_mean, p_logvar)
            data |= self.compute_kl_metrics(p, p_pair, q, q_pair, mode_pred, analytical_kl, z)
        data["z"] = z
        data["p_params"], data["q_params"] = (p_mean, p_logvar), q_pair
        data["logprob_q"] = None if q is None else q.log_prob(z).flatten(1).sum(1)
        data["qvar_max"] = z.new_zeros(()) if q_pair is None else q_pair[1].get().detach().max()
        return self.conv_out(z), data

    def _packed_p(self, p_params: Tensor) -> Tensor:
        """The packed parameters of p (B or 1, 2 * c_vars, *S)."""
        if self.transform_p_params:
            return self.conv_in_p(p_params)
        if p_params.shape[1] != 2 * self.c_vars:
            raise ValueError(f"p_params must have 2 * c_vars = {2 * self.c_vars} channels, got {tuple(p_params.shape)}")
        return p_params

    def _packed_q(self, q_params: Tensor, allow_oddsizes: bool = False) -> Tensor:
        """The packed parameters of q (B, 2 * c_vars, *S)."""
        q = self.conv_in_q(q_params)
        if allow_oddsizes or self.allow_oddsizes:
            return q
        return crop(q, (0,) * (q.dim() - 2), even_spatial(q.shape[2:]))

    def _parameter_pair(self, packed: Tensor, var_clip_max: float | None) -> tuple[StableMean, StableLogVar]:
        return parameter_pair(packed, self._variance(var_clip_max))

    def _variance(self, var_clip_max: float | None) -> VarianceMap:
        return VarianceMap("exp" if self._use_naive_exponential else "stable", raw_max=var_clip_max)

    def _normal(self, mean: StableMean, logvar: StableLogVar) -> Normal:
        return Normal(mean.get(), logvar.get_std(), validate_args=self.validate_args)

    def _uses_philox(self, parameters: Tensor) -> bool:
        return default_is_philox(parameters, None) if self.rng is None else self.rng == "philox"

    def _sample(self, distribution: Normal) -> Tensor:
        mean = distribution.mean
        dtype = compute_dtype(mean)
        if self._uses_philox(mean):
            flat = philox_normal(draw_seed(mean.device), mean.numel(), dtype)
            eps = in_memory_order(flat, mean.shape, is_channels_last(mean))
        else:
            eps = draw_noise(mean.shape, dtype, mean.device)
        return mean + distribution.stddev * eps


def crop_to_q(p: Tensor, q: Tensor) -> Tensor:
    """The centre of p under q, as a view. Raises ValueError where p does not cover q."""
    if p.dim() != q.dim() or any(have < want for have, want in zip(p.shape[2:], q.shape[2:], strict=True)):
        raise ValueError(f"p's parameters {tuple(p.shape)} do not cover q's {tuple(q.shape)}")
    return center_crop(p, q.shape[2:])


def copy_first(tensor: Tensor) -> Tensor:
    """The first sample of a batch in every place of it."""
    return tensor[:1].expand_as(tensor).clone()
