"""Who computes the step: upstream in three ways, and every backend of ladder_kernels, with torch's noise or Philox."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from bench.kernels.cases import CPU, GPU, LOGVAR_MAX, Case, Inputs
from bench.measure.timing import Stages
from ladder_kernels import normal_sample, normal_sample_kl, use_backend
from ladder_kernels.backends.select import reason_unavailable
from ladder_kernels.geometry import in_memory_order, is_channels_last, latent_shape
from ladder_kernels.noise import draw_noise, draw_seed, philox_normal
from ladder_kernels.variance import VarianceMap

SUMS = ("kl_samplewise", "kl_samplewise_restricted", "kl_channelwise", "kl_spatial", "logprob_q")
LOSS = "kl_samplewise_restricted"  # the KL that the timed backward starts from, besides z

Forward = Callable[[Inputs], Any]


class Provider(NamedTuple):
    """One row of a case's table."""

    name: str
    make: Callable[[Case], Forward]
    noise: Literal["upstream", "torch", "philox", "compiler"]
    """Whose random numbers it uses, from torch's generator or a seed drawn from it; the compiler's are its own."""
    backend: str | None = None
    devices: tuple[str, ...] = (CPU, GPU)
    compiled: bool = False
    validates: bool = False
    """Whether torch.distributions checks its arguments, as it does by default."""

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        """Why it cannot take part, or None."""
        if device.type not in self.devices:
            return "there is no GPU" if device.type == CPU else "runs on CPUs only"
        if self.compiled and not case.compiled:
            return "compiling takes too long to do it for every case"
        return None if self.backend is None else reason_unavailable(self.backend)

    def stages(self, case: Case) -> Stages:
        """What is timed. Raises what building the provider raises."""
        forward = self.make(case)
        if self.compiled:
            forward = torch.compile(forward, dynamic=False)
        return Stages(forward, None if case.prediction else _backward, lambda: self._context(case))

    @contextlib.contextmanager
    def _context(self, case: Case) -> Iterator[None]:
        backend = use_backend(self.backend) if self.backend else contextlib.nullcontext()
        with validation(self.validates), backend, torch.set_grad_enabled(not case.prediction):
            yield


@contextlib.contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Whether torch.distributions checks arguments. torch.compile switches that off for the whole process."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(enabled)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def output(result: Any, name: str) -> Tensor:
    """An output of any provider: upstream's are a dict, ours a SampleKL, or z alone."""
    if isinstance(result, Tensor):
        return result
    return result[name] if isinstance(result, dict) else getattr(result, name)


def noise_of(provider: Provider, inputs: Inputs) -> Tensor | None:
    """The noise (B, C, *S) that the provider draws next; None if nobody can know. The generator moves on alike."""
    shape, device = latent_shape(inputs.q), inputs.q.device
    if provider.noise == "compiler":
        return None
    if provider.noise == "philox":
        flat = philox_normal(draw_seed(device), math.prod(shape), torch.float32)
        return in_memory_order(flat, shape, is_channels_last(inputs.q))
    # Under autocast upstream draws in half precision.
    return torch.randn(shape, dtype=inputs.q.dtype if provider.noise == "upstream" else torch.float32, device=device)


def _backward(result: Any, inputs: Inputs) -> tuple[Tensor, ...]:
    z, kl = output(result, "z"), output(result, LOSS)
    gradients = (inputs.grad_z[z.dtype], inputs.grad_kl[kl.dtype])
    return torch.autograd.grad((z, kl), (inputs.q, inputs.p), gradients)


def _upstream(case: Case) -> Forward:
    from bench.careamics import bare_block  # here, so that without CAREamics the others are timed all the same

    # Without a window upstream raises; one of the latent's size leaves everything in.
    block = bare_block(case.channels, len(case.space), case.window or case.space[-1])

    def forward(inputs: Inputs) -> Any:
        # Upstream's 16-bit training: its convolutions give 16 bits, and autocast decides what follows.
        options = {"analytical_kl": case.analytic, "mode_pred": case.prediction, "var_clip_max": LOGVAR_MAX}
        with torch.autocast(inputs.q.device.type, case.dtype, enabled=case.dtype != torch.float32):
            return block(inputs.p, inputs.q, **options)[1]

    return forward


def _upstream_to_compile(case: Case) -> Forward:
    """Only what ours returns too: the compiler drops the elementwise KL and the distributions' parameters."""
    eager = _upstream(case)
    wanted = ("z",) if case.prediction else ("z", *SUMS)

    def forward(inputs: Inputs) -> Any:
        data = eager(inputs)
        # Detached as ours is: in bfloat16 the compiled gradient of the unused maximum makes all others NaN.
        return {name: data[name] for name in wanted} | {"qvar_max": data["qvar_max"].detach()}

    return forward


def _ours(noise: Literal["torch", "philox"]) -> Callable[[Case], Forward]:
    def make(case: Case) -> Forward:
        def forward(inputs: Inputs) -> Any:
            given: dict[str, Any] = {"variance": VarianceMap("stable", raw_max=LOGVAR_MAX)}
            if noise == "philox":
                given["seed"] = draw_seed(inputs.q.device)
            else:
                given["noise"] = draw_noise(latent_shape(inputs.q), torch.float32, inputs.q.device)
            if case.prediction:
                return normal_sample(inputs.q, **given)
            return normal_sample_kl(inputs.q, inputs.p, analytical_kl=case.analytic, window=case.window, **given)

        return forward

    return make


PROVIDERS = (
    Provider("upstream", _upstream, "upstream", validates=True),
    Provider("upstream, validation off", _upstream, "upstream"),
    Provider("upstream, compiled", _upstream_to_compile, "compiler", compiled=True),
    Provider("torch", _ours("torch"), "torch", "torch"),
    Provider("torch, compiled", _ours("torch"), "torch", "torch", compiled=True),
    Provider("cpp", _ours("torch"), "torch", "cpp", (CPU,)),
    Provider("cpp, Philox", _ours("philox"), "philox", "cpp", (CPU,)),
    Provider("triton", _ours("torch"), "torch", "triton", (GPU,)),
    Provider("triton, Philox", _ours("philox"), "philox", "triton", (GPU,)),
    Provider("cuda", _ours("torch"), "torch", "cuda", (GPU,)),
    Provider("cuda, Philox", _ours("philox"), "philox", "cuda", (GPU,)),
)
