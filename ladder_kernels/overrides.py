"""The step spelled out in upstream's methods, for subclasses that override one of them.

`NormalStochasticBlock.forward` fuses these stages; where a stage is replaced it calls them one after the other.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ladder_kernels.backends.select import serving
from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.geometry import (
    copy_first,
    crop_to_q,
    in_memory_order,
    is_channels_last,
    restricted_window,
    windowed,
)
from ladder_kernels.noise import DRAWS, default_draw, draw_noise, draw_seed, philox_normal
from ladder_kernels.params import StableLogVar, StableMean, wide

KL_KEYS = ("kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "kl_channelwise")
STAGES = ("get_z", "process_p_params", "process_q_params", "compute_kl_metrics")


class Call(NamedTuple):
    """What one call of the block asks for, besides the parameters of p and q; `NormalStochasticBlock.forward` tells."""

    forced_latent: Tensor | None
    force_constant_output: bool
    analytical_kl: bool
    mode_pred: bool
    use_uncond_mode: bool
    var_clip_max: float | None
    generator: torch.Generator | None

    @property
    def use_mean(self) -> bool:
        """Whether z is the mean: upstream asks for both."""
        return self.mode_pred and self.use_uncond_mode


class Stages(nn.Module):
    """The stages, each a method that may be overridden, and the forward pass that calls them.

    The block gives the helpers that are declared here.
    """

    conv_out: nn.Module
    rng: str | None
    _vanilla_latent_hw: int | None
    if TYPE_CHECKING:

        def _packed_p(self, p_params: Tensor) -> Tensor: ...
        def _packed_q(self, q_params: Tensor, allow_oddsizes: bool = False) -> Tensor: ...
        def _parameter_pair(self, packed: Tensor, var_clip_max: float | None) -> tuple[StableMean, StableLogVar]: ...
        def _normal(self, mean: StableMean, logvar: StableLogVar) -> Normal: ...

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
            return sampling_distrib.mean.clone()  # z must not be a view of the parameters
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
        analytical_kl: bool | Tensor = False,
        z: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """The five KL metrics of `forward`'s data, from distributions; all None if `mode_pred`.

        `analytical_kl` may be left out, with z in its place: upstream's next version has no such argument.
        """
        if isinstance(analytical_kl, Tensor):
            z, analytical_kl = analytical_kl, False
        if mode_pred:
            return dict.fromkeys(KL_KEYS)
        if analytical_kl:
            kl = wide(kl_divergence(q, p))
        else:
            z = wide(z)
            kl = self._normal(*q_params).log_prob(z) - self._normal(*p_params).log_prob(z)
        samplewise = restricted = kl.flatten(1).sum(1)
        window = restricted_window(kl.shape[2:], self._vanilla_latent_hw)
        if window is not None:
            restricted = windowed(kl, window).flatten(1).sum(1)
        values = (kl, samplewise, restricted, kl.sum(1), kl.flatten(2).sum(2))
        return dict(zip(KL_KEYS, values, strict=True))

    def _forward_composed(self, p_params: Tensor, q_params: Tensor | None, call: Call) -> tuple[Tensor, dict[str, Any]]:
        """`forward`, through the stages."""
        if call.generator is not None:
            raise ValueError("generator is not for a block that overrides a stage: get_z has no argument for it")
        p_mean, p_logvar, p = self.process_p_params(p_params, call.var_clip_max)
        q_pair, q = None, None
        if q_params is not None:
            q_mean, q_logvar, q = self.process_q_params(q_params, call.var_clip_max)
            q_pair = (q_mean, q_logvar)
            if not call.mode_pred and p.mean.shape[2:] != q.mean.shape[2:]:
                p_mean = StableMean(crop_to_q(p_mean.get(), q.mean))
                p_logvar.centercrop_to_size(q.mean.shape[2:])
                p = self._normal(p_mean, p_logvar)
        # The KL is that of the z drawn, before it is rounded to half precision, as it is where it is fused.
        drawn = self.get_z(p if q is None else q, call.forced_latent, call.mode_pred, call.use_uncond_mode)
        z = drawn if call.forced_latent is not None else drawn.to((p_mean if q_pair is None else q_pair[0]).get().dtype)
        if call.force_constant_output:
            drawn = z = copy_first(z)
            packed = copy_first(torch.cat([p_mean.get(), p_logvar._lv], 1))
            p_mean, p_logvar = self._parameter_pair(packed, call.var_clip_max)
            p = self._normal(p_mean, p_logvar)

        data: dict[str, Any] = dict.fromkeys(KL_KEYS)
        if q is not None and q_pair is not None:
            p_pair = (p_mean, p_logvar)
            data |= self.compute_kl_metrics(p, p_pair, q, q_pair, call.mode_pred, call.analytical_kl, drawn)
        data["z"] = z
        data["p_params"], data["q_params"] = (p_mean, p_logvar), q_pair
        data["logprob_q"] = None if q is None else q.log_prob(wide(drawn)).flatten(1).sum(1)
        data["qvar_max"] = wide(z.new_zeros(()) if q_pair is None else wide(q_pair[1]).get().detach().max())
        return self.conv_out(z), data

    def _sample(self, distribution: Normal, generator: torch.Generator | None = None) -> Tensor:
        mean = distribution.mean
        dtype = compute_dtype(mean)
        draw = default_draw(serving(mean)) if self.rng is None else DRAWS[self.rng]
        if draw == "seed":
            flat = philox_normal(draw_seed(mean.device, generator), mean.numel(), dtype)
            eps = in_memory_order(flat, mean.shape, is_channels_last(mean))
        else:
            eps = draw_noise(mean.shape, dtype, mean.device, generator)
        return mean + distribution.stddev * eps
