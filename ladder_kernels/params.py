"""Look-alikes of upstream's StableMean and StableLogVar: a Gaussian's parameters, mapped when they are asked for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ladder_kernels.backends.torch.formulas import VARIANCE_FLOOR, clamp_logvar, max_log_variance, variance
from ladder_kernels.geometry import center_crop


class _Parameter:
    """A tensor (B, C, *S) with upstream's shape queries."""

    _tensor: Tensor

    @property
    def is_3D(self) -> bool:  # noqa: N802  # upstream's name
        """Whether the latent has three spatial dims."""
        return self._tensor.dim() == 5

    def centercrop_to_size(self, size: int | Sequence[int]) -> None:
        """Keep the centre of the last two dims: `size` for both, or one size each.

        Raises ValueError if it is smaller already. Unlike upstream's, it works in 3D and for odd differences.
        """
        spatial = self._tensor.shape[2:]
        cropped = (size,) * len(spatial[-2:]) if isinstance(size, int) else tuple(size)
        self._tensor = center_crop(self._tensor, (*spatial[: len(spatial) - len(cropped)], *cropped))


class StableMean(_Parameter):
    """The mean of a Gaussian."""

    def __init__(self, mean: Tensor) -> None:
        self._tensor = mean

    @property
    def _mean(self) -> Tensor:
        return self._tensor

    def get(self) -> Tensor:
        """The mean (B, C, *S)."""
        return self._tensor


class StableLogVar(_Parameter):
    """The log-variance of a Gaussian.

    Parameters
    ----------
    logvar
        The raw log-variance (B, C, *S).
    enable_stable
        Variance `exp(l) if l <= 0 else 1 + l`, plus `var_eps`; False: `exp(l)`.
    var_eps
        Floor of the stable variance.
    logvar_max
        Upper clamp of `logvar`, applied when a value is asked for.
    """

    def __init__(
        self,
        logvar: Tensor,
        enable_stable: bool = True,
        var_eps: float = VARIANCE_FLOOR,
        *,
        logvar_max: float | None = None,
    ) -> None:
        self._tensor = logvar
        self._enable_stable = enable_stable
        self._eps = var_eps
        self._logvar_max = logvar_max

    @property
    def _lv(self) -> Tensor:
        return clamp_logvar(self._tensor, self._logvar_max)

    def get(self) -> Tensor:
        """The log of the variance; in the naive map the clamped log-variance."""
        return torch.log(self.get_var()) if self._enable_stable else self._lv

    def max(self) -> Tensor:
        """The largest `get()` (), detached; -inf where there is none."""
        return max_log_variance(self._lv, self._enable_stable)

    def get_var(self) -> Tensor:
        """The variance."""
        return variance(self._lv, self._enable_stable, self._eps)

    def get_std(self) -> Tensor:
        """The standard deviation; the naive one does not underflow where its square does."""
        return torch.sqrt(self.get_var()) if self._enable_stable else torch.exp(0.5 * self._lv)


def parameter_pair(packed: Tensor, logvar_max: float | None, stable: bool) -> tuple[StableMean, StableLogVar]:
    """The two halves of packed parameters (B, 2C, *S), as views."""
    mean, logvar = packed.chunk(2, dim=1)
    return StableMean(mean), StableLogVar(logvar, enable_stable=stable, logvar_max=logvar_max)
