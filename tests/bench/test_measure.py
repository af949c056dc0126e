"""How time, memory and launches are measured; and the parts for GPUs, with a GPU that is played."""

import contextlib
import subprocess
from types import SimpleNamespace

import pytest
import torch

from bench.measure import launches
from bench.measure.launches import Calls, count_calls
from bench.measure.memory import bytes_kept, peak_bytes
from bench.measure.run_info import commit, default_path, machine
from bench.measure.timing import Copying, Effort, Stages, Work, quantile, rounds_of, seconds_of, take_turns

CPU = torch.device("cpu")


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


def test_a_copy_moves_as_many_bytes_as_it_says_and_changes_buffers():
    copying = Copying(1024, CPU, 2)
    copy = copying.stages()
    copy.forward(None)
    assert [int(target.sum()) for _, target in copying._buffers] == [1024 // 8, 0]
    copy.forward(None)
    assert [int(target.sum()) for _, target in copying._buffers] == [1024 // 8] * 2


def test_launches_and_waits_are_told_from_other_events():
    names = ["aten::add", "cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    assert launches.counted([*names, "cudaLaunchKernel", "cudaDeviceSynchronize"]) == (3, 1)


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
    captured = launches.capture(run, ["x", "y"])
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
        launches.capture(Stages(refuse), ["x"])
    assert (states, streams) == (["fresh"], [torch.cuda.current_stream()])


def test_runs_take_turns_until_they_are_taken_out():
    order, seen = [], []
    runs = {name: lambda given, name=name: order.append((name, given)) for name in ("a", "b")}
    for turn in take_turns(runs, range(3), CPU, lambda name, given: seen.append((name, given))):
        if turn.name == "a" and len(order) > 1:
            del runs["a"]
    assert order == seen == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2)]


def test_what_is_prepared_is_not_timed(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr("bench.measure.timing.time.perf_counter", clock)
    (turn,) = take_turns({"a": clock.taking(2.0)}, [None], CPU, clock.taking(100.0))
    assert turn.seconds == pytest.approx(2.0 + clock.TICK)


def test_quantiles():
    assert [quantile([4.0, 1.0, 2.0, 3.0, 5.0], q) for q in (0.2, 0.5, 0.8)] == pytest.approx([1.8, 3.0, 4.2])
    assert quantile([7.0], 0.8) == 7.0


def test_count_calls_counts_synchronisations_and_sees_the_backward():
    x = torch.ones(3, requires_grad=True)
    product, gradient = x * 2, torch.ones(3)
    assert count_calls(lambda: gradient + gradient) == Calls(1, 0)
    assert count_calls(lambda: (gradient * gradient).sum().item()) == Calls(3, 1)
    assert count_calls(lambda: torch.autograd.grad(product, x, gradient)) == Calls(1, 0)


def test_bytes_kept_counts_each_storage_once_and_no_parameter():
    a, b = (torch.ones(10, requires_grad=True) for _ in range(2))
    assert bytes_kept(lambda: a * b) == 2 * 10 * 4
    assert bytes_kept(lambda: a * b, [b]) == 10 * 4
    assert bytes_kept(lambda: a[:5] * a[5:]) == 10 * 4
    assert bytes_kept(lambda: a + b) == 0
    assert bytes_kept(lambda: (a + b).exp()) == 10 * 4


def test_peak_bytes_is_the_most_at_once():
    mebibyte = 2**20 // 4

    def allocate():
        kept = torch.zeros(mebibyte)
        torch.zeros(2 * mebibyte)
        return kept + torch.zeros(mebibyte)

    assert peak_bytes(allocate, CPU) == 3 * 2**20
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_quick_look_does_not_replace_what_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert machine(torch.device("cuda")) == "a100-sxm4-80gb"
    kept, quick = (default_path(CPU, "-train", quick=quick) for quick in (False, True))
    assert kept.name == quick.name
    assert kept.name.endswith("-train.csv")
    assert kept.parent.parts[-2:] == ("bench", "results")
    assert quick.parent.parts == ("out", "bench")


def test_results_of_an_earlier_benchmark_make_no_commit_dirty(tmp_path):
    assert commit(tmp_path) == ""  # no repository
    files = [tmp_path / name for name in ("code.py", "README.md", "bench/results/x.csv")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    user = ("-c", "user.name=x", "-c", "user.email=x")
    for command in (("init", "-q"), ("add", "."), (*user, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = commit(tmp_path)
    for file in files[1:]:
        file.write_text("after")
    assert commit(file.parent) == clean != ""
    files[0].write_text("after")
    assert commit(file.parent) == clean + "-dirty"
