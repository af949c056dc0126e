"""One step of CAREamics' LadderVAE, training or prediction, in every way that is compared end to end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bench.careamics import build_loss, build_model, build_unchecked_loss
from bench.measure.gpu_timing import recording, warm_up_for_capture
from bench.training.trainer import KL_WEIGHT, PEAK_LEARNING_RATE, DivergedError
from ladder_kernels import patch_model

SEED = 0
# CAREamics' names. Its "16-mixed" is float16 with a scaled loss, which torch has on GPUs only: Lightning, too, takes
# bfloat16 on a CPU.
FP32, FP16_MIXED, BF16_MIXED = "fp32", "16-mixed", "bf16-mixed"
PRECISIONS = (FP32, FP16_MIXED, BF16_MIXED)
_AUTOCAST = {FP16_MIXED: torch.float16, BF16_MIXED: torch.bfloat16}


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """The precisions that run on a device."""
    return (FP32, BF16_MIXED) if device.type == "cpu" else PRECISIONS


class Variant(NamedTuple):
    """A way to run the model: whose stochastic blocks, and eager, compiled or captured as a CUDA graph."""

    name: str
    patched: bool = False
    validates: bool = False
    """Whether torch.distributions checks its arguments. torch.compile switches that off by itself."""
    compiled: bool = False
    captured: bool = False


UPSTREAM = Variant("upstream", validates=True)
VARIANTS = (
    UPSTREAM,
    Variant("upstream, no validation"),
    Variant("upstream, compiled", compiled=True),
    Variant("patched", patched=True, validates=True),
    Variant("patched, compiled", patched=True, compiled=True),
    Variant("patched, CUDA graph", patched=True, captured=True),
)


def reason_to_skip(variant: Variant, precision: str, device: torch.device, train: bool) -> str | None:
    """Why a variant cannot run, or None."""
    if precision not in precisions_of(device):
        return "float16 with a scaled loss needs a GPU; CAREamics, too, takes bf16-mixed on a CPU"
    if variant.captured and device.type != "cuda":
        return "CUDA graphs need a GPU"
    if variant.captured and train and precision == FP16_MIXED:
        return "the scaler of float16 gradients makes the host wait in every step; see bf16-mixed"
    return None


class Step(Protocol):
    """A step on patches (B, 1, H, W)."""

    def __call__(self, patches: Tensor) -> Tensor:
        """Do it all; returns a tensor () to be read once the clock is stopped."""


class Training:
    """Forward, loss, backward and Adamax, whose target is the noisy input itself (HDN); gives the loss."""

    def __init__(self, variant: Variant, precision: str, patch: int, device: torch.device, rng: Any = None) -> None:
        self.model = _build(variant, patch, device, rng)
        self._call = torch.compile(self.model) if variant.compiled else self.model
        self._loss = (build_unchecked_loss if variant.captured else build_loss)(KL_WEIGHT)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.Adamax(parameters, lr=PEAK_LEARNING_RATE, capturable=variant.captured)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == FP16_MIXED)
        self._precision = precision

    def __call__(self, patches: Tensor) -> Tensor:
        """Raises DivergedError where the loss is NaN, if upstream's loss function is there to see it."""
        self.optimizer.zero_grad()
        with autocast(self._precision, patches.device):
            losses = self._loss(self._call(patches), patches)
        if losses is None:
            raise DivergedError("the loss is NaN: the training diverged")
        self._scaler.scale(losses["loss"]).backward()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return losses["loss"].detach()


class Prediction:
    """One prediction, in the mode that computes no KL; gives its mean squared distance to the input."""

    def __init__(self, variant: Variant, precision: str, patch: int, device: torch.device, rng: Any = None) -> None:
        self.model = _build(variant, patch, device, rng).eval()
        self.model.reset_for_inference((patch, patch))
        self._call = torch.compile(self.model) if variant.compiled else self.model
        self._precision = precision

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> Tensor:
        with autocast(self._precision, patches.device):
            output, _ = self._call(patches)
        return (output[:, :1].float() - patches).square().mean()


class Captured:
    """A step recorded once as a CUDA graph and replayed: nothing of it is left on the host.

    The recording leaves model and optimizer as they were. torch.manual_seed and the random numbers drawn since reach
    every replay, so each makes noise of its own.
    """

    def __init__(self, step: Any, patches: Tensor) -> None:
        self._patches = patches.clone()
        saved = {name: value.clone() for name, value in step.model.state_dict().items()}
        warm_up_for_capture(lambda: step(self._patches))
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph):
            self._result = step(self._patches)
        step.model.load_state_dict(saved)
        if isinstance(step, Training):
            _reset(step.optimizer)

    def __call__(self, patches: Tensor) -> Tensor:
        self._patches.copy_(patches)
        self._graph.replay()
        return self._result


def build_step(
    kind: Callable[..., Any], variant: Variant, precision: str, patches: Tensor, rng: str | None = None
) -> Step:
    """A `Training` or `Prediction`, captured if the variant says so. `rng` is `patch_model`'s."""
    step = kind(variant, precision, patches.shape[-1], patches.device, rng)
    return Captured(step, patches) if variant.captured else step


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that CAREamics' trainer computes outputs and loss in."""
    return torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


@contextlib.contextmanager
def float32_noise() -> Iterator[None]:
    """Lets torch.distributions draw its noise in float32 and round it; another dtype draws other random numbers."""
    module: Any = torch.distributions.normal
    original = module._standard_normal
    module._standard_normal = lambda shape, dtype, device: torch.randn(shape, device=device).to(dtype)
    try:
        yield
    finally:
        module._standard_normal = original


def _build(variant: Variant, patch: int, device: torch.device, rng: Any) -> Any:
    model = build_model(patch, seed=SEED).to(device)
    if variant.patched:
        patch_model(model, rng=rng)
    return model


def _reset(optimizer: torch.optim.Optimizer) -> None:
    """Back to before the first step, in place: a graph knows these very tensors."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
