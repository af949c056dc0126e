"""`VarianceMap`: how a raw parameter becomes a variance, the one thing in which kinds of VAE differ.

The formulas themselves are `gaussian` in `backends/torch/formulas.py`, `backends/triton/formulas.py` and
`csrc/formulas.h`; nothing else asks for the kind.
"""

import dataclasses
import numbers

import torch

FLOORS = {"stable": 1e-6, "exp": 0.0}
"""The kinds, and the floor that each has if none is given."""
KINDS = tuple(FLOORS)
# Python's and a compiler's symbolic ones.
NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


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
            if value is not None and not isinstance(value, NUMBERS):
                if not isinstance(value, numbers.Real):  # NumPy's are
                    raise TypeError(f"{name} must be a number or None, got {type(value).__name__} {value!r}")
                object.__setattr__(self, name, float(value))
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
        """CAREamics, muSplit, denoiSplit: `StableLogVar` (models/lvae/stochastic.py), clamped by `var_clip_max`."""
        return VarianceMap("stable", raw_max=raw_max)

    @staticmethod
    def hdn() -> "VarianceMap":
        """HDN and ladder-vae-pytorch: `logvar.exp()` (lib/stochastic.py), not clamped."""
        return VarianceMap("exp")

    @staticmethod
    def diffusers() -> "VarianceMap":
        """LDM and diffusers: `DiagonalGaussianDistribution` (autoencoders/vae.py), clamped to [-30, 20]."""
        return VarianceMap("exp", raw_min=-30.0, raw_max=20.0)
