"""`patch_model` and `unpatch_model`: the fused step inside an existing CAREamics model, and back.

The only module that knows how upstream's block looks. A block changes its class and nothing else: its parameters,
hooks and place in the model stay, so an optimizer or a checkpoint never notices.
"""

import inspect
import itertools
from typing import Any, NamedTuple

from torch import nn

from ladder_kernels.block import NormalStochasticBlock
from ladder_kernels.composed import STAGES

UPSTREAM_NAME = "NormalStochasticBlock"
_ATTRIBUTES = (
    "c_vars",
    "conv_in_q",
    "conv_out",
    "transform_p_params",
    "_vanilla_latent_hw",
    "_use_naive_exponential",
)
_METHODS = ("forward", "sample_from_q", *STAGES)
_OPTIONS = ("allow_oddsizes", "rng", "validate_args")
_ORIGINAL_CLASS = "_ladder_kernels_original_class"


class PatchReport(NamedTuple):
    """Names of modules: those that now run fused, and those that look like the block but were left, with the reason."""

    patched: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.patched)} stochastic blocks run fused"]
        lines += [f"  {name}" for name in self.patched]
        lines += [f"  {name}: left as it is, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def patch_model(model: nn.Module, **block_options: Any) -> PatchReport:
    """Let every `NormalStochasticBlock` of CAREamics in `model` (or `model` itself) run fused.

    `block_options` are those of `NormalStochasticBlock.set_options`: `allow_oddsizes`, `rng`, `validate_args`.
    Calling it again sets the options anew. Other instances of the model's class are not touched, nor are blocks of
    ours that were there before. Raises ValueError or TypeError for a wrong option, before anything is changed.
    """
    NormalStochasticBlock(1, 1, 1, **block_options)
    patched, skipped = [], {}
    for name, module in model.named_modules():
        if _ORIGINAL_CLASS in module.__dict__:
            module.set_options(**block_options)
            patched.append(name)
        elif _looks_like_the_block(type(module), module):
            reason = _reason_to_skip(module)
            if reason is None:
                _patch(module, block_options)
                patched.append(name)
            else:
                skipped[name] = reason
    return PatchReport(patched, skipped)


def unpatch_model(model: nn.Module) -> list[str]:
    """Give every patched block its own class back; returns the names of the modules."""
    restored = []
    for name, module in model.named_modules():
        original = module.__dict__.get(_ORIGINAL_CLASS)
        if original is None:
            continue
        module.__class__ = original
        for attribute in (_ORIGINAL_CLASS, *_OPTIONS):
            delattr(module, attribute)
        restored.append(name)
    return restored


def _patch(module: Any, block_options: dict[str, Any]) -> None:
    setattr(module, _ORIGINAL_CLASS, type(module))
    module.__class__ = NormalStochasticBlock
    module.set_options(**block_options)
    if module._vanilla_latent_hw is not None:
        # CAREamics leaves a numpy integer, which torch.compile would take for an array.
        module._vanilla_latent_hw = int(module._vanilla_latent_hw)


def _looks_like_the_block(cls: type, module: nn.Module) -> bool:
    """By what it has, not by where it comes from; methods of the class, so that a wrapper does not pass for it."""
    if issubclass(cls, NormalStochasticBlock):
        return False
    return all(callable(getattr(cls, method, None)) for method in _METHODS) and all(
        hasattr(module, attribute) for attribute in _ATTRIBUTES
    )


def _reason_to_skip(module: nn.Module) -> str | None:
    """Why the fused block would not do what this one does, or None."""
    cls = type(module)
    lineage = list(itertools.takewhile(lambda c: c.__name__ != UPSTREAM_NAME, cls.__mro__))
    if len(lineage) == len(cls.__mro__):
        return f"it is a {cls.__name__}, not a {UPSTREAM_NAME}"
    own = {name for c in lineage for name in vars(c) if not name.startswith("__")}
    own |= {name for name in _METHODS if name in module.__dict__}
    if own:
        return f"it adds or overrides {', '.join(sorted(own))}"
    accepted = inspect.signature(NormalStochasticBlock.forward).parameters
    unknown = [name for name in inspect.signature(cls.forward).parameters if name not in accepted]
    if unknown:
        return f"its forward takes {', '.join(unknown)}"
    return None
