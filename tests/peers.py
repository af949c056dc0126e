"""The stochastic step as other VAEs compute it, from their published formulas, in plain PyTorch.

Written anew, operation by operation as each of them does it, so that it costs what theirs costs; nothing is copied.
diffusers needs no formula here: it is installed.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from ladder_kernels import VarianceMap

LOG_2 = math.log(2)


def hdn(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """juglab/HDN and addtt/ladder-vae-pytorch, lib/stochastic.py: distributions, Monte-Carlo KL."""
    return _monte_carlo((Normal(mean, (raw / 2).exp()) for mean, raw in _halves(q, p)), noise)


def vdvae(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """openai/vdvae, vae_helpers.py: log-stds and their exponentials, analytic KL."""
    (q_mean, q_log_std), (p_mean, p_log_std) = _halves(q, p)
    z = torch.exp(q_log_std) * _drawn(noise, q_mean) + q_mean
    squares = torch.exp(q_log_std) ** 2 + (q_mean - p_mean) ** 2
    kl = -0.5 + p_log_std - q_log_std + 0.5 * squares / torch.exp(p_log_std) ** 2
    return z, kl.flatten(1).sum(1)


def cosdd(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """krulllab/COSDD, models/nn.py: mean and raw by turns, softplus stds, analytic KL from their logarithms."""
    (q_mean, q_std), (p_mean, p_std) = ((x[:, 0::2], softplus(x[:, 1::2])) for x in (q, p))
    z = q_mean + q_std * _drawn(noise, q_mean)
    q_log_std, p_log_std = q_std.log(), p_std.log()
    distance = (q_mean - p_mean) / p_std
    kl = p_log_std - q_log_std + 0.5 * (torch.exp(2 * (q_log_std - p_log_std)) + distance**2 - 1)
    return z, kl.flatten(1).sum(1)


def efficient_vdvae(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rayhane-mamah/Efficient-VDVAE, model/latent_layers.py: "std" mode, without a residual posterior."""
    (q_mean, q_std), (p_mean, p_std) = ((mean, softplus(raw, beta=LOG_2)) for mean, raw in _halves(q, p))
    z = q_mean + q_std * _drawn(noise, q_mean)
    ratio, distance = q_std / p_std, (q_mean - p_mean) / p_std
    kl = 0.5 * (ratio**2 + distance**2 - 1) - torch.log(ratio)
    return z, kl.flatten(1).sum(1)


