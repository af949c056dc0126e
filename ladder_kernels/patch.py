"""`patch_model` and `unpatch_model`: the fused step inside an existing CAREamics model, and back.

The only module that knows how upstream's block looks. A block changes its class and nothing else: its parameters,
hooks and place in the model stay, so an optimizer or a checkpoint never notices.
"""

import inspect
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
    Calling it again sets the options anew. Other instances of the model's class are not touched.
    """
    patched, skipped = [], {}
    for name, module in model.named_modules():
        if isinstance(module, NormalStochasticBlock):
            module.set_options(**block_options)
            patched.append(name)
        elif _looks_like_the_block(module):
            reason = _reason_to_skip(module)
            if reason is not None:
                skipped[name] = reason
                continue
            setattr(module, _ORIGINAL_CLASS, type(module))
            module.__class__ = NormalStochasticBlock
            module.set_options(**block_options)
            patched.append(name)
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


def _looks_like_the_block(module: nn.Module) -> bool:
    return all(hasattr(module, attribute) for attribute in _ATTRIBUTES) and all(
        callable(getattr(module, method, None)) for method in _METHODS
    )


def _reason_to_skip(module: nn.Module) -> str | None:
    cls = type(module)
    base = next((c for c in cls.__mro__ if c.__name__ == UPSTREAM_NAME), cls)
    overridden = [m for m in _METHODS if m in module.__dict__ or getattr(cls, m) is not getattr(base, m)]
    if overridden:
        return f"it overrides {', '.join(overridden)}"
    accepted = inspect.signature(NormalStochasticBlock.forward).parameters
    unknown = [name for name in inspect.signature(cls.forward).parameters if name not in accepted]
    if unknown:
        return f"its forward takes {', '.join(unknown)}"
    return None
