"""A small block, features for it, and what it gives."""

import torch

from ladder_kernels import NormalStochasticBlock

KEYS = {
    "kl_elementwise",
    "kl_samplewise",
    "kl_samplewise_restricted",
    "kl_spatial",
    "kl_channelwise",
    "z",
    "p_params",
    "q_params",
    "logprob_q",
    "qvar_max",
}
KL_KEYS = {key for key in KEYS if key.startswith("kl_")}


def block(**settings):
    return NormalStochasticBlock(6, 4, 5, **settings)


def features(*spatial, batch=3, channels=6):
    return torch.randn(batch, channels, *spatial)