def efficient_vdvae_logstd(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same file's "logstd" mode, with a residual posterior: its means and log-stds come on top of the prior's."""
    (q_mean, q_raw), (p_mean, p_raw) = _halves(q, p)
    q_mean, q_log_std, p_log_std = p_mean + q_mean, LOG_2 * (p_raw + q_raw), LOG_2 * p_raw
    z = q_mean + torch.exp(q_log_std) * _drawn(noise, q_mean)
    squares = torch.exp(2 * q_log_std) + (q_mean - p_mean) ** 2
    kl = 0.5 * (squares / torch.exp(2 * p_log_std) - 1) + p_log_std - q_log_std
    return z, kl.flatten(1).sum(1)


def nvae(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """NVlabs/NVAE, distributions.py: soft clamps, a floor on the std, a residual posterior, analytic KL."""
    q_normal, p_normal = (Normal(_soft(mean), _soft(raw).exp() + 1e-2) for mean, raw in _halves(q + p, p))
    z = q_normal.loc + q_normal.scale * _drawn(noise, q_normal.loc)
    return z, kl_divergence(q_normal, p_normal).flatten(1).sum(1)


def biva(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """vlievin/biva-pytorch, model/stochastic.py: log-variances that are a softplus, Monte-Carlo KL."""
    return _monte_carlo((Normal(mean, (softplus(raw) / 2).exp()) for mean, raw in _halves(q, p)), noise)


def vae_vampprior(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """jmtomczak/vae_vampprior, utils/distributions.py: log-variances in [-6, 2], Monte-Carlo KL without constants."""
    (q_mean, q_log_var), (p_mean, p_log_var) = ((mean, torch.clamp(raw, -6.0, 2.0)) for mean, raw in _halves(q, p))
    z = q_mean + torch.exp(0.5 * q_log_var) * _drawn(noise, q_mean)
    log_q = -0.5 * (q_log_var + (z - q_mean) ** 2 / torch.exp(q_log_var))
    log_p = -0.5 * (p_log_var + (z - p_mean) ** 2 / torch.exp(p_log_var))
    return z, (log_q - log_p).flatten(1).sum(1)


def hvae_oodd(q: Tensor, p: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """JakobHavtorn/hvae-oodd, oodd/layers/stochastic.py: softplus stds of at least 1e-6, Monte-Carlo KL."""
    normals = (Normal(mean, softplus(raw, beta=LOG_2).clamp(min=1e-6)) for mean, raw in _halves(q, p))
    return _monte_carlo(normals, noise)


def _halves(*packed: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Mean and raw spread of each."""
    return tuple(x.chunk(2, dim=1) for x in packed)


def _drawn(noise: Tensor | None, like: Tensor) -> Tensor:
    return torch.randn_like(like) if noise is None else noise


def _monte_carlo(normals: Iterable[Normal], noise: Tensor | None) -> tuple[Tensor, Tensor]:
    q, p = normals
    z = q.rsample() if noise is None else q.loc + q.scale * noise
    return z, (q.log_prob(z) - p.log_prob(z)).flatten(1).sum(1)


def _soft(x: Tensor) -> Tensor:
    return 5 * torch.tanh(x / 5)


class Peer(NamedTuple):
    """A VAE's own step, and how to have `normal_sample_kl` do it."""

    step: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    """(q, p, noise or None: drawn) -> z (B, C, *S), the KL of each sample (B,); q and p are its heads (B, 2C, *S)."""
    variance: VarianceMap
    analytical_kl: bool
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda q, p: (q, p)
    """Its heads -> the parameters that `normal_sample_kl` takes."""


def _grouped(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Channels that are mean and raw by turns as halves."""
    q, p = (torch.cat([x[:, 0::2], x[:, 1::2]], dim=1) for x in (q, p))
    return q, p


def _scaled_sum(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    q, p = (torch.cat([mean, LOG_2 * raw], dim=1) for mean, raw in _halves(q + p, p))
    return q, p


def _nvae_log_std(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    halves = _halves(q + p, p)
    q, p = (torch.cat([_soft(mean), (_soft(raw).exp() + 1e-2).log()], dim=1) for mean, raw in halves)
    return q, p


def _softplus_log_var(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    q, p = (torch.cat([mean, softplus(raw)], dim=1) for mean, raw in _halves(q, p))
    return q, p


# The raw value whose std is 1e-6.
_OODD_RAW_MIN = math.log(math.expm1(1e-6 * LOG_2)) / LOG_2

PEERS = {
    "HDN, ladder-vae-pytorch": Peer(hdn, VarianceMap.juglab_hdn(), False),
    "VDVAE": Peer(vdvae, VarianceMap.vdvae(), True),
    "COSDD": Peer(cosdd, VarianceMap.cosdd(), True, _grouped),
    "Efficient-VDVAE": Peer(efficient_vdvae, VarianceMap.efficient_vdvae(), True),
    "Efficient-VDVAE, logstd": Peer(efficient_vdvae_logstd, VarianceMap.vdvae(), True, _scaled_sum),
    "NVAE": Peer(nvae, VarianceMap.vdvae(), True, _nvae_log_std),
    "BIVA": Peer(biva, VarianceMap.juglab_hdn(), False, _softplus_log_var),
    "vae_vampprior": Peer(vae_vampprior, VarianceMap("exp", raw_min=-6.0, raw_max=2.0), False),
    "hvae-oodd": Peer(hvae_oodd, VarianceMap("softplus", beta=LOG_2, raw_min=_OODD_RAW_MIN), False),
}
