"""`predict_mmse`: mean and standard deviation of many stochastic predictions, at less work than one after the other.

A ladder VAE's bottom-up pass is deterministic, so it runs once; only the top-down pass is repeated, on several samples
at a time.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# How many pixels of the input a batch of samples may hold together. A CPU is fastest while the activations (some
# kilobytes a pixel) stay in its caches; a GPU wants enough work to hide the launches, and has gigabytes for it. The
# second number is no measurement.
CPU_PIXELS = 2**14
GPU_PIXELS = 2**18

_PASSES = ("bottomup_pass", "topdown_pass")
# What wraps a model: torch.compile, DistributedDataParallel, a Lightning module.
_WRAPPERS = ("_orig_mod", "module", "model")


@torch.no_grad()
def predict_mmse(
    model: nn.Module,
    x: Tensor,
    samples: int,
    *,
    batch: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean (the MMSE estimate) and standard deviation of `samples` predictions of `x`, one of each for every image.

    The same distribution as calling the model `samples` times in evaluation and prediction mode, which is what
    CAREamics' `lvae_predict_mmse_tiled_batch` does. Memory does not grow with `samples`. The modes of the model's
    modules are what they were when it returns or raises, and no attribute of the model changes.

    Parameters
    ----------
    model
        A LadderVAE of CAREamics, patched or not, compiled or not, or a module that has one as its `model`. Any other
        model is called `samples` times. For tiles of another size than the patches call its `reset_for_inference`
        first, as for any prediction. Where the model is compiled, its top-down pass is, with torch.compile's default
        settings and once for each size of a batch.
    x
        Inputs (B, C, *S), as the model takes them: on its device, normalised.
    samples
        How many predictions, at least 1.
    batch
        How many predictions of `x` run the top-down pass together. By default as many as hold 2**14 pixels together on
        a CPU (4 of a 64 x 64 tile, 1 of a 128 x 128 tile) and 2**18 elsewhere, and at least 1; memory grows with it.
        The last batch is smaller where `samples` is no multiple. On a CPU `batch=1` draws the loop's very numbers.
    output
        Maps what the model gives for N = `batch` * B images, without the latents' data, to images (N, ...): for
        instance `lambda out: out.chunk(2, 1)[0]` where the second half is a log-variance. By default as it is.
    progress
        Called after every batch with the number of predictions done and `samples`.

    Returns
    -------
    mean, std
        Each (B, ...) in float32, or float64 where the predictions are. `std` is that of the samples (divided by
        `samples` - 1), 0 for a single one.

    Raises
    ------
    ValueError
        `samples` or `batch` below 1.
    """
    for name, count in (("samples", samples), ("batch", batch)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    moments = Moments()
    with _evaluation(model):
        predictions = _batches(model, x, samples, batch or default_batch(x))
        for prediction in predictions:
            images = prediction if output is None else output(prediction)
            moments.add(images.unflatten(0, (-1, x.shape[0])))
            if progress is not None:
                progress(moments.count, samples)
    return moments.mean, moments.std()


def default_batch(x: Tensor) -> int:
    """How many predictions of `x` (B, C, *S) run together unless told otherwise."""
    pixels = CPU_PIXELS if x.device.type == "cpu" else GPU_PIXELS
    return max(1, pixels // (x.shape[0] * x.shape[2:].numel()))


class Moments:
    """Mean and spread of samples that come in batches, by Chan, Golub and LeVeque (1983): no difference of squares."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor
        self._squares: Tensor  # summed squared distances from the mean

    def add(self, samples: Tensor) -> None:
        """Take in `samples` (N, *shape)."""
        samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
        count, mean = samples.shape[0], samples.mean(0)
        squares = (samples - mean).square_().sum(0)
        if self.count == 0:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        shift = mean - self.mean
        self._squares += squares + shift.square() * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def std(self) -> Tensor:
        """The standard deviation (*shape) of the samples; 0 for a single one."""
        return (self._squares / max(self.count - 1, 1)).sqrt()


def _batches(model: nn.Module, x: Tensor, samples: int, batch: int) -> Iterator[Tensor]:
    """The predictions, `batch` times those of `x` (B, ...) at a time: (batch * B, ...), samples outermost."""
    ladder, compiled = _find_ladder(model)
    features = None if ladder is None else _bottom_up(ladder, x)
    if ladder is None or features is None:
        yield from (_first(model(x)) for _ in range(samples))
        return
    for count, repeats in ((batch, samples // batch), (samples % batch, 1)):
        if count and repeats:
            top_down = _top_down(ladder, [torch.cat([each] * count) for each in features])
            if compiled:
                top_down.compile()
            yield from (_first(top_down(x)) for _ in range(repeats))


def _bottom_up(ladder: nn.Module, x: Tensor) -> list[Tensor] | None:
    """What the model's forward hands to its top-down pass; None where it does not get there."""
    stand_in = _stand_in(ladder)
    stand_in.topdown_pass = _reached
    try:
        stand_in(x)
    except _TopDownReached as reached:
        return [_fast_layout(each) for each in reached.features]
    return None


def _top_down(ladder: nn.Module, features: list[Tensor]) -> nn.Module:
    """The model without its bottom-up pass: whatever it is called with, its forward begins with these features."""
    stand_in = _stand_in(ladder)
    stand_in.bottomup_pass = lambda _: list(features)
    stand_in._squish3d = False  # done already
    return stand_in


def _stand_in(ladder: nn.Module) -> Any:
    """The model's modules and weights under another name, so that what is set on it leaves the model alone."""
    stand_in: Any = copy.copy(ladder)
    stand_in.mode_pred = True
    return stand_in


class _TopDownReached(Exception):  # noqa: N818 - it is no error
    def __init__(self, features: list[Tensor]) -> None:
        self.features = features


def _reached(features: list[Tensor], *_: Any, **__: Any) -> None:
    raise _TopDownReached(features)


def _fast_layout(features: Tensor) -> Tensor:
    """channels_last for oneDNN's 2D convolutions, which then reorder nothing; all that follows keeps the layout."""
    if features.dim() == 4 and features.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return features.contiguous(memory_format=torch.channels_last)
    return features


def _find_ladder(model: nn.Module) -> tuple[nn.Module | None, bool]:
    """The model with the two passes, out of its wrappers, if there is one; and whether it or a wrapper is compiled."""
    compiled = False
    while True:
        children = dict(model.named_children())
        compiled |= "_orig_mod" in children or model._compiled_call_impl is not None
        wrapped = next((children[name] for name in _WRAPPERS if name in children), None)
        if wrapped is None:
            return model if _has_passes(model) else None, compiled
        model = wrapped


def _has_passes(model: nn.Module) -> bool:
    return all(callable(getattr(model, name, None)) for name in _PASSES)


def _first(result: Any) -> Tensor:
    """A model's output without its data."""
    return result[0] if isinstance(result, tuple) else result


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's own mode again."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
