"""What `patch_model` makes of CAREamics' NoiseModelLikelihood with GaussianMixtureNoiseModels: it runs fused.

By what they have, as with the blocks. Parameters, buffers, statistics and device moves stay upstream's.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ladder_kernels.likelihood import mixture_log_likelihood

_CONSTANTS = ("min_signal", "max_signal", "min_sigma", "tolerance")
# Of a noise model's class: what its likelihood is made of, which ours takes the place of.
_STAGES = ("likelihood", "get_gaussian_parameters", "polynomial_regressor", "normal_density")


class FusedLikelihood(nn.Module):
    """The log-likelihood of all channels in one kernel; what it does not take goes upstream's way."""

    data_mean: Tensor | None
    data_std: Tensor | None
    noiseModel: Any  # noqa: N815 - upstream's
    _set_params_to_same_device_as: Any

    def log_likelihood(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        signal, mean, std = params["mean"], self.data_mean, self.data_std
        models = mixtures(self.noiseModel)
        fits = x.shape == signal.shape and (x.shape[1] == 1 or len(models) in (1, x.shape[1]))
        if mean is None or std is None or not (fits and _is_per_channel(mean, x) and _is_per_channel(std, x)):
            # Upstream's class comes next in the mixed one, which mypy cannot know.
            return super().log_likelihood(x, params)  # type: ignore[misc]
        self._set_params_to_same_device_as(x)
        if models[0].weight.device != x.device:
            self.noiseModel.to_device(x.device)
        models = models[: x.shape[1]]
        weight = models[0].weight[None] if len(models) == 1 else torch.stack([model.weight for model in models])
        constants = {name: [getattr(model, name) for model in models] for name in _CONSTANTS}
        # Their new tensors, if they have moved.
        return mixture_log_likelihood(x, signal, weight, **constants, mean=self.data_mean, std=self.data_std)


def is_likelihood(module: nn.Module) -> bool:
    """Whether it looks like upstream's NoiseModelLikelihood, patched or not."""
    return isinstance(getattr(module, "noiseModel", None), nn.Module) and hasattr(type(module), "log_likelihood")


def reason_to_skip(module: Any) -> str | None:
    """Why ours would not do what this likelihood does, or None."""
    changed = _changed(module, "NoiseModelLikelihood", ("log_likelihood",))
    if changed is not None:
        return changed
    models = mixtures(module.noiseModel)
    for model in models:
        if not _is_mixture(model):
            return (
                f"its noise model is a {type(model).__name__}, not a mixture of Gaussians with polynomial parameters: "
                "ladder_kernels.mixture_log_likelihood may do what it does"
            )
        changed = _changed(model, "GaussianMixtureNoiseModel", _STAGES)
        if changed is not None:
            return f"of its noise model, {changed}"
    if len({model.weight.shape for model in models}) > 1:
        return "the mixtures of its channels have different numbers of Gaussians or coefficients"
    return None


def mixtures(noise_model: Any) -> list[Any]:
    """A multi-channel noise model's own ones, channel by channel, or itself."""
    own = [model for name, model in noise_model.named_children() if name.startswith("nmodel_")]
    return own or [noise_model]


def _is_mixture(model: Any) -> bool:
    weight = getattr(model, "weight", None)
    has_constants = all(isinstance(getattr(model, name, None), Tensor) for name in _CONSTANTS)
    return has_constants and isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] % 3 == 0


def _changed(module: Any, upstream_name: str, methods: tuple[str, ...]) -> str | None:
    """What a subclass, or the instance, does in its own way."""
    cls = type(module)
    lineage = list(itertools.takewhile(lambda c: c.__name__ != upstream_name, cls.__mro__))
    if len(lineage) == len(cls.__mro__):
        return f"it is a {cls.__name__}, not CAREamics' {upstream_name}"
    own = {name for scope in (module, *lineage) for name in vars(scope)} & set(methods)
    return f"it adds or overrides {', '.join(sorted(own))}" if own else None


def _is_per_channel(statistic: Tensor, x: Tensor) -> bool:
    """Whether one value is that of a channel, when broadcast as upstream does it."""
    aligned = (1,) * (x.dim() - statistic.dim()) + tuple(statistic.shape)
    return statistic.numel() == 1 or (len(aligned) == x.dim() and aligned[1] == statistic.numel() == x.shape[1])
