"""`NormalStochasticBlock`: the drop-in for CAREamics' block of the same name, convolutions included."""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ladder_kernels.backends.step import compute_dtype
from ladder_kernels.composed import KL_KEYS, STAGES, ComposedStep, copy_first, crop_to_q
from ladder_kernels.functional import normal_sample, normal_sample_kl
from ladder_kernels.geometry import latent_shape
from ladder_kernels.lazy import LazyDict
from ladder_kernels.noise import draw_noise, draw_seed
from ladder_kernels.params import StableLogVar, StableMean

DATA_KEYS = (*KL_KEYS, "z", "p_params", "q_params", "logprob_q", "qvar_max")


class NormalStochasticBlock(ComposedStep):
    """Maps two feature tensors to q and p, samples z, computes the KL metrics, and maps z to the output.

    Same constructor, methods, state_dict keys, return types and (with `rng="torch"`) numbers as CAREamics' block.
    Where that block raises or is silently wrong, this one does what its documentation says; README lists it.

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
        Variance `exp(l)`, instead of the stable map of `normal_sample_kl`.
    allow_oddsizes
        Keep odd sizes. By default q and p are cropped to even sizes where the last dim is odd, as upstream's are.
    rng
        "torch": noise from torch's generator, the numbers upstream draws. "philox": noise made inside the kernel
        and never stored. None: "torch" on a CPU, else "philox".
    validate_args
        Raise upstream's ValueError for invalid parameters, at the cost of one host synchronisation per call.
    """

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
        allow_oddsizes: bool = False,
        rng: Literal["torch", "philox"] | None = None,
        validate_args: bool = False,
    ) -> None:
        """Set the options that upstream's block does not have; the class docstring tells them."""
        self.check_options(allow_oddsizes=allow_oddsizes, rng=rng, validate_args=validate_args)
        self.allow_oddsizes, self.rng, self.validate_args = allow_oddsizes, rng, validate_args

    @staticmethod
    def check_options(
        *,
        allow_oddsizes: bool = False,
        rng: Literal["torch", "philox"] | None = None,
        validate_args: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for options that `set_options` would not take."""
        if rng not in (None, "torch", "philox"):
            raise ValueError(f'rng must be "torch", "philox" or None, got {rng!r}')

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
            Prediction: no KL. p's size does not matter, and `conv_in_p` does not run unless `p_params` is read.
        use_uncond_mode
            The mean instead of a sample: p's without q, q's in prediction. No effect in training.
        var_clip_max
            Upper clamp of the log-variances.

        Returns
        -------
        out
            (B, c_out, *S).
        data
            `z` (B, c_vars, *S); `kl_elementwise` (B, c_vars, *S), computed when read; `kl_samplewise` (B,);
            `kl_samplewise_restricted` (B,); `kl_spatial` (B, *S); `kl_channelwise` (B, c_vars), all None if
            `mode_pred` or without q; `p_params`, `q_params`: pairs (StableMean, StableLogVar), q's None without q;
            `logprob_q` (B,), None without q; `qvar_max` (), detached, 0 without q.

        Raises
        ------
        ValueError
            Shapes that do not fit; with `validate_args`, parameters that are not numbers.
        """
        if self._has_overrides():
            return self.forward_composed(
                p_params,
                q_params,
                forced_latent,
                force_constant_output,
                analytical_kl,
                mode_pred,
                use_uncond_mode,
                var_clip_max,
            )
        call = _Call(forced_latent, force_constant_output, analytical_kl, use_uncond_mode, var_clip_max)
        if q_params is None:
            data = self._generate(p_params, call)
        elif mode_pred:
            data = self._predict(p_params, q_params, call)
        else:
            data = self._infer(p_params, q_params, call)
        return self.conv_out(data["z"]), data

    def sample_from_q(self, q_params: Tensor, var_clip_max: float | None) -> Tensor:
        """A sample z (B, c_vars, *S) of the q that the features `q_params` (B, c_in, *S) describe."""
        if self._has_overrides():
            return self._sample(self.process_q_params(q_params, var_clip_max)[2])
        q = self._packed_q(q_params)
        return normal_sample(q, **self._source(q, None), **self._variance_map(var_clip_max))

    def _infer(self, p_params: Tensor, q_params: Tensor, call: "_Call") -> LazyDict:
        """Training: z from q, and all KL metrics."""
        q = self._packed_q(q_params)
        p = shown_p = crop_to_q(self._packed_p(p_params), q)
        self._validate(call, q, p)
        variance_map = self._variance_map(call.var_clip_max)
        source = self._source(q, call.forced_latent)
        if call.constant:
            z = normal_sample(q, **source, **variance_map) if call.forced_latent is None else call.forced_latent
            source, p, shown_p = {"latent": copy_first(z)}, p[:1], copy_first(p)
        step = partial(
            normal_sample_kl,
            q,
            p,
            analytical_kl=call.analytical_kl,
            vanilla_latent_hw=self._vanilla_latent_hw,
            **source,
            **variance_map,
        )
        metrics = step()
        data = LazyDict(dict.fromkeys(DATA_KEYS))
        for key in ("z", *KL_KEYS[1:], "logprob_q", "qvar_max"):
            data[key] = getattr(metrics, key)
        data.defer("kl_elementwise", lambda: step(elementwise=True).kl_elementwise)
        data.defer("p_params", lambda: self._parameter_pair(shown_p, call.var_clip_max))
        data.defer("q_params", lambda: self._parameter_pair(q, call.var_clip_max))
        return data

    def _predict(self, p_params: Tensor, q_params: Tensor, call: "_Call") -> LazyDict:
        """Prediction: z from q and nothing else; the rest is computed if somebody reads it."""
        q = self._packed_q(q_params)
        self._validate(call, q)
        z = self._draw_z(q, call)
        variance_map = self._variance_map(call.var_clip_max)
        data = LazyDict(dict.fromkeys(DATA_KEYS))
        data["z"] = z
        data.defer("p_params", lambda: self._shown_p(self._packed_p(p_params), call))
        data.defer("q_params", lambda: self._parameter_pair(q, call.var_clip_max))
        data.defer("logprob_q", lambda: normal_sample_kl(q, None, latent=z, **variance_map).logprob_q)
        data.defer("qvar_max", lambda: self._parameter_pair(q, call.var_clip_max)[1].max())
        return data

    def _generate(self, p_params: Tensor, call: "_Call") -> LazyDict:
        """Generation: z from p; no q and no KL."""
        p = self._packed_p(p_params)
        self._validate(call, p)
        data = LazyDict(dict.fromkeys(DATA_KEYS))
        data["z"] = z = self._draw_z(p, call)
        data["qvar_max"] = z.new_zeros(())
        data.defer("p_params", lambda: self._shown_p(p, call))
        return data

    def _draw_z(self, packed: Tensor, call: "_Call") -> Tensor:
        z = call.forced_latent
        if z is None:
            source = self._source(packed, None, mode=call.use_mean)
            z = normal_sample(packed, **source, **self._variance_map(call.var_clip_max))
        elif z.shape[1:] != latent_shape(packed)[1:]:
            raise ValueError(f"forced_latent {tuple(z.shape)} does not fit the latent {tuple(latent_shape(packed))}")
        return copy_first(z) if call.constant else z

    def _shown_p(self, p: Tensor, call: "_Call") -> tuple[StableMean, StableLogVar]:
        return self._parameter_pair(copy_first(p) if call.constant else p, call.var_clip_max)

    def _source(self, packed: Tensor, forced_latent: Tensor | None, mode: bool = False) -> dict[str, Any]:
        """The argument of the functional API that says where z comes from."""
        if forced_latent is not None:
            return {"latent": forced_latent}
        if mode:
            return {"mode": True}
        if self._uses_philox(packed.device):
            return {"seed": draw_seed(packed.device)}
        return {"noise": draw_noise(latent_shape(packed), compute_dtype(packed), packed.device)}

    def _variance_map(self, var_clip_max: float | None) -> dict[str, Any]:
        return {"logvar_max": var_clip_max, "stable": not self._use_naive_exponential}

    def _validate(self, call: "_Call", *packed: Tensor) -> None:
        """With `validate_args`, upstream's ValueError for invalid parameters or a latent with NaN."""
        if not self.validate_args:
            return
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
        cls = type(self)
        return any(name in self.__dict__ or getattr(cls, name) is not getattr(ComposedStep, name) for name in STAGES)


class _Call(NamedTuple):
    """What one call of `forward` asks for, besides its tensors."""

    forced_latent: Tensor | None
    constant: bool
    analytical_kl: bool
    use_mean: bool
    var_clip_max: float | None
