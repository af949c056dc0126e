"""`VarianceMap`: how a raw parameter becomes a variance, the one thing in which kinds of VAE differ.

The formulas themselves are `gaussian` in `backends/torch/formulas.py`, `backends/triton/formulas.py` and
`csrc/formulas.h`. There, the ratio of two variances is the only other thing that may depend on the kind.
"""

import dataclasses
import numbers
from typing import Any

import torch

FLOORS = {"stable": 1e-6, "exp": 0.0}
"""The kinds, and the floor that each has if none is given."""
KINDS = tuple(FLOORS)
# Python's and a compiler's symbolic ones.
_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def as_number(value: Any, name: str, expected: str = "a number") -> float:
    """Raises TypeError for what is none; not a tensor: its gradient would be lost, and its value is needed here."""
    if isinstance(value, _NUMBERS):
        return value  # type: ignore[return-value]  # a symbolic number acts as one
    if isinstance(value, numbers.Real):  # NumPy's
        return float(value)
    raise TypeError(f"{name} must be {expected}, got {type(value).__name__} {value!r}")


@dataclasses.dataclass(frozen=True)
class VarianceMap:
    """The map from a raw parameter r to a variance v. It is monotone.

    - "stable": `v = exp(r) if r <= 0 else 1 + r`, plus the floor. CAREamics, muSplit, denoiSplit.
    - "exp": `v = exp(r)`, so r is the log-variance. HDN, ladder-vae-pytorch, LDM and diffusers.

    Raises ValueError for another kind, for a floor that is negative or that the kind does not have, and for bounds in
    the wrong order; TypeError for a bound or floor that is no number.
    """

    kind: str = "stable"
    _: dataclasses.KW_ONLY
    raw_min: float | None = None
    """Lower clamp of r, applied first; None: no clamp. Below it the gradient is 0. NaN stays NaN."""
    raw_max: float | None = None
    """Upper clamp of r. Above it the gradient is 0."""
    floor: float = None  # type: ignore[assignment]  # always a number once the map is there
    """Added to the variance; None: the kind's own, 1e-6 for "stable" (CAREamics' `var_eps`)."""

    def __post_init__(self) -> None:
        own = FLOORS.get(self.kind)
        if own is None:
            raise ValueError(f"unknown kind of variance map {self.kind!r}; there are {', '.join(KINDS)}")
        for name in ("raw_min", "raw_max", "floor"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_number(value, name, "a number or None"))
        if self.floor is None:
            object.__setattr__(self, "floor", own)
        if own == 0.0 and self.floor != 0.0:
            raise ValueError(f"the variance map {self.kind!r} has no floor, got {self.floor}")
        if not self.floor >= 0.0:
            raise ValueError(f"the floor of a variance must not be negative, got {self.floor}")
        if self.raw_min is not None and self.raw_max is not None and self.raw_min > self.raw_max:
            raise ValueError(f"raw_min must not be larger than raw_max, got {self.raw_min} and {self.raw_max}")

    @staticmethod
    def careamics(raw_max: float | None = 20.0) -> "VarianceMap":
        """CAREamics, muSplit, denoiSplit: `StableLogVar` (models/lvae/utils.py), clamped by `var_clip_max`."""
        return VarianceMap("stable", raw_max=raw_max)

    @staticmethod
    def hdn() -> "VarianceMap":
        """HDN and ladder-vae-pytorch: `logvar.exp()` (lib/stochastic.py), not clamped."""
        return VarianceMap("exp")

    @staticmethod
    def diffusers() -> "VarianceMap":
        """LDM and diffusers: `DiagonalGaussianDistribution` (autoencoders/vae.py), clamped to [-30, 20]."""
        return VarianceMap("exp", raw_min=-30.0, raw_max=20.0)
