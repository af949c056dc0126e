"""The whole model, measured: every variant is built and checked, then all take turns step by step."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from bench.measure.memory import mebibytes, peak_bytes
from bench.measure.timing import spread, take_turns
from bench.report.results import FAILED, OK, SKIPPED, WRONG, Table, one_line
from bench.training.micrograph import random_patches
from bench.training.steps import FP32, SEED, UPSTREAM, VARIANTS, Prediction, Splitting, Training, Variant, build

TRAIN, PREDICT, SPLIT = "train", "predict", "denoisplit"
KINDS: dict[str, type[Training] | type[Prediction]] = {TRAIN: Training, PREDICT: Prediction, SPLIT: Splitting}
# The first steps allocate, compile and choose kernels: they are checked, not timed.
CHECKED_STEPS = 3
# How far a loss may be from upstream's, relative: with the same random numbers only rounding differs, with others every
# sample, of which a loss averages many.
TOLERANCE, TOLERANCE_OTHER_NOISE = 1e-3, 1e-1

Given = tuple[int, Tensor]
"""A round: its number, and the patches (B, 1, H, W) that all variants get in it."""


class Settings(NamedTuple):
    """What is measured."""

    device: torch.device
    batch: int
    patch: int
    rounds: int
    precisions: Sequence[str]
    compiled: Sequence[str]
    """The precisions in which to run what has to be compiled."""


@dataclass
class Runner:
    """A variant, and what its turns gave."""

    variant: Variant
    step: Callable[[Tensor], Tensor]
    peak: int | None = None
    """Bytes: the most at once from nothing to the end of the first steps."""
    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def prepare(self, given: Given) -> None:
        """The same random numbers for every variant."""
        Distribution.set_default_validate_args(self.variant.validates)
        torch.manual_seed(SEED + given[0])

    def run(self, given: Given) -> Tensor:
        return self.step(given[1])


def measure(settings: Settings, image: Tensor, table: Table, environment: dict[str, Any]) -> None:
    """Fill the table, one group of variants after the other, with steps on random patches of an image (H, W).

    A KeyboardInterrupt passes through, after the rows of what had been timed.
    """
    for precision in settings.precisions:
        for kind in KINDS:
            _Group(settings, image, precision, kind, table, environment).run()
            gc.collect()


class _Group:
    """The variants that are compared with each other: one precision, training or prediction."""

    def __init__(
        self, settings: Settings, image: Tensor, precision: str, kind: str, table: Table, environment: dict[str, Any]
    ) -> None:
        self._settings, self._image, self._precision, self._kind, self._table = settings, image, precision, kind, table
        self._common = {"batch": settings.batch, "patch": settings.patch, **environment}
        self._expected: list[float] | None = None

    def run(self) -> None:
        # Compiled code is kept by the model's class, up to a few versions; beyond that a variant would run eagerly.
        torch._dynamo.reset()
        first = list(map(self._given, range(CHECKED_STEPS)))
        entered = (self._enter(variant, first) for variant in VARIANTS)
        runners = {runner.variant.name: runner for runner in entered if runner is not None}
        rounds = map(self._given, range(CHECKED_STEPS, CHECKED_STEPS + self._settings.rounds))
        runs = {name: runner.run for name, runner in runners.items()}
        turns = take_turns(runs, rounds, self._settings.device, lambda name, given: runners[name].prepare(given))
        try:
            for turn in turns:
                runners[turn.name].values.append(turn.result.item())
                runners[turn.name].seconds.append(turn.seconds)
        finally:
            for runner in runners.values():
                if runner.seconds:
                    self._add_times(runner)

    def _given(self, count: int) -> Given:
        """The same patches for every variant and precision."""
        settings, generator = self._settings, torch.Generator().manual_seed(count)
        return count, random_patches(self._image, settings.patch, settings.batch, generator).to(settings.device)

    def _enter(self, variant: Variant, first: Sequence[Given]) -> Runner | None:
        """Build a variant and check its first steps; what is left out, fails or is wrong gets its row at once."""
        settings = self._settings
        if variant.captured and settings.device.type != "cuda":
            self._add(variant, SKIPPED, "CUDA graphs need a GPU")
            return None
        if variant.compiled and self._precision not in settings.compiled:
            self._add(variant, SKIPPED, "compiling takes long: not with --quick, and on a CPU in fp32 alone")
            return None
        print(f"{self._precision:10} {self._kind:10} {variant.name}: built and checked", flush=True)
        built: list[Runner] = []
        try:
            peak = peak_bytes(lambda: built.append(self._build(variant, first)), settings.device)
        except Exception as error:  # whatever it is, the others go on
            self._add(variant, FAILED, one_line(error))
            return None
        (runner,) = built
        runner.peak = peak
        reason = self._fault(runner)
        if reason is not None:
            self._add(variant, WRONG, reason)
            return None
        return runner

    def _build(self, variant: Variant, first: Sequence[Given]) -> Runner:
        """The variant after its first steps."""
        runner = Runner(variant, build(KINDS[self._kind], variant, self._precision, first[0][1]))
        for given in first:
            runner.prepare(given)
            runner.values.append(runner.run(given).item())
        return runner

    def _fault(self, runner: Runner) -> str | None:
        """Where the first steps differ from upstream's by more than they may."""
        if runner.variant == UPSTREAM:
            self._expected = runner.values
        if self._expected is None:
            return "nothing of upstream's to compare with"
        # Compiled, in 16 bits and on a GPU the noise is another one.
        same = not runner.variant.compiled and self._precision == FP32 and self._settings.device.type == "cpu"
        tolerance = TOLERANCE if same else TOLERANCE_OTHER_NOISE
        for step, (value, expected) in enumerate(zip(runner.values, self._expected, strict=True), 1):
            # Written so that NaN is wrong.
            if not abs(value - expected) <= tolerance * abs(expected):
                what = "squared error" if self._kind == PREDICT else "loss"
                return f"{what} {value:.7g} at step {step}, upstream's is {expected:.7g}"
        return None

    def _add_times(self, runner: Runner) -> None:
        cells: dict[str, Any] = {"rounds": len(runner.seconds), **spread(runner.seconds, "ms")}
        cells["peak_mib"] = mebibytes(runner.peak)
        if self._kind != PREDICT:
            cells["final_loss"] = f"{runner.values[-1]:.6g}"
        self._add(runner.variant, OK, **cells)

    def _add(self, variant: Variant, status: str, reason: str = "", **cells: Any) -> None:
        where = {"variant": variant.name, "precision": self._precision, "pass": self._kind}
        self._table.add({**self._common, **where, "status": status, "reason": reason, **cells})
        said = f"{cells['median_ms']:>8} ms, peak {cells['peak_mib']} MiB" if cells else f"{status}: {reason}"
        print(f"{self._precision:10} {self._kind:10} {variant.name:24} {said}", flush=True)
