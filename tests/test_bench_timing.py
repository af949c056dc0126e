"""How the benchmark times: in turns, by any clock; and the parts for GPUs, with a GPU that is played."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_timing, timing
from bench.cases import CASES, CPU, Case
from bench.figures import quantile
from bench.providers import PROVIDERS
from bench.suite import measure
from bench.test_kernels import Playback
from bench.timing import Copying, Effort, Stages, Times, take_turns

TINY = Case("tiny", 2, (4, 4), 8)
UPSTREAM = PROVIDERS[0]


class FakeClock:
    """Time passes only where somebody says so."""

    def __init__(self):
        self.now = 0.0
        self.waits = 0

    def mark(self):
        return self.now

    def wait(self):
        self.waits += 1

    def seconds(self, start, end):
        return end - start

    def taking(self, seconds, log=None, name=""):
        def work(*_):
            self.now += seconds
            if log is not None:
                log.append(name)

        return work


def test_runs_take_turns_and_each_stage_has_its_own_time():
    clock, log = FakeClock(), []
    runs = {
        "a": Stages(clock.taking(1.0, log, "a"), clock.taking(2.0)),
        "b": Stages(clock.taking(4.0, log, "b")),
    }
    found = take_turns(runs, [None], clock, Effort(0, 3, 9))
    assert log == ["a", "b"] * (timing.WARM_UP_ROUNDS + 3)
    assert found == {"a": Times([1.0] * 3, [2.0] * 3), "b": Times([4.0] * 3, [])}
    assert found["a"].step == [3.0] * 3


@pytest.mark.parametrize(("effort", "rounds"), [((30, 2, 50), 10), ((30, 2, 5), 5), ((30, 20, 50), 20)])
def test_rounds_fit_the_time_between_bounds(effort, rounds):
    clock = FakeClock()
    found = take_turns({"a": Stages(clock.taking(1.0), clock.taking(2.0))}, [None], clock, Effort(*effort))
    assert len(found["a"].forward) == rounds


def test_the_context_is_entered_around_a_turn_and_is_not_timed():
    clock = FakeClock()

    @contextlib.contextmanager
    def slow():
        clock.now += 100
        yield
        clock.now += 100

    found = take_turns({"a": Stages(clock.taking(1.0), context=slow)}, [None], clock, Effort(0, 1, 1))
    assert found["a"].forward == [1.0]


def test_all_inputs_have_their_turn_before_the_device_is_waited_for():
    clock, seen = FakeClock(), []
    found = take_turns({"a": Stages(seen.append)}, ["x", "y"], clock, Effort(0, 2, 2))
    turns = timing.WARM_UP_ROUNDS + 2
    assert seen == ["x", "y"] * turns
    assert clock.waits == turns
    assert len(found["a"].forward) == 4


def test_a_graph_of_several_calls_is_replayed_once_a_turn_and_its_time_divided():
    clock, seen = FakeClock(), []
    graph = Stages(clock.taking(6.0, seen), clock.taking(3.0), calls=3)
    found = take_turns({"a": graph}, ["x", "y", "z"], clock, Effort(18, 1, 9))
    assert found["a"] == Times([2.0] * 2, [1.0] * 2)


def test_a_run_that_raises_is_dropped_and_the_others_go_on():
    clock, calls = FakeClock(), []

    def failing(_):
        calls.append(None)
        if len(calls) == 2:
            raise MemoryError("no more")

    found = take_turns({"a": Stages(failing), "b": Stages(clock.taking(1.0))}, [None], clock, Effort(0, 4, 4))
    assert isinstance(found["a"], MemoryError)
    assert len(calls) == 2
    assert found["b"].forward == [1.0] * 4


def test_a_planted_slowdown_shows_in_the_figures():
    clock = FakeClock()

    def taking(seconds):
        def make(case):
            forward = UPSTREAM.make(case)

            def slowed(inputs):
                clock.now += seconds
                return forward(inputs)

            return slowed

        return UPSTREAM._replace(name=f"{seconds} s", make=make)

    rows = measure(TINY, torch.device(CPU), Effort(0, 3, 3), [taking(1.0), taking(1.5)], clock=SlowCopies(clock))
    medians = {(row.provider, row.pass_name): quantile(row.seconds, 0.5) for row in rows}
    # A tick passes at every mark, so that a copy takes some time too.
    for seconds in (1.0, 1.5):
        assert medians[f"{seconds} s", "forward"] == pytest.approx(seconds + SlowCopies.TICK)
        assert medians[f"{seconds} s", "backward"] == pytest.approx(SlowCopies.TICK)
        assert medians[f"{seconds} s", "step"] == pytest.approx(seconds + 2 * SlowCopies.TICK)
    for row in rows:
        assert row.copy_bytes_per_second == pytest.approx(row.bytes / SlowCopies.TICK)


class SlowCopies:
    """A clock on which every mark takes a tick."""

    TICK = 1e-3

    def __init__(self, clock):
        self._clock = clock
        self.wait, self.seconds = clock.wait, clock.seconds

    def mark(self):
        self._clock.now += self.TICK
        return self._clock.now


def test_a_copy_moves_as_many_bytes_as_it_says_and_changes_buffers():
    copying = Copying(4096, torch.device(CPU), 2)
    sources = [source.fill_(value) for value, (source, _) in enumerate(copying._buffers, start=1)]
    assert sources[0].data_ptr() != sources[1].data_ptr()
    copy = copying.of(1024)
    copy.forward(None)
    assert [int((target == 1).sum()) for _, target in copying._buffers] == [1024 // 8, 0]
    copy.forward(None)
    assert [int((target == 2).sum()) for _, target in copying._buffers] == [0, 1024 // 8]


def test_playback_lets_pytest_benchmark_measure_what_was_measured():
    playback, measured = Playback(), []

    def pedantic(target, rounds):
        for _ in range(rounds):
            start = playback()
            target()
            measured.append(playback() - start)

    playback.play(SimpleNamespace(pedantic=pedantic), (3.0, 1.0, 2.0))
    assert measured == [3.0, 1.0, 2.0]


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
