"""The end-to-end measurement: every variant is built and checked, then all take turns step by step."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from bench.measure.launches import synchronize
from bench.measure.memory import peak_bytes
from bench.report.results import FAILED, OK, SKIPPED, WRONG
from bench.training.rows import Table
from bench.training.steps import (
    FP32,
    SEED,
    UPSTREAM,
    Prediction,
    Step,
    Training,
    Variant,
    build_step,
    float32_noise,
    reason_to_skip,
)

TRAIN, PREDICT = "train", "predict"
KINDS: dict[str, Callable[..., Any]] = {TRAIN: Training, PREDICT: Prediction}
# The first steps allocate, compile and choose kernels: they are checked, not timed.
CHECKED_STEPS = 3
# How far a loss may be from upstream's, relative: with the same random numbers only rounding differs, with others (a
# compiler's) every sample, of which a loss averages many.
TOLERANCE, TOLERANCE_16_BIT, TOLERANCE_OTHER_NOISE = 1e-3, 1e-2, 1e-1


class WrongError(AssertionError):
    """A variant does not compute what upstream does."""


class Settings(NamedTuple):
    """What is measured."""

    device: torch.device
    batch: int
    patch: int
    rounds: int
    precisions: Sequence[str]
    variants: Sequence[Variant]
    compiled: Sequence[str]
    """The precisions in which to run what has to be compiled."""


@dataclass
class Runner:
    """A variant that was built and found right, and what its turns gave."""

    variant: Variant
    step: Step
    peak: int | None = None
    """Bytes: the most at once from nothing to the end of the first steps."""
    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measure(settings: Settings, patches: Callable[[int], Tensor], table: Table) -> None:
    """Fill the table, one group of variants after the other; `patches(n)` are those of step n (B, 1, H, W).

    A KeyboardInterrupt passes through, after the rows of what had been timed.
    """
    validates = Distribution._validate_args
    try:
        for precision in settings.precisions:
            for name in KINDS:
                _Group(settings, precision, name, table).run(patches)
                gc.collect()
    finally:
        Distribution.set_default_validate_args(validates)


class _Group:
    """The variants that are compared with each other: one precision, training or prediction."""

    def __init__(self, settings: Settings, precision: str, name: str, table: Table) -> None:
        self._settings, self._precision, self._name, self._table = settings, precision, name, table
        self._runners: list[Runner] = []
        self._expected: list[float] | None = None

    def run(self, patches: Callable[[int], Tensor]) -> None:
        # Compiled code is kept by the model's class, up to a few versions; beyond that a variant would run eagerly.
        torch._dynamo.reset()
        first = [patches(count) for count in range(CHECKED_STEPS)]
        for variant in self._settings.variants:
            self._prepare(variant, first)
        try:
            for count in range(CHECKED_STEPS, CHECKED_STEPS + self._settings.rounds):
                self._take_turns(count, patches(count))
        finally:
            for runner in self._runners:
                self._add_times(runner)

    def _prepare(self, variant: Variant, first: list[Tensor]) -> None:
        """Build a variant and check its first steps; what is left out, fails or is wrong gets its row at once."""
        settings = self._settings
        reason = reason_to_skip(variant, self._precision, settings.device, self._name == TRAIN)
        if reason is None and variant.compiled and self._precision not in settings.compiled:
            reason = "compiling takes long: left out with --quick, and on a CPU in all but fp32"
        if reason is not None:
            return self._add(variant, SKIPPED, reason)
        try:
            runner = self._build_and_weigh(variant, first)
            self._check(runner, first)
        except WrongError as error:
            return self._add(variant, WRONG, str(error))
        except Exception as error:  # whatever it is, the others go on
            return self._add(variant, FAILED, _one_line(error))
        self._runners.append(runner)
        for step, value in enumerate(runner.values):
            self._add_loss(variant, step, value)

    def _build(self, variant: Variant, first: list[Tensor], rng: str | None = None) -> Runner:
        """The variant after its first steps."""
        step = build_step(KINDS[self._name], variant, self._precision, first[0], rng)
        runner = Runner(variant, step)
        runner.values += [_timed(runner, count, patches)[0] for count, patches in enumerate(first)]
        return runner

    def _build_and_weigh(self, variant: Variant, first: list[Tensor]) -> Runner:
        built: list[Runner] = []
        peak = peak_bytes(lambda: built.append(self._build(variant, first)), first[0].device)
        built[0].peak = peak
        return built[0]

    def _check(self, runner: Runner, first: list[Tensor]) -> None:
        """Raises WrongError where the first steps differ from upstream's by more than they may."""
        variant, values, tolerance = runner.variant, runner.values, TOLERANCE_OTHER_NOISE
        if variant.patched and not variant.compiled:
            tolerance = TOLERANCE if self._precision == FP32 else TOLERANCE_16_BIT
            if first[0].device.type != "cpu":
                # There it makes noise of its own; for the check alone it takes upstream's.
                values = self._build(variant, first, rng="torch").values
        for step, (value, expected) in enumerate(zip(values, self._reference(first), strict=True)):
            # Written so that NaN is wrong.
            if not abs(value - expected) <= tolerance * abs(expected):
                what = "loss" if self._name == TRAIN else "squared error"
                raise WrongError(f"{what} {value:.7g} at step {step + 1}, upstream's is {expected:.7g}")

    def _reference(self, first: list[Tensor]) -> list[float]:
        """What upstream's first steps give with noise drawn in float32, as ours is in every precision."""
        if self._expected is None:
            with float32_noise():
                self._expected = self._build(UPSTREAM, first).values
        return self._expected

    def _take_turns(self, count: int, patches: Tensor) -> None:
        for runner in list(self._runners):
            try:
                value, seconds = _timed(runner, count, patches)
            except Exception as error:  # as above
                self._runners.remove(runner)
                self._add(runner.variant, FAILED, f"at step {count + 1}: {_one_line(error)}")
                continue
            runner.values.append(value)
            runner.seconds.append(seconds)
            self._add_loss(runner.variant, count, value)

    def _add_times(self, runner: Runner) -> None:
        if not runner.seconds:
            return
        quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        low, median, high = torch.tensor(runner.seconds, dtype=torch.float64).quantile(quantiles).tolist()
        cells = {
            "median_ms": f"{1e3 * median:.4g}",
            "p20_ms": f"{1e3 * low:.4g}",
            "p80_ms": f"{1e3 * high:.4g}",
            "rounds": len(runner.seconds),
            "steps_per_s": f"{1 / median:.4g}",
            "peak_mib": "" if runner.peak is None else f"{runner.peak / 2**20:.1f}",
            "final_loss": f"{runner.values[-1]:.6g}" if self._name == TRAIN else "",
        }
        self._add(runner.variant, OK, "", **cells)

    def _add(self, variant: Variant, status: str, reason: str, **cells: Any) -> None:
        where = {"variant": variant.name, "precision": self._precision, "pass": self._name}
        self._table.add(**where, status=status, reason=reason, **cells)
        said = f"{cells['median_ms']:>8} ms, peak {cells['peak_mib']} MiB" if cells else f"{status}: {reason}"
        print(f"{self._precision:10} {self._name:8} {variant.name:24} {said}", flush=True)

    def _add_loss(self, variant: Variant, step: int, value: float) -> None:
        if self._name == TRAIN:
            self._table.add_loss(step + 1, variant.name, self._precision, value)


def _timed(runner: Runner, count: int, patches: Tensor) -> tuple[float, float]:
    """What step number `count` gives, and its seconds."""
    Distribution.set_default_validate_args(runner.variant.validates)
    torch.manual_seed(SEED + count)
    synchronize(patches.device)
    start = time.perf_counter()
    value = runner.step(patches)
    synchronize(patches.device)
    seconds = time.perf_counter() - start
    return value.item(), seconds


def _one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
