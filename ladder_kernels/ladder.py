"""CAREamics' LadderVAE: which module is one, what sizes it takes, and its forward with one bottom-up pass.

Together with `patch` and `patch_likelihood` all that knows CAREamics' names.
"""

import functools
import weakref
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

PASSES = ("bottomup_pass", "topdown_pass")


def find_ladder(model: nn.Module) -> tuple[nn.Module | None, bool, str]:
    """The one module with the two passes in `model`, whether it or what wraps it is compiled; or why there is none."""
    found = {name: module for name, module in model.named_modules() if is_ladder(module)}
    if len(found) != 1:
        which = f"several LadderVAEs ({', '.join(found)}), of which one can be given" if found else "no LadderVAE"
        return None, False, f"{type(model).__name__} has {which}"
    ((name, ladder),) = found.items()
    path = name.split(".") if name else []
    way = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]
    return ladder, "_orig_mod" in path or any(each._compiled_call_impl is not None for each in way), ""


def context_count(ladder: Any) -> int:
    """How many inputs it takes: the image, and its lateral context."""
    return getattr(ladder, "_multiscale_count", None) or 1


def multiples(ladder: Any) -> tuple[int, ...]:
    """What the sides of its input must be multiples of.

    Every level halves them but those with lateral context, and a block crops an odd latent, unless it allows them:
    then the level below no longer fits.
    """
    halvings = max(ladder.n_layers + 1 - context_count(ladder), 1)
    even = 1 if _allows_oddsizes(ladder) else 2
    return tuple(1 if stride == 1 else even * stride**halvings for stride in ladder.encoder_conv_strides)


def trained_depth(ladder: Any) -> int | None:
    """How many planes the volumes have that it was built for, where its levels do not halve them; else None."""
    strides = ladder.encoder_conv_strides
    return ladder._model_3D_depth if len(strides) == 3 and strides[0] == 1 else None


def misfit(ladder: Any, sides: Sequence[int]) -> str | None:
    """One sentence where a side is no multiple, else None."""
    wanted = multiples(ladder)
    if not any(side % multiple for side, multiple in zip(sides, wanted, strict=True)):
        return None
    found, takes = " x ".join(map(str, sides)), max(wanted)
    option = "" if _allows_oddsizes(ladder) else f", or of {takes // 2} after patch_model(model, allow_oddsizes=True)"
    return f"the sides of {found} must be multiples of {takes} for this LadderVAE of {ladder.n_layers} levels{option}"


def _allows_oddsizes(ladder: Any) -> bool:
    return all(getattr(layer.stochastic, "allow_oddsizes", False) for layer in ladder.top_down_layers)


def is_ladder(module: nn.Module) -> bool:
    """By its class: a wrapper shows attributes of what it wraps as its own."""
    return all(callable(getattr(type(module), each, None)) for each in PASSES)


class ExplainsSizes(nn.Module):
    """Mixed into a LadderVAE: says what is wrong with a size, of which upstream says that two features differ."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Upstream's. Raises ValueError for sides that do not fit."""
        if torch.compiler.is_compiling():
            return super().forward(x, *args, **kwargs)
        try:
            return super().forward(x, *args, **kwargs)
        except AssertionError as error:
            sides = tuple(x.shape[2:])
            reason = misfit(self, sides)
            if reason is None and not self.mode_pred:
                reason = f"it was built for patches of another size than {' x '.join(map(str, sides))}: "
                reason += "to predict them, use predict_mmse, or call its reset_for_inference first"
            if reason is None:
                raise
            raise ValueError(reason) from error


