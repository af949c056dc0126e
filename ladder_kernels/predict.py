"""`predict_mmse`: mean and standard deviation of many stochastic predictions, at less work than one after the other.

A ladder VAE's bottom-up pass is deterministic, so it runs once; only the top-down pass is repeated, on several samples
at a time.
"""

import contextlib
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

# How many pixels of the input a batch of samples may hold together. A CPU is fastest while the activations (some
# kilobytes a pixel) stay in its caches; a GPU wants enough work to hide the launches, and has gigabytes for it. The
# second number is no measurement.
CPU_PIXELS = 2**14
GPU_PIXELS = 2**18

_PASSES = ("bottomup_pass", "topdown_pass")


def predict_mmse(
    model: nn.Module,
    x: Tensor,
    samples: int,
    *,
    batch: int | None = None,
    output: Callable[[Any], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean (the MMSE estimate) and standard deviation of `samples` predictions of `x`, one of each for every image.

    The same distribution as calling the model `samples` times in evaluation and prediction mode, which is what
    CAREamics' `lvae_predict_mmse_tiled_batch` does. Memory does not grow with `samples`. No attribute of the model
    changes; while it is in use its modules are in evaluation mode, and they have their own modes again when the last of
    the threads that predict with it returns or raises.

    Parameters
    ----------
    model
        A LadderVAE of CAREamics, patched or not, compiled or not, or whatever has one in it: it is found by its class,
        and called without what a wrapper's forward adds (autocast, a conversion of the input). A model without, with
        several, or whose forward does not use the two passes is called `samples` times, and a warning says so. For
        tiles of another size than the patches call its `reset_for_inference` first, as for any prediction. Where the
        model is compiled, its top-down pass is, with torch.compile's default settings and once for each size of a
        batch.
    x
        Inputs (B, C, *S), as the LadderVAE takes them: on its device, in its dtype, normalised.
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
    generator
        What noise is drawn from, of the model's device: torch's default generator has its state meanwhile, for all
        threads.

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
    moments, (ladder, compiled, reason) = Moments(), _find_ladder(model)
    with torch.no_grad(), _evaluation(model if ladder is None else ladder), _drawing_from(generator):
        once = None if ladder is None else _BottomUpOnce(ladder, compiled)
        for prediction in _predictions(model, once, x, samples, batch or default_batch(x)):
            if moments.count == 0 and (once is None or not once.shares):
                reason = reason or f"the forward of {type(ladder).__name__} does not use its {' and '.join(_PASSES)}"
                warnings.warn(f"every prediction is a whole one, none shares work: {reason}", stacklevel=2)
            images = prediction if output is None else output(prediction)
            moments.add(images.unflatten(0, (-1, x.shape[0])))
            if progress is not None:
                progress(moments.count, samples)
    return moments.mean, moments.std()


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """torch's default generator in the state of this one, which then goes on from there: models ask for no other."""
    if generator is None:
        yield
        return
    device = generator.device
    default = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


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


def _predictions(
    model: nn.Module, ladder: "_BottomUpOnce | None", x: Tensor, samples: int, batch: int
) -> Iterator[Tensor]:
    """The predictions, up to `batch` times those of `x` (B, ...) at a time: (batch * B, ...), samples outermost."""
    done = 0
    while done < samples:
        if ladder is None:
            prediction, count = model(x), 1
        else:
            prediction, count = ladder(x, min(batch, samples - done))
        yield prediction[0] if isinstance(prediction, tuple) else prediction
        done += count


class _BottomUpOnce:
    """A ladder's own forward, whose bottom-up pass runs at the first call of an input and serves all that follow.

    Not the two passes one after the other: what a forward does before, between and after them (squishing, cropping, the
    output layer, a subclass's own work) is done as there. The forward belongs to a stand-in, another object with the
    ladder's class, modules and weights; what is set on it leaves the ladder alone, and it is set in its `__dict__`,
    for a class may pass attributes on.
    """

    def __init__(self, ladder: nn.Module, compiled: bool) -> None:
        self.ladder = stand_in = _copy(ladder)
        passes = [getattr(stand_in, name) for name in _PASSES]
        self._bottomup_pass, self._topdown_pass = passes
        if compiled:
            self._topdown_pass = torch.compile(self._topdown_pass)
        me = weakref.proxy(self)  # no cycle, in which the features would outlive the call
        vars(stand_in).update(
            mode_pred=True,
            bottomup_pass=MethodType(_BottomUpOnce._bottom_up, me),
            topdown_pass=MethodType(_BottomUpOnce._top_down, me),
            _compiled_call_impl=None,
        )
        self._squishes = vars(stand_in).get("_squish3d")
        self._input: Tensor | None = None
        self._features: list[Tensor] = []  # what the forward hands to the top-down pass, for one sample
        self._count = 1

    def __call__(self, x: Tensor, count: int) -> tuple[Any, int]:
        """`count` predictions of `x`, samples outermost, or one where the forward does not use the passes; how many."""
        self._count = count
        prediction = self.ladder(x)
        return prediction, count if self.shares else 1

    @property
    def shares(self) -> bool:
        """Whether the forward, once called, uses the two passes, so that samples share the bottom-up one."""
        return bool(self._features)

    def _bottom_up(self, x: Tensor) -> list[Tensor]:
        if x is self._input:
            return list(self._features)
        self._input, self._features = x, []
        vars(self.ladder)["_squish3d"] = self._squishes
        return self._bottomup_pass(x)

    def _top_down(self, features: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        if not self.shares:
            self._features = [_fast_layout(each) for each in features]
            vars(self.ladder)["_squish3d"] = False  # they are squished
        repeated = [torch.cat([each] * self._count) for each in self._features]
        return self._topdown_pass(repeated, *args, **kwargs)


def _copy(module: nn.Module) -> Any:
    """Another module with this one's class, modules, weights and hooks."""
    copied = object.__new__(type(module))
    vars(copied).update({name: _rebound(value, module, copied) for name, value in vars(module).items()})
    return copied


def _rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """An attribute of `old` for `new`: a method bound to it, as which wrappers keep its forward, is bound to `new`."""
    if isinstance(value, MethodType) and value.__self__ is old:
        return MethodType(value.__func__, new)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *[new if each is old else each for each in value.args], **value.keywords)
    return value


def _fast_layout(features: Tensor) -> Tensor:
    """channels_last for oneDNN's 2D convolutions, which then reorder nothing; all that follows keeps the layout."""
    if features.dim() == 4 and features.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return features.contiguous(memory_format=torch.channels_last)
    return features


def _find_ladder(model: nn.Module) -> tuple[nn.Module | None, bool, str]:
    """The one module with the two passes in `model`, whether it or what wraps it is compiled; or why there is none.

    By its class: a wrapper shows attributes of what it wraps as its own.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if all(callable(getattr(type(module), each, None)) for each in _PASSES)
    }
    if len(found) != 1:
        which = f"several LadderVAEs ({', '.join(found)}), of which one can be given" if found else "no LadderVAE"
        return None, False, f"{type(model).__name__} has {which}"
    ((name, ladder),) = found.items()
    path = name.split(".") if name else []
    way = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path) + 1)]
    return ladder, "_orig_mod" in path or any(each._compiled_call_impl is not None for each in way), ""


def draws_samples(module: nn.Module) -> bool:
    """Whether it is a Lightning module of CAREamics whose `predict_step` draws `n_samples` predictions."""
    steps = all(callable(getattr(type(module), name, None)) for name in ("predict_step", "predict_sample"))
    return steps and "n_samples" in vars(module) and _find_ladder(module._modules.get("model") or module)[0] is not None


class SharedBottomUp(nn.Module):
    """Mixed into a Lightning module of CAREamics that draws `n_samples` predictions of one input in a `predict_step`.

    The step is upstream's, on a stand-in of the module whose `model` runs the bottom-up pass once. The samples come one
    by one, as upstream asks for them.
    """

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, with one bottom-up pass."""
        ladder, compiled, _ = _find_ladder(self.model)  # type: ignore[arg-type]
        stand_in, step = self, None if ladder is None else _BottomUpOnce(ladder, compiled)
        if step is not None:
            stand_in = _copy(self)
            vars(stand_in)["_modules"] = self._modules | {"model": step.ladder}
        return super(SharedBottomUp, stand_in).predict_step(*args, **kwargs)  # type: ignore[misc]


# How many predictions run a module now, and what its own mode is.
_in_use: dict[nn.Module, tuple[int, bool]] = {}
_in_use_lock = threading.Lock()


@contextlib.contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again after the last of the threads that share it."""
    modules = list(model.modules())
    with _in_use_lock:
        for module in modules:
            users, mode = _in_use.get(module, (0, module.training))
            _in_use[module] = (users + 1, mode)
        model.eval()
    try:
        yield
    finally:
        with _in_use_lock:
            for module in modules:
                users, mode = _in_use.pop(module)
                if users > 1:
                    _in_use[module] = (users - 1, mode)
                else:
                    module.training = mode
