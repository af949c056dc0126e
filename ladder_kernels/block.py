"""`NormalStochasticBlock`: the drop-in for CAREamics' block of the same name, convolutions included."""

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ladder_kernels.functional import normal_sample, normal_sample_kl, normal_sample_log_prob
from ladder_kernels.geometry import copy_first, crop, crop_to_q, even_spatial, latent_shape
from ladder_kernels.noise import DRAWS, draw_source
from ladder_kernels.overrides import KL_KEYS, STAGES, Call, Stages
from ladder_kernels.params import (
    StableLogVar,
    StableMean,
    absent_parameter_pair,
    late_parameter_pair,
    parameter_pair,
    wide,
)
from ladder_kernels.variance import VarianceMap


class NormalStochasticBlock(Stages):
    """Maps two feature tensors to q and p, samples z, computes the KL metrics, and maps z to the output.

    Same constructor, methods, state_dict keys, return types and (with `rng="torch"`) numbers as CAREamics' block.
    Where that block raises or is silently wrong, this one does what its documentation says; docs/design.md lists it.

    Parameters
    ----------
    c_in, c_vars, c_out
        Channels of the inputs, of the latent, and of the output.
    conv_dims
        Spatial dims, 1 to 3.
    kernel
        Side of the convolution kernels, odd.
    transform_p_params
        Whether `conv_in_p` maps p's input; else the input is the packed parameters (B or 1, 2 * c_vars, *S).
    vanilla_latent_hw
        Side of the centred window of `kl_samplewise_restricted`. None: the whole latent.
    use_naive_exponential
        `VarianceMap("exp")` instead of the default, "stable".
    allow_oddsizes
        Keep odd sizes. By default q and p are cropped to even sizes where the last dim is odd, as upstream's are.
    rng
        "torch": noise from torch's generator, the numbers upstream draws. "philox": noise made inside the kernel
        and never stored. None: "philox" where the backend that serves makes it in its kernel (triton, cuda), else
        "torch".
    validate_args
        Raise upstream's ValueError for invalid parameters, at the cost of one host synchronisation per call.
    """

    # Of a patched block its own version of upstream decides.
    _crops_each_dim = False
    # What upstream's block does not have; on the class, so that a patched one has them too.
    allow_oddsizes = False
    rng: Literal["torch", "philox"] | None = None
    validate_args = False

    def __init__(
        self,
        c_in: int,
        c_vars: int,
        c_out: int,
        conv_dims: int = 2,
        kernel: int = 3,
        transform_p_params: bool = True,
        vanilla_latent_hw: int | None = None,
        use_naive_exponential: bool = False,
        *,
        allow_oddsizes: bool = False,
        rng: Literal["torch", "philox"] | None = None,
        validate_args: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if conv_dims not in (1, 2, 3):
            raise ValueError(f"conv_dims must be 1, 2 or 3, got {conv_dims}")
        self.c_in, self.c_vars, self.c_out = c_in, c_vars, c_out
        self.conv_dims = conv_dims
        self.transform_p_params = transform_p_params
        self._vanilla_latent_hw = vanilla_latent_hw
        self._use_naive_exponential = use_naive_exponential
        self.set_options(allow_oddsizes=allow_oddsizes, rng=rng, validate_args=validate_args)

        # Created in upstream's order, so that a seed gives upstream's weights.
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[conv_dims]
        if transform_p_params:
            self.conv_in_p = conv(c_in, 2 * c_vars, kernel, padding=kernel // 2)
        self.conv_in_q = conv(c_in, 2 * c_vars, kernel, padding=kernel // 2)
        self.conv_out = conv(c_vars, c_out, kernel, padding=kernel // 2)

    def set_options(
        self,
        *,
        allow_oddsizes: bool | None = None,
        rng: Literal["torch", "philox"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        """Set options that upstream's block does not have; the class docstring tells them. None: it stays as it is.

        Raises ValueError for an unknown `rng`.
        """
        check_rng(rng)
        options = {"allow_oddsizes": allow_oddsizes, "rng": rng, "validate_args": validate_args}
        vars(self).update({name: value for name, value in options.items() if value is not None})

    def forward(
        self,
        p_params: Tensor,
        q_params: Tensor | None = None,
        forced_latent: Tensor | None = None,
        force_constant_output: bool = False,
        analytical_kl: bool = False,
        mode_pred: bool = False,
        use_uncond_mode: bool = False,
        var_clip_max: float | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Sample z from q, or from p where q is not given, and map it to the output.

        Parameters
        ----------
        p_params
            Features of the layer above (B, c_in, *S); without `transform_p_params` the packed parameters of p,
            whose batch may be 1. Larger than q: the centre is used.
        q_params
            Features of q (B, c_in, *S). None: z is drawn from p and there is no KL.
        forced_latent
            z itself (B, c_vars, *S).
        force_constant_output
            Copy the first sample and p's first parameters over the batch.
        analytical_kl
            KL in closed form; else the Monte-Carlo estimate at z.
        mode_pred
            Prediction: no KL, and no p where q is given: then its size does not matter, and `conv_in_p` does not run.
        use_uncond_mode
            In prediction the mean instead of a sample: q's, or without q p's. No effect in training.
        var_clip_max
            Upper clamp of the log-variances.
        generator
            What noise is drawn from, instead of torch's default generator.

        Returns
        -------
        out
            (B, c_out, *S).
        data
            A dict: `z` (B, c_vars, *S); `kl_elementwise` (B, c_vars, *S); `kl_samplewise` (B,);
            `kl_samplewise_restricted` (B,); `kl_spatial` (B, *S); `kl_channelwise` (B, c_vars), all None if
            `mode_pred` or without q; `p_params`, `q_params`: pairs (StableMean, StableLogVar), q's None without q;
            `logprob_q` (B,), None without q; `qvar_max` (), detached, 0 without q. In prediction from q nothing
            computes p: whoever reads one of the pair gets a RuntimeError, and p from `process_p_params`.

        Raises
        ------
        ValueError
            Shapes that do not fit; with `validate_args`, parameters that are not numbers.
        """
        call = Call(
            forced_latent, force_constant_output, analytical_kl, mode_pred, use_uncond_mode, var_clip_max, generator
        )
        if self._has_overrides():
            return self._forward_composed(p_params, q_params, call)
        if q_params is None:
            data = self._generate(p_params, call)
        elif mode_pred:
            data = self._predict(q_params, call)
        else:
            data = self._infer(p_params, q_params, call)
        return self.conv_out(data["z"]), data

    def sample_from_q(
        self, q_params: Tensor, var_clip_max: float | None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """A sample z (B, c_vars, *S) of the q that the features `q_params` (B, c_in, *S) describe."""
        if self._has_overrides():
            mean, _, distribution = self.process_q_params(q_params, var_clip_max)
            return self._sample(distribution, generator).to(mean.get().dtype)
        q = self._packed_q(q_params)
        return normal_sample(q, **self._noise_source(q, generator), variance=self._variance(var_clip_max))

    def _infer(self, p_params: Tensor, q_params: Tensor, call: Call) -> dict[str, Any]:
        """Training: z from q, and all KL metrics."""
        q = self._packed_q(q_params)
        p = crop_to_q(self._packed_p(p_params), q)
        if self.validate_args:
            self._validate(call, q, p)
        variance = self._variance(call.var_clip_max)
        step = normal_sample_kl(
            q,
            p[:1] if call.force_constant_output else p,
            analytical_kl=call.analytical_kl,
            window=self._vanilla_latent_hw,
            elementwise=True,
            variance=variance,
            **self._source(q, call),
        )
        return {
            "kl_elementwise": step.kl_elementwise,
            "kl_samplewise": step.kl_samplewise,
            "kl_samplewise_restricted": step.kl_samplewise_restricted,
            "kl_spatial": step.kl_spatial,
            "kl_channelwise": step.kl_channelwise,
            "z": step.z,
            "p_params": self._shown_p(p, call, variance),
            "q_params": _shown(q, variance),
            "logprob_q": step.logprob_q,
            "qvar_max": step.logvar_max,
        }

    def _predict(self, q_params: Tensor, call: Call) -> dict[str, Any]:
        """Prediction: z from q with its statistics, in one pass; no KL, and no p, which nothing there needs."""
        q = self._packed_q(q_params)
        if self.validate_args:
            self._validate(call, q)
        variance = self._variance(call.var_clip_max)
        z, logprob_q, qvar_max = normal_sample_log_prob(q, variance=variance, **self._source(q, call))
        return {
            **dict.fromkeys(KL_KEYS),
            "z": z,
            "p_params": absent_parameter_pair(variance),
            "q_params": _shown(q, variance),
            "logprob_q": logprob_q,
            "qvar_max": qvar_max,
        }

    def _generate(self, p_params: Tensor, call: Call) -> dict[str, Any]:
        """Generation: z from p; no q and no KL."""
        p = self._packed_p(p_params)
        if self.validate_args:
            self._validate(call, p)
        variance = self._variance(call.var_clip_max)
        z = call.forced_latent
        if z is None:
            z = normal_sample(p, **self._noise_source(p, call.generator, call.use_mean), variance=variance)
        elif z.shape[1:] != latent_shape(p)[1:]:
            raise ValueError(f"forced_latent {tuple(z.shape)} does not fit the latent {latent_shape(p)}")
        if call.force_constant_output:
            z = copy_first(z)
        return {
            **dict.fromkeys(KL_KEYS),
            "z": z,
            "p_params": self._shown_p(p, call, variance),
            "q_params": None,
            "logprob_q": None,
            "qvar_max": wide(z.new_zeros(())),
        }

    def _shown_p(self, p: Tensor, call: Call, variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
        if call.force_constant_output:
            p = copy_first(p)
        # The caller's own tensor may be another one by the time that it is read.
        return _shown(p, variance) if self.transform_p_params else parameter_pair(p, variance)

    def _packed_p(self, p_params: Tensor) -> Tensor:
        """The packed parameters of p (B or 1, 2 * c_vars, *S)."""
        if self.transform_p_params:
            return self.conv_in_p(p_params)
        if p_params.shape[1] != 2 * self.c_vars:
            raise ValueError(f"p_params must have 2 * c_vars = {2 * self.c_vars} channels, got {tuple(p_params.shape)}")
        return p_params

    def _packed_q(self, q_params: Tensor, allow_oddsizes: bool = False) -> Tensor:
        """The packed parameters of q (B, 2 * c_vars, *S)."""
        q = self.conv_in_q(q_params)
        if allow_oddsizes or self.allow_oddsizes:
            return q
        return crop(q, (0,) * (q.dim() - 2), even_spatial(q.shape[2:], self._crops_each_dim))

    def _parameter_pair(self, packed: Tensor, var_clip_max: float | None) -> tuple[StableMean, StableLogVar]:
        return parameter_pair(packed, self._variance(var_clip_max))

    def _variance(self, var_clip_max: float | None) -> VarianceMap:
        # A compiler reads a construction better than a cache.
        make = _make_variance if torch.compiler.is_compiling() else _cached_variance
        return make(self._use_naive_exponential, var_clip_max)

    def _normal(self, mean: StableMean, logvar: StableLogVar) -> Normal:
        return Normal(wide(mean.get()), wide(wide(logvar).get_std()), validate_args=self.validate_args)

    def _source(self, q: Tensor, call: Call) -> dict[str, Any]:
        """The argument of the functional API that says where z of q comes from."""
        z = call.forced_latent
        if z is None:
            source = self._noise_source(q, call.generator, call.use_mean)
            if not call.force_constant_output:
                return source
            z = normal_sample(q, **source, variance=self._variance(call.var_clip_max))
        return {"latent": copy_first(z) if call.force_constant_output else z}

    def _noise_source(
        self, packed: Tensor, generator: torch.Generator | None = None, mode: bool = False
    ) -> dict[str, Any]:
        """The same where z is not given: the mean, a seed or noise."""
        if mode:
            return {"mode": True}
        if self.rng is None:
            return {"generator": generator}
        draw = DRAWS[self.rng]
        return {draw: draw_source(packed, draw, generator)}

    def _validate(self, call: Call, *packed: Tensor) -> None:
        """Upstream's ValueError for invalid parameters or a latent with NaN."""
        pairs = [self._parameter_pair(params, call.var_clip_max) for params in packed]
        checks = [(mean.get() == mean.get()).all() & (logvar.get_std() > 0).all() for mean, logvar in pairs]
        if call.forced_latent is not None:
            checks.append((call.forced_latent == call.forced_latent).all())
        if torch.stack(checks).all():  # the one synchronisation
            return
        for pair in pairs:
            self._normal(*pair)
        raise ValueError("forced_latent contains NaN")

    def _has_overrides(self) -> bool:
        """Whether a subclass, or this instance, replaces a stage that `forward` fuses."""
        cls, own = type(self), self.__dict__
        return any(name in own or getattr(cls, name) is not stage for name, stage in _STAGES)


def check_rng(rng: Any) -> None:
    """Raise ValueError for what is no option `rng` of a block."""
    if rng not in (None, "torch", "philox"):
        raise ValueError(f'rng must be "torch", "philox" or None, got {rng!r}')


def _shown(packed: Tensor, variance: VarianceMap) -> tuple[StableMean, StableLogVar]:
    """Parameters in `data`: a compiler, which drops what is not read, sees them as they are."""
    make = parameter_pair if torch.compiler.is_compiling() else late_parameter_pair
    return make(packed, variance)


_STAGES = tuple((name, getattr(Stages, name)) for name in STAGES)


def _make_variance(use_naive_exponential: bool, var_clip_max: float | None) -> VarianceMap:
    return VarianceMap("exp" if use_naive_exponential else "stable", raw_max=var_clip_max)


# A block makes the same one at every call.
_cached_variance = functools.lru_cache(maxsize=32)(_make_variance)
