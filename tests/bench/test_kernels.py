"""The benchmark times nothing that is wrong, and its rows say why; its inputs and counts are what they claim."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.kernels.cases import CASES, CPU, Case, make_inputs
from bench.kernels.check import fault, not_normal
from bench.kernels.providers import PROVIDERS, Provider
from bench.kernels.run import EAGER, GRAPH, MOST_SETS, CaseRun, Entry, bytes_moved, count, input_sets
from bench.measure.timing import Effort, seconds_of
from ladder_kernels.backends import cpp
from ladder_kernels.noise import philox_normal

ROOT = Path(__file__).parents[2]
DEVICE = torch.device(CPU)
TINY = Case("tiny", 2, (4, 4), 8, window=2)
ONCE = Effort(0, 1, 1)
BY_NAME = {provider.name: provider for provider in PROVIDERS}
EAGER_NAMES = [name for name, provider in BY_NAME.items() if CPU in provider.devices and not provider.compiled]


def verdict(provider, case=TINY):
    return fault(provider, provider.stages(case), case, make_inputs(case, DEVICE))


@pytest.mark.parametrize("space", [(4, 2), (2, 4, 2)], ids=["2d", "3d"])
def test_inputs_are_laid_out_as_the_case_says_and_gradients_are_random(space):
    case = Case("", 2, space, 8, torch.bfloat16, channels_last=True)
    inputs = make_inputs(case, DEVICE)
    for packed in (inputs.q, inputs.p):
        assert packed.shape == (2, 16, *space)
        assert packed.stride(1) == 1
        assert packed.dtype == torch.bfloat16
        assert packed.requires_grad
    for grads in (inputs.grad_z, inputs.grad_kl):
        assert set(grads) == {torch.bfloat16, torch.float32}
        assert all(grad.unique().numel() > 1 for grad in grads.values())
    assert inputs.grad_z[torch.float32].stride(1) == 1
    assert torch.equal(make_inputs(case, DEVICE).q, inputs.q)
    assert not torch.equal(make_inputs(case, DEVICE, 1).q, inputs.q)


@pytest.mark.parametrize(
    "case",
    [
        TINY,
        TINY._replace(analytic=True),
        TINY._replace(prediction=True),
        TINY._replace(dtype=torch.bfloat16),
        TINY._replace(channels_last=True),
        TINY._replace(space=(2, 4, 2), window=None),
    ],
    ids=["window", "analytic", "prediction", "bf16", "channels_last", "3d"],
)
@pytest.mark.parametrize("name", [*EAGER_NAMES, "triton", "triton, Philox"])
def test_every_provider_is_right(name, case):
    if name.startswith("triton") and case.dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cannot compute in bfloat16")
    assert verdict(BY_NAME[name], case) is None


def planted(name: str, spoil) -> Provider:
    """A provider whose forward is changed by `spoil(result, inputs)`."""
    provider = BY_NAME[name]

    def make(case):
        forward = provider.make(case)
        return lambda inputs: spoil(forward(inputs), inputs)

    return provider._replace(make=make)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.view_as(z)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


FAULTS = {
    "z": lambda found, _: found._replace(z=found.z * 1.01),
    "kl_samplewise": lambda found, _: found._replace(kl_samplewise=found.kl_samplewise + 1),
    "kl_spatial": lambda found, _: found._replace(kl_spatial=found.kl_spatial.flip(-1)),
    "kl_channelwise": lambda found, _: found._replace(kl_channelwise=found.kl_channelwise * math.nan),
    "kl_samplewise_restricted": lambda found, _: found._replace(kl_samplewise_restricted=found.kl_samplewise),
    "logprob_q": lambda found, _: found._replace(logprob_q=found.logprob_q * 1.001),
    "gradient of q": lambda found, _: found._replace(z=_HalfGradient.apply(found.z)),
}


@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("name", ["torch", "cpp, Philox"])
def test_a_wrong_provider_is_seen(name, where):
    reason = verdict(planted(name, FAULTS[where]))
    assert reason is not None
    assert reason.startswith(f"{where} is off by ")


def test_another_seed_than_the_one_drawn_is_seen(monkeypatch):
    monkeypatch.setattr("bench.kernels.providers.philox_normal", lambda seed, *rest: philox_normal(seed + 1, *rest))
    assert "z is off by" in verdict(BY_NAME["cpp, Philox"])


def test_noise_that_nobody_knows_is_taken_from_z():
    case = TINY._replace(batch=8, space=(8, 8), window=4)
    provider = BY_NAME["torch"]._replace(noise="compiler")
    assert verdict(provider, case) is None
    stretched = planted("torch", lambda found, inputs: found._replace(z=2 * found.z))._replace(noise="compiler")
    assert "its noise is not standard normal" in verdict(stretched, case)
    spoilt = planted("torch", FAULTS["logprob_q"])._replace(noise="compiler")
    assert "logprob_q is off by" in verdict(spoilt, case)


@pytest.mark.parametrize(
    ("make", "statistic"),
    [
        (lambda noise: noise + 0.1, "mean"),
        (lambda noise: noise * 1.1, "variance"),
        (lambda noise: torch.cat([noise[:5000]] * 2), "correlation of halves"),
        (lambda noise: noise[:5000].repeat_interleave(2), "correlation of neighbours"),
        (lambda noise: (torch.rand_like(noise) - 0.5) * math.sqrt(12), "fourth moment"),
        (lambda noise: noise * math.nan, "mean"),
    ],
)
def test_what_is_not_normal_noise_is_seen(make, statistic):
    noise = torch.randn(10000)
    assert not_normal(noise) is None
    assert f"not standard normal: {statistic} off" in not_normal(make(noise))


def run_of(*providers, case=TINY, clock=time.perf_counter):
    return CaseRun(case, DEVICE, ONCE, clock, providers)


def test_a_planted_error_in_a_backend_is_a_wrong_row_without_a_time(monkeypatch):
    forward = cpp.forward
    monkeypatch.setattr(
        cpp, "forward", lambda *arguments: (out := forward(*arguments))._replace(logprob_q=out.logprob_q + 1)
    )
    run = run_of(BY_NAME["torch"], BY_NAME["cpp"])
    wrong = run.entry("cpp", EAGER)
    assert (wrong["pass"], wrong["status"], "median_us" in wrong) == ("step", "wrong", False)
    assert "logprob_q is off by" in wrong["reason"]
    assert isinstance(run.entry("torch", EAGER), Entry)


def test_a_provider_that_raises_or_cannot_run_leaves_the_others_alone(monkeypatch):
    def raising(*_):
        raise RuntimeError("no kernel\nand more of it")

    monkeypatch.setattr(
        "bench.kernels.providers.reason_unavailable", lambda name: "not built" if name == "cpp" else None
    )
    upstream = BY_NAME["upstream"]
    run = run_of(
        BY_NAME["triton"],
        BY_NAME["cpp"],
        BY_NAME["torch, compiled"],
        upstream._replace(name="unmade", make=raising),
        upstream._replace(name="raising", make=lambda case: raising),
        upstream,
    )
    assert isinstance(run.eager.pop("upstream"), Entry)
    assert {name: (row["status"], row["reason"]) for name, row in run.eager.items()} == {
        "triton": ("skipped", "there is no GPU"),
        "cpp": ("skipped", "not built"),
        "torch, compiled": ("skipped", "compiling takes too long to do it for every case"),
        "unmade": ("failed", "RuntimeError: no kernel"),
        "raising": ("failed", "RuntimeError: no kernel"),
    }


def test_validation_is_on_for_upstream_alone_and_left_as_it_was():
    seen = {}

    def spying(provider):
        def make(case):
            forward = provider.make(case)

            def forward_and_look(inputs):
                seen[provider.name] = torch.distributions.Distribution._validate_args
                return forward(inputs)

            return forward_and_look

        return provider._replace(make=make)

    run = run_of(*(spying(BY_NAME[name]) for name in ("upstream", "upstream, validation off")))
    seen.clear()
    for entry in run.eager.values():
        seconds_of(run.work(entry, "step"), time.perf_counter)
    assert seen == {"upstream": True, "upstream, validation off": False}
    assert torch.distributions.Distribution._validate_args


def test_bytes_are_those_of_the_tensors_moved():
    upstream, philox = BY_NAME["upstream"], BY_NAME["cpp, Philox"]
    per_latent = {
        (name, provider.name): bytes_moved(TINY, provider, name) / TINY.latents
        for name in ("forward", "backward", "step", "sample")
        for provider in (upstream, philox)
    }
    assert [per_latent[name, "cpp, Philox"] for name in ("forward", "backward", "step", "sample")] == [20, 36, 56, 12]
    assert [per_latent[name, "upstream"] for name in ("forward", "backward", "step", "sample")] == [28, 40, 68, 20]
    half = TINY._replace(dtype=torch.bfloat16)
    assert bytes_moved(half, philox, "step") == 28 * TINY.latents


def test_calls_and_memory_are_counted():
    inputs = make_inputs(TINY, DEVICE)
    found = {}
    for name in ("upstream", "upstream, validation off", "cpp, Philox"):
        found[name] = count(BY_NAME[name], BY_NAME[name].stages(TINY), inputs)
        assert set(found[name]) == set(TINY.passes)
        step, forward, backward = (found[name][key] for key in ("step", "forward", "backward"))
        assert step.launches == forward.launches + backward.launches
        assert step.peak_bytes is None
        assert step.kept_bytes == forward.kept_bytes
    assert found["upstream"]["step"].synchronisations == 11
    assert found["upstream, validation off"]["step"].synchronisations == 0
    # q, p and the seed.
    assert found["cpp, Philox"]["step"].kept_bytes == 2 * inputs.q.nbytes + 8
    assert found["cpp, Philox"]["step"].kept_bytes * 4 < found["upstream"]["step"].kept_bytes
    prediction = TINY._replace(prediction=True)
    sampled = count(BY_NAME["torch"], BY_NAME["torch"].stages(prediction), make_inputs(prediction, DEVICE))
    assert set(sampled) == {"sample"}


def test_graphs_are_timed_of_those_that_can_be_captured(monkeypatch):
    run = run_of(*(BY_NAME[name] for name in ("upstream", "torch", "cpp")))
    refusing = run.eager["cpp"].stages

    def capture(stages, inputs):
        if stages is refusing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return stages

    monkeypatch.setattr("bench.measure.launches.capture", capture)
    assert isinstance(run.entry("torch", GRAPH), Entry)
    rows = [row for row in run.graphs.values() if not isinstance(row, Entry)]
    assert {(row["provider"], row["mode"], row["status"], row["reason"]) for row in rows} == {
        ("upstream", GRAPH, "skipped", "waits for the device 11 times, which no graph can"),
        ("cpp", GRAPH, "failed", "RuntimeError: operation not permitted when stream is capturing"),
    }


def test_a_graph_of_several_calls_has_its_time_divided():
    run = run_of(BY_NAME["torch"])
    entry = run.eager["torch"]
    graph = entry._replace(stages=entry.stages._replace(calls=3))
    assert run.result(graph, "step", EAGER, [6.0, 3.0])["median_us"] == 1.5e6


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
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])}
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


def test_inputs_together_exceed_the_l2():
    l2 = 50 << 20
    for case in CASES:
        sets = input_sets(case, l2)
        if case.latents >= 1 << 17:
            assert sets * 5 * case.latents * case.dtype.itemsize >= 2 * l2
        assert 1 <= sets <= MOST_SETS
    (large,) = [case for case in CASES if case.name == "large"]
    assert input_sets(large, l2) == 1
