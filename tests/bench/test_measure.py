"""How time, memory and calls are measured."""

import contextlib

import pytest
import torch

from bench.measure.counts import Calls, count_calls
from bench.measure.memory import bytes_kept, peak_bytes
from bench.measure.timing import Stages, Work, quantile, seconds_of, take_turns

CPU = torch.device("cpu")


class FakeClock:
    """Time passes only where somebody says so, and a tick at every look."""

    TICK = 1e-3
    now = 0.0

    def __call__(self):
        self.now += self.TICK
        return self.now

    def taking(self, seconds):
        def work(*_):
            self.now += seconds

        return work


@pytest.mark.parametrize(("name", "seconds"), [("forward", 1.0), ("backward", 2.0), ("step", 3.0)])
def test_a_pass_has_its_own_time_and_its_context_none(name, seconds):
    clock = FakeClock()

    @contextlib.contextmanager
    def slow():
        clock.now += 100
        yield
        clock.now += 100

    work = Work(Stages(clock.taking(1.0), clock.taking(2.0), slow), name, [None])
    assert seconds_of(work, clock) == pytest.approx(seconds + clock.TICK)


def test_inputs_take_turns_and_nothing_is_kept_of_a_round():
    seen = []
    work = Work(Stages(lambda given: seen.append(given) or object()), "sample", ["x", "y"])
    for _ in range(3):
        seconds_of(work, FakeClock())
    assert (seen, work._result) == (["x", "y", "x"], None)


def test_runs_take_turns_and_what_is_prepared_is_not_timed(monkeypatch):
    clock, prepared = FakeClock(), []
    monkeypatch.setattr("bench.measure.timing.time.perf_counter", clock)

    def prepare(name, given):
        prepared.append((name, given))
        clock.now += 100

    turns = list(take_turns({"a": clock.taking(2.0), "b": clock.taking(3.0)}, range(2), CPU, prepare))
    assert prepared == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [(turn.name, round(turn.seconds)) for turn in turns] == [("a", 2), ("b", 3), ("a", 2), ("b", 3)]
    assert [quantile([4.0, 1.0, 2.0, 3.0, 5.0], q) for q in (0.2, 0.5, 1.0)] == pytest.approx([1.8, 3.0, 5.0])


def test_count_calls_counts_synchronisations_and_sees_the_backward():
    x = torch.ones(3, requires_grad=True)
    product, gradient = x * 2, torch.ones(3)
    assert count_calls(lambda: (gradient * gradient).sum().item()) == Calls(3, 1)
    assert count_calls(lambda: torch.autograd.grad(product, x, gradient)) == Calls(1, 0)


def test_bytes_kept_counts_each_storage_once_and_no_parameter():
    a, b = (torch.ones(10, requires_grad=True) for _ in range(2))
    assert bytes_kept(lambda: a * b) == 2 * 10 * 4
    assert bytes_kept(lambda: a * b, [b]) == 10 * 4
    assert bytes_kept(lambda: a[:5] * a[5:]) == 10 * 4
    assert bytes_kept(lambda: (a + b).exp()) == 10 * 4


def test_peak_bytes_is_the_most_at_once():
    mebibyte = 2**20 // 4

    def allocate():
        kept = torch.zeros(mebibyte)
        torch.zeros(2 * mebibyte)
        return kept + torch.zeros(mebibyte)

    assert peak_bytes(allocate, CPU) == 3 * 2**20
