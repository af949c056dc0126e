"""`patch_model` and `unpatch_model`: the fused step inside an existing CAREamics model, and back.

The only module that knows how upstream's block looks; `patch_likelihood` knows its likelihood. What is patched changes
its class and nothing else: its parameters, hooks and place in the model stay, so an optimizer or a checkpoint never
notices.
"""

import copyreg
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from ladder_kernels.block import NormalStochasticBlock, check_rng
from ladder_kernels.ladder import ExplainsSizes, SharedBottomUp, draws_samples, is_ladder
from ladder_kernels.overrides import STAGES
from ladder_kernels.patch_likelihood import FusedLikelihood, is_likelihood
from ladder_kernels.patch_likelihood import reason_to_skip as reason_to_skip_likelihood

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


@dataclasses.dataclass(frozen=True)
class PatchReport:
    """What `patch_model` did. Printed, it also says with which backend, noise and versions: what a bug report needs."""

    patched: list[str]
    """Names of the blocks that now run fused."""
    skipped: dict[str, str]
    """Names of those that look like the block but were left, with the reason."""
    predictors: list[str]
    """Names of Lightning modules whose predictions of one input now share the bottom-up pass."""
    likelihoods: list[str]
    """Names of noise-model likelihoods that now run fused."""
    rng: str | None = None
    """The option that `patch_model` was given."""

    def __str__(self) -> str:
        from ladder_kernels import info  # which imports this package

        lines = [f"{len(self.patched)} stochastic blocks run fused"]
        lines += [f"  {name}" for name in self.patched]
        lines += [f"the likelihood {name or 'itself'} runs fused" for name in self.likelihoods]
        lines += [f"  {name}: left as it is, {reason}" for name, reason in self.skipped.items()]
        lines += [f"predictions of {name or 'the model'} share one bottom-up pass" for name in self.predictors]
        lines += [f"{tensors}: {serves}" for tensors, serves in info.defaults(self.rng).items()]
        lines.append(", ".join(f"{name} {version}" for name, version in info.versions().items() if version))
        return "\n".join(lines)


def patch_model(
    model: nn.Module,
    *,
    allow_oddsizes: bool | None = None,
    rng: Literal["torch", "philox"] | None = None,
    validate_args: bool | None = None,
) -> PatchReport:
    """Let every `NormalStochasticBlock` of CAREamics in `model` (or `model` itself) run fused.

    So does a `NoiseModelLikelihood` with mixtures of Gaussians, wherever in `model` it hangs; it may be `model` itself.
    The options are those of `NormalStochasticBlock`; None is the block's default, or what an earlier call has set.
    A Lightning module of CAREamics that draws `n_samples` predictions of an input (the version after 0.3) then draws
    them from one bottom-up pass. Other instances of the model's class are not touched, nor are blocks of ours that were
    there before. What is patched is still an instance of its own class. Raises ValueError for a wrong option, before
    anything is changed.
    """
    check_rng(rng)
    options = {"allow_oddsizes": allow_oddsizes, "rng": rng, "validate_args": validate_args}
    patched, skipped, predictors, likelihoods = [], {}, [], []
    for name, module in model.named_modules():
        if draws_samples(module):
            _become(module, SharedBottomUp)
            predictors.append(name)
        elif is_ladder(module):
            _become(module, ExplainsSizes)
        elif is_likelihood(module):
            reason = None if _is_patched(module) else reason_to_skip_likelihood(module)
            if reason is None:
                _become(module, FusedLikelihood)
                likelihoods.append(name)
            else:
                skipped[name] = reason
        elif _is_patched(module):
            module.set_options(**options)
            patched.append(name)
        elif _does_the_job(module):
            reason = _reason_to_skip(module)
            if reason is None:
                _patch(module, options)
                patched.append(name)
            else:
                skipped[name] = reason
    return PatchReport(patched, skipped, predictors, likelihoods, rng)


