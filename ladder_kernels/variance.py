"""`VarianceMap`: how a raw parameter becomes a variance, the one thing in which kinds of VAE differ.

The formulas themselves are `gaussian` in `backends/torch/formulas.py`, `backends/triton/formulas.py` and
`csrc/formulas.h`. There, the ratio of two variances is the only other thing that may depend on the kind.
"""

import dataclasses
import functools
import math
import numbers
from typing import Any

import torch

FLOORS: dict[str, float | None] = {"stable": 1e-6, "exp": None, "logstd": None, "softplus": 0.0}
"""The kinds, and the floor that each has if none is given; None: it has no floor."""
KINDS = tuple(FLOORS)
# A floor is there so that nothing underflows: one that is no normal float32 does not serve.
_SMALLEST_FLOOR = torch.finfo(torch.float32).tiny
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
    """The map from a raw parameter r to a variance v, or to its root s. It is strictly increasing.

    - "stable": `v = exp(r) if r <= 0 else 1 + r`, plus the floor. CAREamics, muSplit, denoiSplit.
    - "exp": `v = exp(r)`, so r is the log-variance. HDN, ladder-vae-pytorch, LDM and diffusers.
    - "logstd": `s = exp(r)`. VDVAE.
    - "softplus": `s = log(1 + exp(beta r)) / beta`, plus the floor. COSDD, Efficient-VDVAE, hvae-oodd.

    The ready-made maps below are named after who uses them and say what of it they serve. Others, by their fields:
    vae_vampprior is "exp" with r in [-6, 2]. Whose std is none of these can be served by "logstd" from the logarithm of
    its std: NVAE, `exp(5 tanh(r / 5)) + 0.01` (its means are 5 tanh(mean / 5), and of its top prior, r = 0, the std is
    1.01: not N(0, I)), and BIVA, `exp(softplus(r) / 2)`, which is never below 1.

    Raises ValueError for another kind, for a floor or beta out of its range or that the kind does not have, and for
    bounds in the wrong order; TypeError for a field that is no number.
    """

    kind: str
    _: dataclasses.KW_ONLY
    raw_min: float | None = None
    """Lower clamp of r, applied first; None: no clamp. Below it the gradient is 0, at it and above it passes: at its
    bound torch.clamp's passes up to torch 2.13, and is 0 from 2.14 on. NaN stays NaN."""
    raw_max: float | None = None
    """Upper clamp of r. Above it the gradient is 0, at it and below it passes."""
    beta: float = 1.0
    """Of "softplus": how sharply it bends. Positive."""
    floor: float = None  # type: ignore[assignment]  # always a number once the map is there
    """Added to v in "stable" (1e-6 by default, CAREamics' `var_eps`), to s in "softplus" (0); None: the default. 0, or
    a normal float32."""

    def __post_init__(self) -> None:
        if self.kind not in FLOORS:
            raise ValueError(f"unknown kind of variance map {self.kind!r}; there are {', '.join(KINDS)}")
        for name in ("raw_min", "raw_max", "beta", "floor"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_number(value, name, "a number or None"))
        own = FLOORS[self.kind]
        if self.floor is None:
            object.__setattr__(self, "floor", own or 0.0)
        if own is None and self.floor != 0.0:
            raise ValueError(f"the variance map {self.kind!r} has no floor, got {self.floor}")
        if self.kind != "softplus" and self.beta != 1.0:
            raise ValueError(f"the variance map {self.kind!r} has no beta, got {self.beta}")
        if self.floor != 0.0 and not _SMALLEST_FLOOR <= self.floor < math.inf:
            raise ValueError(f"the floor must be 0, or finite and at least {_SMALLEST_FLOOR:.2g}, got {self.floor}")
        if not 0.0 < self.beta < math.inf:
            raise ValueError(f"beta must be finite and positive, got {self.beta}")
        if self.raw_min is not None and self.raw_max is not None and self.raw_min > self.raw_max:
            raise ValueError(f"raw_min must not be larger than raw_max, got {self.raw_min} and {self.raw_max}")

    def fields(self) -> tuple[str, float | None, float | None, float, float]:
        """(kind, raw_min, raw_max, beta, floor): the order of every schema that has a map field by field."""
        return self.kind, self.raw_min, self.raw_max, self.beta, self.floor

    @staticmethod
    def careamics(raw_max: float | None = 20.0) -> "VarianceMap":
        """CAREamics, muSplit, denoiSplit: `StableLogVar` and `StableExponential` (models/lvae/utils.py).

        `v = exp(r) if r <= 0 else 1 + r`, plus `var_eps` 1e-6; r at most `var_clip_max`, 20 in its LadderVAE.
        """
        return VarianceMap("stable", raw_max=raw_max)

    @staticmethod
    def juglab_hdn() -> "VarianceMap":
        """juglab's HDN and ladder-vae-pytorch: `s = exp(r / 2)` (both lib/stochastic.py), without clamp and floor.

        CAREamics' own HDN is `careamics()`. Their `kl_spatial` is analytic even where the KL is Monte-Carlo; here all
        sums are of the same KL.
        """
        return VarianceMap("exp")

    @staticmethod
    def diffusers() -> "VarianceMap":
        """LDM (modules/distributions/distributions.py) and diffusers (models/autoencoders/vae.py), against N(0, I).

        `s = exp(r / 2)`, r in [-30, 20]. `DiagonalGaussianDistribution` is their class on these functions.
        """
        return VarianceMap("exp", raw_min=-30.0, raw_max=20.0)

    @staticmethod
    def vdvae() -> "VarianceMap":
        """VDVAE: `s = exp(r)` (vae_helpers.py), neither clamped nor with a floor; its KL is analytic.

        Its prior head gives features after mean and raw: `p_params = head[:, : 2 * zdim]`, a view, is taken as it is.
        """
        return VarianceMap("logstd")

    @staticmethod
    def cosdd() -> "VarianceMap":
        """COSDD: `s = log(1 + exp(r))` (models/nn.py), without a floor; its KL is analytic.

        It interleaves means and raws: give the functions `torch.cat([x[:, 0::2], x[:, 1::2]], 1)`, or reorder the
        output channels of the convolution once. Where q's std underflows to 0, below r = -103, its KL is infinite;
        here it is finite.
        """
        return VarianceMap("softplus")

    @staticmethod
    def efficient_vdvae() -> "VarianceMap":
        """Efficient-VDVAE in "std" mode: `s = log(1 + exp(beta r)) / beta` with beta = log 2 (model/latent_layers.py).

        So r = 0 gives s = 1. Its `min_std` does nothing there, and is none here. Of a residual posterior
        `s_q = softplus(q_raw) s_p`, which is no map of one raw parameter: not served in this mode. In "logstd" mode,
        `s = exp(beta r)`, it is: scale the raws by beta, add p's parameters to q's, and use `vdvae()`.
        """
        return VarianceMap("softplus", beta=math.log(2))


def as_variance(variance: VarianceMap | str) -> VarianceMap:
    """The map, also where its kind alone is given. Raises ValueError or TypeError for what is neither."""
    if isinstance(variance, VarianceMap):
        return variance
    if isinstance(variance, str):
        # A compiler reads a construction better than a cache.
        return VarianceMap(variance) if torch.compiler.is_compiling() else _of_kind(variance)
    raise TypeError(f"variance must be a VarianceMap or a kind's name, got {type(variance).__name__} {variance!r}")


_of_kind = functools.lru_cache(maxsize=None)(VarianceMap)
