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
from bench.report.results import FAILED, OK, SKIPPED, WRONG, one_line
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
    step: Any = None
    """Maps patches to the loss, or to a squared error."""
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


def measure(settings: Settings, image: Tensor, add_row: Callable[[dict[str, Any]], None]) -> None:
    """Adds the rows of one group of variants after the other, with steps on random patches of an image (H, W).

    A KeyboardInterrupt passes through, after the rows of what had been timed.
    """
    for precision in settings.precisions:
        for kind in KINDS:
            _Group(settings, image, precision, kind, add_row).run()
            gc.collect()


@dataclass
class _Group:
    """The variants that are compared with each other: one precision, training or prediction."""

    settings: Settings
    image: Tensor
    precision: str
    kind: str
    add_row: Callable[[dict[str, Any]], None]
    expected: list[float] | None = None
    """What upstream's first steps give."""

    def run(self) -> None:
        # Compiled code is kept by the model's class, up to a few versions; beyond that a variant would run eagerly.
        torch._dynamo.reset()
        first = list(map(self._given, range(CHECKED_STEPS)))
        runners: dict[str, Runner] = {}
        for variant in VARIANTS:
            entered = self._enter(variant, first)
            if isinstance(entered, Runner):
                runners[variant.name] = entered
            else:
                self._add(variant, *entered)
        rounds = map(self._given, range(CHECKED_STEPS, CHECKED_STEPS + self.settings.rounds))
        runs = {name: runner.run for name, runner in runners.items()}
        turns = take_turns(runs, rounds, self.settings.device, lambda name, given: runners[name].prepare(given))
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
        generator = torch.Generator().manual_seed(count)
        patches = random_patches(self.image, self.settings.patch, self.settings.batch, generator)
        return count, patches.to(self.settings.device)

    def _enter(self, variant: Variant, first: Sequence[Given]) -> Runner | tuple[str, str]:
        """The variant after its first steps, or status and reason of what is left out, fails or is wrong."""
        if variant.captured and self.settings.device.type != "cuda":
            return SKIPPED, "CUDA graphs need a GPU"
        if variant.compiled and self.precision not in self.settings.compiled:
            return SKIPPED, "compiling takes long: not with --quick, and on a CPU in fp32 alone"
        print(f"{self.precision:10} {self.kind:10} {variant.name}: built and checked", flush=True)
        runner = Runner(variant)
        try:
            runner.peak = peak_bytes(lambda: self._start(runner, first), self.settings.device)
        except Exception as error:  # whatever it is, the others go on
            return FAILED, one_line(error)
        reason = self._fault(runner)
        return runner if reason is None else (WRONG, reason)

    def _start(self, runner: Runner, first: Sequence[Given]) -> None:
        runner.step = build(KINDS[self.kind], runner.variant, self.precision, first[0][1])
        for given in first:
            runner.prepare(given)
            runner.values.append(runner.run(given).item())

    def _fault(self, runner: Runner) -> str | None:
        """Where the first steps differ from upstream's by more than they may."""
        if runner.variant == UPSTREAM:
            self.expected = runner.values
        if self.expected is None:
            return "nothing of upstream's to compare with"
        # Compiled, in 16 bits and on a GPU the noise is another one.
        same = not runner.variant.compiled and self.precision == FP32 and self.settings.device.type == "cpu"
        tolerance = TOLERANCE if same else TOLERANCE_OTHER_NOISE
        for step, (value, expected) in enumerate(zip(runner.values, self.expected, strict=True), 1):
            # Written so that NaN is wrong.
            if not abs(value - expected) <= tolerance * abs(expected):
                what = "squared error" if self.kind == PREDICT else "loss"
                return f"{what} {value:.7g} at step {step}, upstream's is {expected:.7g}"
        return None

    def _add_times(self, runner: Runner) -> None:
        loss: dict[str, Any] = {} if self.kind == PREDICT else {"final_loss": f"{runner.values[-1]:.6g}"}
        cells: dict[str, Any] = {"rounds": len(runner.seconds), "peak_mib": mebibytes(runner.peak)}
        self._add(runner.variant, OK, **cells | spread(runner.seconds, "ms") | loss)

    def _add(self, variant: Variant, status: str, reason: str = "", **cells: Any) -> None:
        sizes = {"batch": self.settings.batch, "patch": self.settings.patch}
        where = {"variant": variant.name, "precision": self.precision, "pass": self.kind}
        self.add_row({**sizes, **where, "status": status, "reason": reason, **cells})
        said = f"{cells['median_ms']:>8} ms, peak {cells['peak_mib']} MiB" if cells else f"{status}: {reason}"
        print(f"{self.precision:10} {self.kind:10} {variant.name:24} {said}", flush=True)
