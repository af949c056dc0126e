"""How the benchmark times a pass; and the parts for GPUs, with a GPU that is played."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.kernels.cases import CASES, CPU, Case
from bench.kernels.providers import PROVIDERS
from bench.kernels.run import CaseRun
from bench.measure import gpu_timing
from bench.measure.timing import Copying, Effort, Stages, Work, rounds_of, seconds_of

ROOT = Path(__file__).parents[2]
TINY = Case("tiny", 2, (4, 4), 8)
UPSTREAM = PROVIDERS[0]


class FakeClock:
    """Time passes only where somebody says so, and a tick at every look."""

    TICK = 1e-3

    def __init__(self):
        self.now = 0.0

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

    stages = Stages(clock.taking(1.0), clock.taking(2.0), slow)
    assert seconds_of(Work(stages, name, [None]), clock) == pytest.approx(seconds + clock.TICK)


@pytest.mark.parametrize(("effort", "rounds"), [((30, 2, 50), 10), ((30, 2, 5), 5), ((30, 20, 50), 20)])
def test_rounds_fit_the_time_between_bounds(effort, rounds):
    clock = FakeClock()
    work = Work(Stages(clock.taking(2.9)), "forward", [None])
    assert rounds_of(work, clock, Effort(*effort)) == rounds


def test_inputs_take_turns_and_nothing_is_kept_of_a_round():
    seen = []
    work = Work(Stages(lambda given: seen.append(given) or object()), "sample", ["x", "y"])
    for _ in range(3):
        seconds_of(work, FakeClock())
    assert seen == ["x", "y", "x"]
    assert work._result is None


def test_a_graph_of_several_calls_has_its_time_divided():
    run = CaseRun(TINY, torch.device(CPU), Effort(0, 1, 1), FakeClock(), [UPSTREAM])
    entry = run.eager["upstream"]
    graph = entry._replace(stages=entry.stages._replace(calls=3))
    assert run.result(graph, "step", "eager", [6.0, 3.0]).seconds == (2.0, 1.0)


SLOWED = """
import time
from bench.kernels import providers
upstream, slow = providers.PROVIDERS[:2]
def make(case):
    forward = upstream.make(case)
    return lambda inputs: (time.sleep(0.05), forward(inputs))[1]
providers.PROVIDERS = (upstream, upstream._replace(name="slowed", make=make))
from bench.kernels import cases
cases.CASES = (cases.Case("tiny", 2, (4, 4), 8, quick=True),)
"""


def test_a_planted_slowdown_shows_in_the_table_and_in_pytest_benchmark(tmp_path):
    (tmp_path / "planted.py").write_text(SLOWED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "planted", "-p", "no:cacheprovider", "bench", "--quick"]
    command += ["--device", "cpu", "--results", str(tmp_path / "x.csv"), f"--benchmark-json={tmp_path / 'x.json'}"]
    # A worker of pytest-xdist would time nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = {(row["provider"], row["pass"]): float(row["median_us"]) for row in csv.DictReader(file)}
    assert len(rows) == 6
    for name in ("forward", "step"):
        assert rows["slowed", name] > rows["upstream", name] + 40_000
    assert rows["slowed", "backward"] < 50_000
    for each in json.loads((tmp_path / "x.json").read_text())["benchmarks"]:
        key = each["name"], each["group"].removeprefix("tiny, ")
        assert 1e6 * each["stats"]["median"] == pytest.approx(rows[key], rel=1e-3)


def test_a_copy_moves_as_many_bytes_as_it_says_and_changes_buffers():
    copying = Copying(1024, torch.device(CPU), 2)
    copy = copying.stages()
    copy.forward(None)
    assert [int(target.sum()) for _, target in copying._buffers] == [1024 // 8, 0]
    copy.forward(None)
    assert [int(target.sum()) for _, target in copying._buffers] == [1024 // 8] * 2


def test_inputs_together_exceed_the_l2():
    l2 = 50 << 20
    for case in CASES:
        sets = gpu_timing.input_sets(case, l2)
        if case.latents >= 1 << 17:
            assert sets * 5 * case.latents * case.dtype.itemsize >= 2 * l2
        assert 1 <= sets <= gpu_timing.MOST_SETS
    (large,) = [case for case in CASES if case.name == "large"]
    assert gpu_timing.input_sets(large, l2) == 1


def test_launches_and_waits_are_told_from_other_events():
    names = ["aten::add", "cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    assert gpu_timing.counted([*names, "cudaLaunchKernel", "cudaDeviceSynchronize"]) == (3, 1)


class PlayedGraph:
    """A CUDA graph that remembers what was done while it was captured, and when it was replayed."""

    capturing = None

    def __init__(self):
        self.captured, self.replays, self.shared = [], 0, None

    def pool(self):
        return self

    def replay(self):
        self.replays += 1

    @staticmethod
    @contextlib.contextmanager
    def graph(graph, pool=None):
        graph.shared, PlayedGraph.capturing = pool, graph
        yield
        PlayedGraph.capturing = None


@pytest.fixture
def played_gpu(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    graphs = []

    def new_graph():
        graphs.append(PlayedGraph())
        return graphs[-1]

    for name, value in {
        "CUDAGraph": new_graph,
        "graph": PlayedGraph.graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs


def test_forward_and_backward_are_captured_apart_on_all_inputs(played_gpu):
    def note(*what):
        if PlayedGraph.capturing is not None:
            PlayedGraph.capturing.captured.append(what)
        return what

    entered = []

    @contextlib.contextmanager
    def context():
        entered.append(None)
        yield

    run = Stages(lambda given: note("forward", given), lambda result, given: note(result, given), context)
    captured = gpu_timing.capture(run, ["x", "y"])
    forward, backward = played_gpu
    assert forward.captured == [("forward", "x"), ("forward", "y")]
    assert backward.captured == [(("forward", "x"), "x"), (("forward", "y"), "y")]
    assert backward.shared is forward
    assert captured.calls == 2
    assert entered == [None]
    captured.forward("x")
    captured.backward(None, "x")
    captured.backward(None, "x")
    assert (forward.replays, backward.replays) == (1, 2)


def test_a_copy_or_a_sample_is_captured_without_a_backward(played_gpu):
    captured = gpu_timing.capture(Stages(lambda given: given), ["x"])
    assert captured.backward is None
    assert len(played_gpu) == 1


def test_a_capture_that_breaks_off_leaves_the_stream_and_the_generator_as_they_were(played_gpu, monkeypatch):
    states, streams = [], []
    generator = SimpleNamespace(device="cuda:0", graphsafe_set_state=states.append)
    fresh = SimpleNamespace(graphsafe_get_state=lambda: "fresh")
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch, "Generator", lambda device: fresh)

    def refuse(given):
        if PlayedGraph.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        gpu_timing.capture(Stages(refuse), ["x"])
    assert (states, streams) == (["fresh"], [torch.cuda.current_stream()])
