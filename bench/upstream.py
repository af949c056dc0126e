"""CAREamics' stochastic block without its convolutions, or where CAREamics is not installed, a stand-in for it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from bench.kernels.cases import Case


def upstream_block(case: Case) -> nn.Module:
    """A block whose inputs are the packed parameters themselves, as upstream's convolutions would give them."""
    # Without a window upstream raises; one of the latent's size leaves everything in.
    window = case.space[-1] if case.window is None else case.window
    try:
        from bench.careamics_parts import NormalStochasticBlock
    except ImportError:
        return StandIn(window)
    # Built with as little as possible, and replaced: the convolutions cost the same whoever samples.
    block = NormalStochasticBlock(1, case.channels, 1, len(case.space), kernel=1, vanilla_latent_hw=window)
    block.conv_in_p = block.conv_in_q = block.conv_out = nn.Identity()
    return block


class StandIn(nn.Module):
    """The same operations in the same order as upstream's block on plain tensors, validation and syncs included."""

    def __init__(self, vanilla_latent_hw: int) -> None:
        super().__init__()
        self._window = vanilla_latent_hw

    def forward(
        self,
        p_params: Tensor,
        q_params: Tensor,
        *,
        analytical_kl: bool = False,
        mode_pred: bool = False,
        var_clip_max: float | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Takes packed p and q (B, 2C, *S); returns z (B, C, *S) and upstream's dict of it and of the KL metrics."""
        p_mean, p_logvar = _halves(p_params, var_clip_max)
        p = Normal(p_mean, _std(p_logvar))
        q_mean, q_logvar = _halves(q_params, var_clip_max)
        q = Normal(q_mean, _std(q_logvar))
        data: dict[str, Any] = {"qvar_max": torch.max(torch.log(_variance(q_logvar)))}
        z = q.rsample()
        data |= {"z": z, "logprob_q": q.log_prob(z).sum(tuple(range(1, z.dim())))}
        if not mode_pred:
            if analytical_kl:
                kl = kl_divergence(q, p)
            else:
                # Upstream maps the log-variances and makes the distributions a second time.
                p_std, q_std = _std(p_logvar), _std(q_logvar)
                p, q = Normal(p_mean, p_std), Normal(q_mean, q_std)
                kl = q.log_prob(z) - p.log_prob(z)
            data |= self._metrics(kl)
        return z, data

    def _metrics(self, kl: Tensor) -> dict[str, Tensor]:
        dims = tuple(range(kl.dim()))
        samplewise = kl.sum(dims[1:])
        channelwise = kl.sum(dims[2:])
        pad = (kl.shape[-1] - self._window) // 2
        restricted = kl[..., pad:-pad, pad:-pad].sum(dims[1:]) if pad > 0 else samplewise
        return {
            "kl_elementwise": kl,
            "kl_samplewise": samplewise,
            "kl_samplewise_restricted": restricted,
            "kl_channelwise": channelwise,
            "kl_spatial": kl.sum(1),
        }


def _halves(packed: Tensor, logvar_max: float | None) -> tuple[Tensor, Tensor]:
    mean, logvar = packed.chunk(2, dim=1)
    return mean, logvar if logvar_max is None else torch.clip(logvar, max=logvar_max)


def _variance(logvar: Tensor) -> Tensor:
    """exp(l) for l <= 0, 1 + l above, selected by products with masks as upstream does."""
    above, positive = logvar > 0, torch.clip(logvar, min=0)
    below, negative = logvar <= 0, torch.clip(logvar, max=0)
    return torch.exp(negative) * below + (1 + positive) * above + 1e-6


def _std(logvar: Tensor) -> Tensor:
    return torch.sqrt(_variance(logvar))