class BottomUpOnce:
    """A ladder's own forward, whose bottom-up pass runs at the first call of an input and serves all that follow.

    Not the two passes one after the other: what a forward does before, between and after them (squishing, cropping, the
    output layer, a subclass's own work) is done as there. The forward belongs to a stand-in, another object with the
    ladder's class, modules and weights; what is set on it leaves the ladder alone, and it is set in its `__dict__`,
    for a class may pass attributes on.
    """

    def __init__(self, ladder: nn.Module, compiled: bool, sides: tuple[int, ...] | None = None) -> None:
        """`sides` are those of the inputs, where the ladder is not set up for them."""
        self.ladder = stand_in = _copy(ladder)
        if sides is not None and context_count(ladder) > 1:
            _set_up(stand_in, sides)
        passes = [getattr(stand_in, name) for name in PASSES]
        self._bottomup_pass, self._topdown_pass = passes
        if compiled:
            self._topdown_pass = torch.compile(self._topdown_pass)
        me = weakref.proxy(self)  # no cycle, in which the features would outlive the call
        vars(stand_in).update(
            mode_pred=True,
            bottomup_pass=MethodType(BottomUpOnce._bottom_up, me),
            topdown_pass=MethodType(BottomUpOnce._top_down, me),
            _compiled_call_impl=None,
        )
        self._squishes = vars(stand_in).get("_squish3d")
        self._input: Tensor | None = None
        self._features: list[Tensor] = []  # what the forward hands to the top-down pass, for one sample
        self._count = 1

    def __call__(self, x: Tensor, count: int) -> Any:
        """`count` predictions of `x`, samples outermost; a single one where the forward does not use the passes."""
        self._count = count
        return self.ladder(x)

    @property
    def shares(self) -> bool:
        """Whether the forward, once called, uses the two passes, so that samples share the bottom-up one."""
        return bool(self._features)

    def _bottom_up(self, x: Tensor) -> list[Tensor]:
        if x is self._input:
            return list(self._features)
        self._input, self._features = x, []
        vars(self.ladder)["_squish3d"] = self._squishes
        return self._bottomup_pass(x)

    def _top_down(self, features: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        if not self.shares:
            self._features = [_fast_layout(each) for each in features]
            vars(self.ladder)["_squish3d"] = False  # they are squished
        repeated = [torch.cat([each] * self._count) for each in self._features]
        return self._topdown_pass(repeated, *args, **kwargs)


def _set_up(stand_in: Any, sides: tuple[int, ...]) -> None:
    """Lateral context is cropped to these sides, in layers of its own: upstream's method sets them there."""
    layers = {
        name: nn.ModuleList(map(_copy, getattr(stand_in, name))) for name in ("bottom_up_layers", "top_down_layers")
    }
    for layer in (*layers["bottom_up_layers"], *layers["top_down_layers"]):
        layer._compiled_call_impl = None  # it would call the layer it was made for
    vars(stand_in)["_modules"] = stand_in._modules | layers
    stand_in.reset_for_inference(sides)


def _copy(module: nn.Module) -> Any:
    """Another module with this one's class, modules, weights and hooks."""
    copied = object.__new__(type(module))
    vars(copied).update({name: _rebound(value, module, copied) for name, value in vars(module).items()})
    return copied


def _rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """An attribute of `old` for `new`: a method bound to it, as which wrappers keep its forward, is bound to `new`."""
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *[new if each is old else each for each in value.args], **value.keywords)
    return value


def _fast_layout(features: Tensor) -> Tensor:
    """channels_last for oneDNN's 2D convolutions, which then reorder nothing; all that follows keeps the layout."""
    if features.dim() == 4 and features.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return features.contiguous(memory_format=torch.channels_last)
    return features


def draws_samples(module: nn.Module) -> bool:
    """Whether it is a Lightning module of CAREamics whose `predict_step` draws `n_samples` predictions."""
    steps = all(callable(getattr(type(module), name, None)) for name in ("predict_step", "predict_sample"))
    return steps and "n_samples" in vars(module) and _child_with_ladder(module) is not None


def _child_with_ladder(module: nn.Module) -> str | None:
    """The name of the one child that is a LadderVAE or wraps it; of several, that of `model`."""
    names = [name for name, child in module.named_children() if find_ladder(child)[0] is not None]
    return names[0] if len(names) == 1 else "model" if "model" in names else None


class SharedBottomUp(nn.Module):
    """Mixed into a Lightning module of CAREamics that draws `n_samples` predictions of one input in a `predict_step`.

    The step is upstream's, on a stand-in of the module whose LadderVAE runs the bottom-up pass once. The samples come
    one by one, as upstream asks for them.
    """

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, with one bottom-up pass."""
        name, stand_in = _child_with_ladder(self), self
        if name is not None:
            # Both are there: `_child_with_ladder` has looked.
            ladder, compiled, _ = find_ladder(self._modules[name])  # type: ignore[arg-type]
            step = BottomUpOnce(ladder, compiled)  # type: ignore[arg-type]
            stand_in = _copy(self)
            vars(stand_in)["_modules"] = self._modules | {name: step.ladder}
        # Upstream's class comes next in the mixed one, which mypy cannot know.
        return super(SharedBottomUp, stand_in).predict_step(*args, **kwargs)  # type: ignore[misc]
