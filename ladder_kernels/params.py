"""Look-alikes of upstream's StableMean and StableLogVar: a Gaussian's parameters, mapped when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ladder_kernels.backends.torch.formulas import Gaussian, clamp, gaussian
from ladder_kernels.geometry import center_crop, device_type
from ladder_kernels.variance import VarianceMap

_VAR_EPS = VarianceMap("stable").floor


class _Parameter:
    """A tensor (B, C, *S), or a function that gives it, with upstream's shape queries."""

    def __init__(self, tensor: Tensor | Callable[[], Tensor]) -> None:
        self._tensor_or_late = tensor

    @property
    def _tensor(self) -> Tensor:
        tensor = self._tensor_or_late
        if not isinstance(tensor, Tensor):
            self._tensor_or_late = tensor = tensor()
        return tensor

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
        return self.__dict__ | {"_tensor_or_late": self._tensor}


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


def parameter_pair(packed: Tensor, variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
    """The two halves of packed parameters (B, 2C, *S), as views."""
    mean, raw = packed.chunk(2, dim=1)
    return StableMean(mean), StableLogVar(raw, variance=variance)


def late_parameter_pair(
    packed: Tensor | Callable[[], Tensor], variance: VarianceMap
) -> tuple[StableMean, StableLogVar]:
    """The same, but the views, and what they are of, are made when one of the two is first read, as they would be now.

    Nobody reads most of them, and with their autograd they cost a fifth of a small step.
    """
    halves = _LateHalves(packed)
    return StableMean(halves.mean), StableLogVar(halves.raw, variance=variance)


class _LateHalves:
    """The halves of packed parameters, in the gradient and inference mode of now."""

    def __init__(self, packed: Tensor | Callable[[], Tensor]) -> None:
        self._packed_or_late = packed
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._halves: Sequence[Tensor] = ()

    def mean(self) -> Tensor:
        return self._half(0)

    def raw(self) -> Tensor:
        return self._half(1)

    def _half(self, index: int) -> Tensor:
        if not self._halves:
            with torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
                packed = self._packed_or_late
                self._halves = (packed if isinstance(packed, Tensor) else packed()).chunk(2, dim=1)
        return self._halves[index]


class LateCall:
    """`module(features)`, computed later as it would have been now, or not at all.

    Autocast is that of now. If an in-place change of the features, a step of an optimizer, an average of weights or a
    loaded checkpoint has come in between, calling it raises RuntimeError.
    """

    def __init__(self, module: nn.Module, features: Tensor) -> None:
        self._module, self._features = module, features
        device = device_type(features)
        self._autocast: dict[str, Any] = {"device_type": device, "enabled": torch.is_autocast_enabled(device)}
        if self._autocast["enabled"]:
            self._autocast["dtype"] = torch.get_autocast_dtype(device)
            self._autocast["cache_enabled"] = torch.is_autocast_cache_enabled()
        parameters, buffers = _weights(module)
        self._versions = self._versions_now(parameters, buffers)
        # `parameter.data.copy_`, which averages of weights use, counts as no version: one parameter stands for all.
        # Of a convolution the bias, its smallest; none of a module without parameters.
        with torch.no_grad():
            self._last_values = [parameter.clone() for parameter in parameters[-1:]]

    def __call__(self) -> Tensor:
        if not self._is_unchanged():
            raise RuntimeError(
                f"this value was left out of the call and can no longer be computed: the weights of {self._module} or "
                "its input have changed since"
            )
        with torch.autocast(**self._autocast):
            return self._module(self._features)

    def _is_unchanged(self) -> bool:
        parameters, buffers = _weights(self._module)
        return self._versions_now(parameters, buffers) == self._versions and all(
            torch.allclose(now, then, rtol=0, atol=0, equal_nan=True)
            for now, then in zip(parameters[-1:], self._last_values, strict=True)
        )

    def _versions_now(self, parameters: list[Tensor], buffers: list[Tensor]) -> list[int | None]:
        tensors = (self._features, *parameters, *buffers)
        # Tensors of the inference mode have none.
        return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def _weights(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and the buffers."""
    if module._modules:
        return [*module.parameters()], [*module.buffers()]
    # Of a convolution, which has none below it: the walk costs as much as all else here.
    parameters, buffers = module._parameters.values(), module._buffers.values()
    return [each for each in parameters if each is not None], [each for each in buffers if each is not None]


def _register(cls: type[_Parameter]) -> None:
    """Lets torch's tree functions see the tensor: export, vmap, FSDP and tree_map."""

    def flatten(parameter: _Parameter) -> tuple[list[Tensor], list[tuple[str, Any]]]:
        settings = {name: value for name, value in vars(parameter).items() if name != "_tensor_or_late"}
        return [parameter._tensor], sorted(settings.items())

    def unflatten(tensors: Any, settings: Any) -> _Parameter:
        parameter = cls.__new__(cls)
        (parameter._tensor_or_late,) = tensors
        vars(parameter).update(settings)
        return parameter

    _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"ladder_kernels.params.{cls.__name__}")


_register(StableMean)
_register(StableLogVar)
