"""One step of CAREamics' LadderVAE, training or prediction, in every way that is compared end to end."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.careamics import build_loss, build_model, build_unchecked_loss
from ladder_kernels import patch_model

SEED = 0
# A faster training is a chaotic one: at 5e-3 a rounding error in the weights changes the loss by a tenth.
PEAK_LEARNING_RATE = 2e-3
# Below 1 the latents may carry more detail; with the likelihood's log-variance learned this denoises soonest.
KL_WEIGHT = 0.5
FP32, BF16_MIXED = PRECISIONS = ("fp32", "bf16-mixed")  # CAREamics' names
WARM_UPS_BEFORE_CAPTURE = 3


class DivergedError(RuntimeError):
    """The loss is not a number any more."""


class Variant(NamedTuple):
    """Whose stochastic blocks the model has, and whether it is eager, compiled or captured as a CUDA graph."""

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


class Training:
    """Forward, loss, backward and Adamax, whose target is the noisy input itself (HDN); gives the loss.

    `steps`: length of the whole training, over which the learning rate rises and falls. None: it stays at its peak.
    Whose blocks the model has is not looked at.
    """

    channels = 1

    def __init__(
        self, model: nn.Module, variant: Variant = UPSTREAM, precision: str = FP32, *, steps: int | None = None
    ) -> None:
        self.model, self._precision = model, precision
        self._call = torch.compile(model) if variant.compiled else model
        build = build_unchecked_loss if variant.captured else build_loss
        self._loss = build(KL_WEIGHT, getattr(model, "noise_model", None))
        self.optimizer = torch.optim.Adamax(model.parameters(), lr=PEAK_LEARNING_RATE, capturable=variant.captured)
        self._steps, self._done = steps, 0

    def __call__(self, patches: Tensor) -> Tensor:
        """One step on patches (B, 1, H, W). Raises DivergedError where upstream's loss function sees a NaN."""
        if self._steps is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = PEAK_LEARNING_RATE * one_cycle(self._done, self._steps)
            self._done += 1
        self.optimizer.zero_grad()
        targets = torch.cat([patches, patches.flip(-1)][: self.channels], 1)
        inputs = targets.mean(1, keepdim=True)
        with autocast(self._precision, patches.device):
            losses = self._loss(self._call(inputs), targets)
        if losses is None:
            raise DivergedError("the loss is NaN: the training diverged")
        losses["loss"].backward()
        self.optimizer.step()
        return losses["loss"].detach()


class Splitting(Training):
    """denoiSplit's: with a noise model for each, patches and their mirror images are told apart in their mean."""

    channels = 2


class Prediction:
    """One prediction, in the mode that computes no KL; gives its mean squared distance to the input."""

    channels = 1

    def __init__(self, model: Any, variant: Variant, precision: str) -> None:
        self.model, self._precision = model.eval(), precision
        model.reset_for_inference(tuple(model.image_size))
        self._call = torch.compile(model) if variant.compiled else model

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

    def __init__(self, step: Training | Prediction, patches: Tensor) -> None:
        self._patches = patches.clone()
        saved = {name: value.clone() for name, value in step.model.state_dict().items()}
        # Where a capture happens, on a side stream, autograd, cuBLAS and the allocator must have been before.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS_BEFORE_CAPTURE):
                step(self._patches)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step(self._patches)
        step.model.load_state_dict(saved)
        if isinstance(step, Training):
            for state in step.optimizer.state.values():
                for value in state.values():
                    value.zero_()  # in place: the graph knows these very tensors

    def __call__(self, patches: Tensor) -> Tensor:
        self._patches.copy_(patches)
        self._graph.replay()
        return self._result


def build(
    kind: type[Training] | type[Prediction], variant: Variant, precision: str, patches: Tensor
) -> Callable[[Tensor], Tensor]:
    """A step on patches like these, captured if the variant says so."""
    model = build_model(patches.shape[-1], channels=kind.channels, seed=SEED).to(patches.device)
    if variant.patched:
        patch_model(model)
    step = kind(model, variant, precision)
    return Captured(step, patches) if variant.captured else step


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that CAREamics' trainer computes outputs and loss in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BF16_MIXED)


def one_cycle(step: int, steps: int) -> float:
    """The factor on the peak learning rate: up within the first tenth, then down along half a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))
