"""Look-alikes of upstream's StableMean and StableLogVar: a Gaussian's parameters, mapped when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.backends.torch.formulas import Gaussian, clamp, gaussian
from ladder_kernels.geometry import center_crop
from ladder_kernels.variance import VarianceMap

_VAR_EPS = VarianceMap("stable").floor


def _absent() -> Tensor:
    """The tensor of a parameter that has none."""
    raise RuntimeError(
        "p is not computed in a prediction from q, which does not need it: "
        "process_p_params(p_features, var_clip_max) of the block gives it"
    )


class _Parameter:
    """A tensor (B, C, *S), or a function that gives it, with upstream's shape queries."""

    def __init__(self, tensor: Tensor | Callable[[], Tensor]) -> None:
        self._tensor_or_late = tensor

    @property
    def _tensor(self) -> Tensor:
        tensor = self._tensor_or_late
        if callable(tensor):
            self._tensor_or_late = tensor = tensor()
        return tensor

    def _tensors(self) -> list[Tensor]:
        """The tensor, if there is one."""
        return [] if self._tensor_or_late is _absent else [self._tensor]

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
        self._tensor_or_late = center_crop(self._tensor, (*spatial[: len(spatial) - len(cropped)], *cropped))

    def __getstate__(self) -> dict[str, Any]:
        # What is copied or pickled is the value, not the way to it.
        self._tensors()
        return self.__dict__


class StableMean(_Parameter):
    """The mean of a Gaussian."""

    @property
    def _mean(self) -> Tensor:
        return self._tensor

    def get(self) -> Tensor:
        """The mean (B, C, *S)."""
        return self._tensor


class StableLogVar(_Parameter):
    """The log-variance of a Gaussian, mapped from the raw parameter when a value is asked for.

    Parameters
    ----------
    logvar
        The raw parameter (B, C, *S).
    enable_stable, var_eps
        Upstream's: the map "stable" with that floor, or the map "exp".
    variance
        The map itself, instead of these two.
    """

    def __init__(
        self,
        logvar: Tensor | Callable[[], Tensor],
        enable_stable: bool = True,
        var_eps: float = _VAR_EPS,
        *,
        variance: VarianceMap | None = None,
    ) -> None:
        self._tensor_or_late = logvar
        self._variance = variance or (VarianceMap("stable", floor=var_eps) if enable_stable else VarianceMap("exp"))

    @property
    def _lv(self) -> Tensor:
        return clamp(self._tensor, self._variance)[0]

    def to(self, dtype: torch.dtype) -> "StableLogVar":
        """The same, mapped from the raw parameter in that dtype."""
        return StableLogVar(self._tensor.to(dtype), variance=self._variance)

    def _gaussian(self) -> Gaussian:
        return gaussian(self._tensor, self._tensor, self._variance)

    def get(self) -> Tensor:
        """The log of the variance."""
        return self._gaussian().log_var

    def get_var(self) -> Tensor:
        """The variance."""
        return self._gaussian().std.square()

    def get_std(self) -> Tensor:
        """The standard deviation."""
        return self._gaussian().std


def wide(value: Any) -> Any:
    """A tensor or a log-variance in the dtype that the step is computed in: float32 for half precision."""
    if isinstance(value, StableLogVar):
        return value.to(compute_dtype(value._tensor))
    # Of an override the parameter may be another class's.
    return value.to(compute_dtype(value)) if isinstance(value, Tensor) else value


def parameter_pair(packed: Tensor, variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
    """The two halves of packed parameters (B, 2C, *S), as views."""
    mean, raw = packed.chunk(2, dim=1)
    return StableMean(mean), StableLogVar(raw, variance=variance)


def absent_parameter_pair(variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
    """p of a prediction from q: whoever reads one of the two gets a RuntimeError that says where p is to be had."""
    return StableMean(_absent), StableLogVar(_absent, variance=variance)


def late_parameter_pair(packed: Tensor, variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
    """`parameter_pair`, but the views are made when one of the two is first read, as they would be now.

    Nobody reads most of them, and with their autograd they cost a fifth of a small step.
    """
    halves = _LateHalves(packed)
    return StableMean(halves.mean), StableLogVar(halves.raw, variance=variance)


class _LateHalves:
    """The halves of packed parameters, in the gradient and inference mode of now."""

    def __init__(self, packed: Tensor) -> None:
        self._packed = packed
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._halves: Sequence[Tensor] = ()

    def mean(self) -> Tensor:
        return self._half(0)

    def raw(self) -> Tensor:
        return self._half(1)

    def _half(self, index: int) -> Tensor:
        if not self._halves:
            with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
                self._halves = self._packed.chunk(2, dim=1)
        return self._halves[index]


def _register(cls: type[_Parameter]) -> None:
    """Lets torch's tree functions see the tensor: export, vmap, FSDP and tree_map."""

    def flatten(parameter: Any) -> tuple[list[Tensor], tuple[Any, ...]]:
        # The map as constants, which is all that a compiler and a saved program take.
        return parameter._tensors(), parameter._variance.fields() if hasattr(parameter, "_variance") else ()

    def unflatten(tensors: Any, fields: Any) -> _Parameter:
        parameter: Any = cls.__new__(cls)
        (parameter._tensor_or_late,) = tensors or (_absent,)
        if fields:
            kind, raw_min, raw_max, beta, floor = fields
            parameter._variance = VarianceMap(kind, raw_min=raw_min, raw_max=raw_max, beta=beta, floor=floor)
        return parameter

    _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"ladder_kernels.params.{cls.__name__}")


_register(StableMean)
_register(StableLogVar)
