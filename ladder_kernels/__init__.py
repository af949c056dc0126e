"""Fused kernels for the stochastic step of hierarchical VAEs."""

from ladder_kernels.backends.select import BackendUnavailableError, use_backend
from ladder_kernels.block import NormalStochasticBlock
from ladder_kernels.distribution import DiagonalGaussianDistribution
from ladder_kernels.functional import (
    SampleKL,
    SampleLogProb,
    normal_kl,
    normal_log_prob,
    normal_sample,
    normal_sample_kl,
    normal_sample_log_prob,
)
from ladder_kernels.likelihood import mixture_log_likelihood
from ladder_kernels.patch import patch_model, unpatch_model
from ladder_kernels.predict import predict_mmse
from ladder_kernels.variance import VarianceMap

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "DiagonalGaussianDistribution",
    "NormalStochasticBlock",
    "SampleKL",
    "SampleLogProb",
    "VarianceMap",
    "mixture_log_likelihood",
    "normal_kl",
    "normal_log_prob",
    "normal_sample",
    "normal_sample_kl",
    "normal_sample_log_prob",
    "patch_model",
    "predict_mmse",
    "unpatch_model",
    "use_backend",
]