def unpatch_model(model: nn.Module) -> list[str]:
    """Give every patched module its own class back; returns the names of those that `patch_model` reported.

    Raises RuntimeError, before anything is changed, if one was wrapped after it was patched.
    """
    patched: dict[str, Any] = {name: module for name, module in model.named_modules() if _is_patched(module)}
    ladders: list[Any] = [patched.pop(name) for name in list(patched) if isinstance(patched[name], ExplainsSizes)]
    for name, module in patched.items():
        if type(module) is not _fused(_original(module), _ours(module)):
            changed = f"{name!r} became a {type(module).__name__} after patch_model"
            raise RuntimeError(f"{changed}: unpatch_model can only come before what did that, as fully_shard does")
        if "forward" in vars(module):
            raise RuntimeError(f"the forward of {name!r} was replaced after patch_model: undo that, then unpatch")
    for module in ladders:
        # What was wrapped since stays: it does no more than explain.
        original = _original(module)
        if type(module) is _fused(original, ExplainsSizes) and "forward" not in vars(module):
            module.__class__ = original
    for module in patched.values():
        if isinstance(module, NormalStochasticBlock):
            for option in _OPTIONS:
                vars(module).pop(option, None)
        module.__class__ = _original(module)
    return list(patched)


def _become(module: Any, ours: type) -> None:
    if not _is_patched(module):
        original: type = type(module)
        module.__class__ = _fused(original, ours)


def _patch(module: Any, options: dict[str, Any]) -> None:
    _become(module, NormalStochasticBlock)
    module.set_options(**options)
    if module._vanilla_latent_hw is not None:
        # CAREamics leaves a numpy integer, which torch.compile would take for an array.
        module._vanilla_latent_hw = int(module._vanilla_latent_hw)


@functools.cache
def _fused(original: Any, ours: type) -> type:
    """The class of patched instances of `original`: our methods, while `isinstance` still finds the original."""
    own = {_ORIGINAL_CLASS: original}
    if ours is NormalStochasticBlock:
        # With the argument, CAREamics until 0.3, an odd width makes height and width even; without, each is by itself.
        own["_crops_each_dim"] = "allow_oddsizes" not in _named_parameters(original.process_q_params)
    fused = type(original.__name__, (ours, original), own)
    copyreg.pickle(fused, _reduce)
    return fused


def _reduce(module: Any) -> tuple[Any, ...]:
    """What pickle does to any object, but it looks a class up by its name, and there it would not find this one."""
    _, _, *state = module.__reduce_ex__(2)
    return _new_fused, (_original(module), _ours(module)), *state


def _new_fused(original: type, ours: type) -> Any:
    return object.__new__(_fused(original, ours))


def _is_patched(module: nn.Module) -> bool:
    return hasattr(type(module), _ORIGINAL_CLASS)


def _original(module: nn.Module) -> type:
    return getattr(type(module), _ORIGINAL_CLASS)


def _ours(module: nn.Module) -> type:
    ours = (SharedBottomUp, ExplainsSizes, FusedLikelihood, NormalStochasticBlock)
    return next(each for each in ours if isinstance(module, each))


def _does_the_job(module: nn.Module) -> bool:
    """By name or by its convolutions, whoever wrote it; children, so that a wrapper does not pass for what it wraps."""
    if isinstance(module, NormalStochasticBlock):
        return False
    children = {name for name, _ in module.named_children()}
    return "StochasticBlock" in type(module).__name__ or children >= {"conv_in_q", "conv_out"}


def _reason_to_skip(module: nn.Module) -> str | None:
    """Why the fused block would not do what this one does, or None."""
    cls = type(module)
    lineage = list(itertools.takewhile(lambda c: c.__name__ != UPSTREAM_NAME, cls.__mro__))
    if len(lineage) == len(cls.__mro__) or not _is_upstream(module):
        return (
            f"it is not the {UPSTREAM_NAME} of CAREamics 0.1 or newer: ladder_kernels.normal_sample_kl may do what "
            "it does between its convolutions (docs/other_models.md)"
        )
    if any(c.__name__ == "FSDPModule" for c in lineage):
        return "fully_shard has changed its class: call patch_model before fully_shard"
    if "forward" in vars(module):
        return "its forward was replaced on the instance, which would hide ours: call patch_model before that"
    own = {name for c in lineage for name in vars(c) if not name.startswith("__")}
    own |= {name for name in _METHODS if name in vars(module)}
    if own:
        return f"it adds or overrides {', '.join(sorted(own))}"
    unknown = _named_parameters(cls.forward) - _named_parameters(NormalStochasticBlock.forward)
    if unknown:
        return f"its forward takes {', '.join(sorted(unknown))}"
    return None


def _is_upstream(module: nn.Module) -> bool:
    """By what it has, not by where it comes from."""
    return all(callable(getattr(type(module), method, None)) for method in _METHODS) and all(
        hasattr(module, attribute) for attribute in _ATTRIBUTES
    )


def _named_parameters(function: Callable[..., Any]) -> set[str]:
    """Without *args and **kwargs, which are all that a wrapper shows of what it wraps."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind not in variable}
