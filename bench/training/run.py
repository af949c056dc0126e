"""The whole model, measured: every variant is built and checked, then all take turns step by step."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from bench.measure.memory import peak_bytes
from bench.measure.timing import quantile, take_turns
from bench.report.results import FAILED, OK, SKIPPED, WRONG, Table, one_line
from bench.training.steps import FP32, KINDS, PREDICT, SEED, UPSTREAM, VARIANTS, Variant, build, reason_to_skip

# The first steps allocate, compile and choose kernels: they are checked, not timed.
CHECKED_STEPS = 3
# How far a loss may be from upstream's, relative: with the same random numbers only rounding differs, with others (a
# compiler's; upstream's own in 16 bits) every sample, of which a loss averages many.
TOLERANCE, TOLERANCE_OTHER_NOISE = 1e-3, 1e-1

Step = Callable[[Tensor], Tensor]
Given = tuple[int, Tensor]
"""A round: its number, and the patches (B, 1, H, W) that all variants get in it."""


class WrongError(AssertionError):
    """A variant does not compute what upstream does."""


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
    step: Step
    peak: int | None = None
    """Bytes: the most at once from nothing to the end of the first steps."""
    values: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def prepare(self, given: Given) -> None:
        """The same random numbers for every variant."""
        Distribution.set_default_validate_args(self.variant.validates)
        torch.manual_seed(SEED + given[0])

    def attempt(self, given: Given) -> Tensor | Exception:
        """A step whose failure leaves the others their turns."""
        try:
            return self.step(given[1])
        except Exception as error:  # whatever it is
            return error


def measure(settings: Settings, patches: Callable[[int], Tensor], table: Table, environment: dict[str, Any]) -> None:
    """Fill the table, one group of variants after the other; `patches(n)` are those of step n (B, 1, H, W).

    A KeyboardInterrupt passes through, after the rows of what had been timed.
    """
    validates = Distribution._validate_args
    try:
        for precision in settings.precisions:
            for kind in KINDS:
                _Group(settings, precision, kind, table, environment).run(patches)
                gc.collect()
    finally:
        Distribution.set_default_validate_args(validates)


class _Group:
    """The variants that are compared with each other: one precision, training or prediction."""

    def __init__(
        self, settings: Settings, precision: str, kind: str, table: Table, environment: dict[str, Any]
    ) -> None:
        self._settings, self._precision, self._kind, self._table = settings, precision, kind, table
        self._common = {"batch": settings.batch, "patch": settings.patch, **environment}
        self._runners: dict[str, Runner] = {}
        self._expected: list[float] | None = None

    def run(self, patches: Callable[[int], Tensor]) -> None:
        # Compiled code is kept by the model's class, up to a few versions; beyond that a variant would run eagerly.
        torch._dynamo.reset()
        first = [(count, patches(count)) for count in range(CHECKED_STEPS)]
        for variant in VARIANTS:
            self._enter(variant, first)
        last = CHECKED_STEPS + self._settings.rounds
        try:
            self._take_turns((count, patches(count)) for count in range(CHECKED_STEPS, last))
        finally:
            for runner in self._runners.values():
                if runner.seconds:
                    self._add_times(runner)

    def _enter(self, variant: Variant, first: Sequence[Given]) -> None:
        """Build a variant and check its first steps; what is left out, fails or is wrong gets its row at once."""
        settings = self._settings
        reason = reason_to_skip(variant, self._precision, settings.device, self._kind != PREDICT)
        if reason is None and variant.compiled and self._precision not in settings.compiled:
            reason = "compiling takes long: left out with --quick, and on a CPU in all but fp32"
        if reason is not None:
            return self._add(variant, SKIPPED, reason)
        print(f"{self._precision:10} {self._kind:10} {variant.name}: built and checked", flush=True)
        built: list[Runner] = []
        try:
            peak = peak_bytes(lambda: built.append(self._build(variant, first)), settings.device)
            self._check(built[0], first)
        except WrongError as error:
            return self._add(variant, WRONG, str(error))
        except Exception as error:  # whatever it is, the others go on
            return self._add(variant, FAILED, one_line(error))
        built[0].peak = peak
        self._runners[variant.name] = built[0]

    def _build(self, variant: Variant, first: Sequence[Given], rng: Literal["torch", "philox"] | None = None) -> Runner:
        """The variant after its first steps."""
        runner = Runner(variant, build(self._kind, variant, self._precision, first[0][1], rng))
        for given in first:
            runner.prepare(given)
            runner.values.append(runner.step(given[1]).item())
        return runner

    def _check(self, runner: Runner, first: Sequence[Given]) -> None:
        """Raises WrongError where the first steps differ from upstream's by more than they may."""
        variant, values, tolerance = runner.variant, runner.values, TOLERANCE_OTHER_NOISE
        if variant.patched and not variant.compiled:
            tolerance = TOLERANCE if self._precision == FP32 else TOLERANCE_OTHER_NOISE
            if self._settings.device.type != "cpu":
                # There it makes noise of its own; for the check alone it takes upstream's.
                values = self._build(variant, first, rng="torch").values
        if variant == UPSTREAM:
            self._expected = values
        if self._expected is None:
            raise WrongError("nothing of upstream's to compare with")
        for step, (value, expected) in enumerate(zip(values, self._expected, strict=True)):
            # Written so that NaN is wrong.
            if not abs(value - expected) <= tolerance * abs(expected):
                what = "squared error" if self._kind == PREDICT else "loss"
                raise WrongError(f"{what} {value:.7g} at step {step + 1}, upstream's is {expected:.7g}")

    def _take_turns(self, rounds: Iterator[Given]) -> None:
        runs = {name: runner.attempt for name, runner in self._runners.items()}

        def prepare(name: str, given: Given) -> None:
            self._runners[name].prepare(given)

        for turn in take_turns(runs, rounds, self._settings.device, prepare):
            runner = self._runners[turn.name]
            if isinstance(turn.result, Exception):
                del runs[turn.name], self._runners[turn.name]
                step = len(runner.values) + 1
                self._add(runner.variant, FAILED, f"at step {step}: {one_line(turn.result)}")
                continue
            runner.values.append(turn.result.item())
            runner.seconds.append(turn.seconds)

    def _add_times(self, runner: Runner) -> None:
        low, median, high = (quantile(runner.seconds, q) for q in (0.2, 0.5, 0.8))
        self._add(
            runner.variant,
            OK,
            median_ms=f"{1e3 * median:.4g}",
            p20_ms=f"{1e3 * low:.4g}",
            p80_ms=f"{1e3 * high:.4g}",
            rounds=len(runner.seconds),
            steps_per_s=f"{1 / median:.4g}",
            peak_mib="" if runner.peak is None else f"{runner.peak / 2**20:.1f}",
            final_loss="" if self._kind == PREDICT else f"{runner.values[-1]:.6g}",
        )

    def _add(self, variant: Variant, status: str, reason: str = "", **cells: Any) -> None:
        where = {"variant": variant.name, "precision": self._precision, "pass": self._kind}
        self._table.add({**self._common, **where, "status": status, "reason": reason, **cells})
        said = f"{cells['median_ms']:>8} ms, peak {cells['peak_mib']} MiB" if cells else f"{status}: {reason}"
        print(f"{self._precision:10} {self._kind:10} {variant.name:24} {said}", flush=True)
