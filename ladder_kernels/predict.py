"""`predict_mmse`: mean and standard deviation of many stochastic predictions of whole images, at less work.

A ladder VAE's bottom-up pass is deterministic, so it runs once a tile; only the top-down pass is repeated, on several
samples at a time.
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ladder_kernels.images import at_least_one, check_image, per_channel, plan
from ladder_kernels.ladder import PASSES, BottomUpOnce, find_ladder
from ladder_kernels.noise import seeded_each
from ladder_kernels.tiles import Tile

# How many pixels of the input a batch of samples may hold together. A CPU is fastest while the activations (some
# kilobytes a pixel) stay in its caches; a GPU wants enough work to hide the launches, and has gigabytes for it. The
# second number is no measurement.
CPU_PIXELS = 2**14
GPU_PIXELS = 2**18


class Prediction(NamedTuple):
    """Of the samples of every pixel; arrays where the image was one, else tensors."""

    mean: Any
    std: Any


def predict_mmse(
    model: nn.Module,
    image: Any,
    samples: int,
    *,
    tile: int | Sequence[int] | None = None,
    overlap: int | Sequence[int] | None = None,
    batch: int | None = None,
    mean: Any = None,
    std: Any = None,
    output: Callable[[Tensor], Tensor] | None = None,
    progress: bool | Callable[[int, int], None] = False,
    generator: torch.Generator | None = None,
) -> Prediction:
    """Mean (the MMSE estimate) and standard deviation of `samples` predictions of every pixel of images of any size.

    Each tile's are distributed as what the model gives when it is called `samples` times in evaluation and prediction
    mode, which is what CAREamics' `lvae_predict_mmse_tiled_batch` does. Memory grows neither with `samples` nor, beyond
    the result, with the image. The model is set up for the tiles and afterwards as it was: no attribute of it changes,
    and its modules are in evaluation mode until the last of the threads that predict with it returns or raises.

    Parameters
    ----------
    model
        A LadderVAE of CAREamics, patched or not, compiled or not, or whatever has one in it: it is found by its class,
        and called without what a wrapper's forward adds (autocast, a conversion of the input). A model without, with
        several, or whose forward does not use the two passes is called `samples` times, and a warning says so. Where
        the model is compiled, its top-down pass is, with torch.compile's default settings and once for each size of a
        batch.
    image
        Images (B, C, *S), a tensor or an array, also one on disk that can be sliced: a 2D image is `image[None, None]`.
        Sides that the model does not take are padded by reflection, and the prediction is cut back. For a model with
        lateral context C is 1, and its crops are made here as CAREamics makes them; or C is their number, and images
        that have them already are predicted whole.
    samples
        How many predictions, at least 1.
    tile, overlap
        The sides of a tile, and by how much two overlap at least: one number, or one for each of S. By default images
        of at most 2**16 pixels are predicted whole, others in tiles of 256 x 256 or 16 x 64 x 64 that share a quarter
        of a side; volumes in tiles as deep as the patches that the model was built for, and a warning says where `tile`
        is not. Where tiles overlap their means and variances blend, weighted by cosines that sum to one. Planes that a
        2D decoder joins are never cut.
    batch
        How many predictions, of one tile each, run the top-down pass together: samples of a tile first, then several
        tiles. By default as many as hold 2**14 pixels together on a CPU (4 tiles of 64 x 64) and 2**18 elsewhere, and
        at least 1; memory grows with it.
    mean, std
        Of the image, to normalise it by: one number, or one for each channel. The result is brought back by the same
        (its `std` by `std` alone). By default the image is taken and the result given as they are.
    output
        Maps what the model gives for N tiles, (N, C', *sides) without the latents' data, to images (N, C'', *sides). By
        default the log-variance channels of a model with `predict_logvar` are left out.
    progress
        True: a bar of tqdm's. Or a function, called after every batch with the predictions done and all there are.
    generator
        What noise is drawn from, else torch's default generator. Where torch makes the noise (`rng="torch"`, the
        default on a CPU) the result of a patched model does not depend on `batch` but for rounding.

    Returns
    -------
    Prediction
        `mean` and `std`, each (B, C'', *S) in float32, or float64 where the predictions are, on the image's device.
        `std` is that of the samples (divided by `samples` - 1), 0 for a single one.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, in one sentence that says what would.
    """
    samples = at_least_one("samples", samples)
    ladder, compiled, reason = find_ladder(model)
    check_image(image, ladder)
    tiling = plan(image, ladder, tile, overlap)
    device, dtype = _place(model, image)
    batch = default_batch(tiling.sides, device) if batch is None else at_least_one("batch", batch)
    shift, scale = 0.0 if mean is None else mean, 1.0 if std is None else std
    jobs = [(number, each) for number in range(image.shape[0]) for each in tiling.tiles]
    at_once = max(1, batch // samples)
    blend = _Blend(image, shift, scale)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_evaluation(model if ladder is None else ladder))
        seed = stack.enter_context(_drawing_from(generator))
        tell = stack.enter_context(_told(progress, len(jobs) * samples))
        once = None if ladder is None else BottomUpOnce(ladder, compiled, tiling.sides)
        for first in range(0, len(jobs), at_once):
            group, moments = jobs[first : first + at_once], Moments()
            together = 1 if once is None else max(1, batch // len(group))
            x = torch.cat([tiling.cut(image, *job).to(device) for job in group])
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            x = ((x - per_channel("mean", shift, x)) / per_channel("std", scale, x)).to(dtype)
            while moments.count < samples:
                wanted = range(moments.count, min(moments.count + together, samples))
                seeds = [seed + (first + job) * samples + sample for sample in wanted for job in range(len(group))]
                with seeded_each(seeds, device):
                    # What else the model gives ends here: the next prediction would find the latents beside its own.
                    images = _images(model(x) if once is None else once(x, len(wanted)), ladder, output, tiling.sides)
                if blend.is_empty and moments.count == 0 and (once is None or not once.shares):
                    reason = reason or f"the forward of {type(ladder).__name__} does not use its {' and '.join(PASSES)}"
                    warnings.warn(f"every prediction is a whole one, none shares work: {reason}", stacklevel=2)
                moments.add(images.unflatten(0, (-1, len(group))))
                tell(first * samples + moments.count * len(group))
            for job, *values in zip(group, moments.mean, moments.variance(), strict=True):
                blend.add(*job, *values)
    return blend.result()


def default_batch(sides: Sequence[int], device: torch.device) -> int:
    """How many predictions of a tile run together unless told otherwise."""
    return max(1, (CPU_PIXELS if device.type == "cpu" else GPU_PIXELS) // math.prod(sides))


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

    def variance(self) -> Tensor:
        """The variance (*shape) of the samples; 0 for a single one."""
        return self._squares / max(self.count - 1, 1)


# ---- What the model gives.


def _images(prediction: Any, ladder: Any, output: Callable[[Tensor], Tensor] | None, sides: tuple[int, ...]) -> Tensor:
    """The images (N, C, *sides) in what a model gives."""
    given = prediction[0] if isinstance(prediction, tuple) else prediction
    if output is not None:
        images = output(given)
    elif getattr(ladder, "predict_logvar", None) is not None:
        images = given[:, : ladder.target_ch]
    else:
        images = given
    wanted = (given.shape[0], "C", *sides[len(sides) - given.dim() + 2 :])
    if not isinstance(images, Tensor):
        found: Any = f"a {type(images).__name__}"
    elif images.dim() == len(wanted) and (images.shape[0], "C", *images.shape[2:]) == wanted:
        return images
    else:
        found = tuple(images.shape)
    whose = "the model" if output is None else f"output, given the model's tensor {tuple(given.shape)},"
    raise ValueError(f"{whose} must give images ({', '.join(map(str, wanted))}), a tensor; it gave {found}")


class _Blend:
    """The moments of all images, tile by tile, in the images' units."""

    def __init__(self, image: Any, shift: Any, scale: Any) -> None:
        self._image, self._shift, self._scale = image, shift, scale
        self.is_empty = True
        self._mean: Tensor
        self._variance: Tensor

    def add(self, number: int, tile: Tile, mean: Tensor, variance: Tensor) -> None:
        """Take in the moments (C, *sides) of a tile of one image."""
        if self.is_empty:
            sizes = self._image.shape[len(self._image.shape) - mean.dim() + 1 :]
            shape = (self._image.shape[0], mean.shape[0], *sizes)
            device = self._image.device if isinstance(self._image, Tensor) else "cpu"
            self._mean, self._variance = (torch.zeros(shape, dtype=mean.dtype, device=device) for _ in range(2))
            self.is_empty = False
        scale, shift = per_channel("std", self._scale, mean[None]), per_channel("mean", self._shift, mean[None])
        tile.add_to(self._mean[number], mean * scale + shift)
        tile.add_to(self._variance[number], variance * scale.square())

    def result(self) -> Prediction:
        mean, std = self._mean, self._variance.sqrt_()
        return Prediction(mean, std) if isinstance(self._image, Tensor) else Prediction(mean.numpy(), std.numpy())


def _place(model: nn.Module, image: Any) -> tuple[torch.device, torch.dtype]:
    """Where and in what dtype the model wants its input: as its weights, if they are somewhere."""
    weights = next((each for each in model.parameters() if each.is_floating_point()), None)
    if weights is not None and weights.device.type != "meta":
        return weights.device, weights.dtype
    return (image.device, image.dtype) if isinstance(image, Tensor) else (torch.device("cpu"), torch.float32)


# ---- Meanwhile.


@contextlib.contextmanager
def _told(progress: bool | Callable[[int, int], None], total: int) -> Iterator[Callable[[int], None]]:
    """What is to be called with the number of predictions done."""
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress=True needs tqdm (pip install tqdm), or give a function instead") from error
        with tqdm(total=total, desc="predictions") as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield lambda done: None


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator | None) -> Iterator[int]:
    """A seed; and torch's default generator in the state of this one, which then goes on: models ask for no other."""
    if generator is None:
        yield int(torch.randint(2**62, ()))
        return
    device = generator.device
    seed = int(torch.randint(2**62, (), device=device, generator=generator))
    default = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield seed
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


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
