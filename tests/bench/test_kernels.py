"""The benchmark times nothing that is wrong, and its rows say why; its inputs and counts are what they claim."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributions import Distribution

from bench.kernels.cases import CPU, Case, make_inputs
from bench.kernels.check import fault, looks_normal
from bench.kernels.providers import PROVIDERS, Provider
from bench.kernels.run import CaseRun, Entry, bytes_moved
from bench.measure.counts import count
from bench.report.results import read_rows

ROOT = Path(__file__).parents[2]
DEVICE = torch.device(CPU)
TINY = Case("tiny", 2, (4, 4), 8, window=2)
CASES_TO_CHECK = {
    "window": TINY,
    "analytic": TINY._replace(analytic=True),
    "prediction": TINY._replace(prediction=True),
    "bf16": TINY._replace(dtype=torch.bfloat16),
    "channels_last": TINY._replace(channels_last=True),
    "3d": TINY._replace(space=(2, 4, 2), window=None),
}
BY_NAME = {provider.name: provider for provider in PROVIDERS}
EAGER_NAMES = [name for name, provider in BY_NAME.items() if CPU in provider.devices and not provider.compiled]


def verdict(provider, case=TINY):
    return fault(provider, provider.stages(case), case, make_inputs(case, DEVICE))


def test_inputs_are_laid_out_as_the_case_says_and_gradients_are_random():
    case = Case("", 2, (2, 4, 2), 8, torch.bfloat16, channels_last=True)
    inputs = make_inputs(case, DEVICE)
    for packed in (inputs.q, inputs.p):
        assert (packed.shape, packed.stride(1), packed.dtype) == ((2, 16, 2, 4, 2), 1, torch.bfloat16)
    for grads in (inputs.grad_z, inputs.grad_kl):
        assert all(grads[dtype].unique().numel() > 1 for dtype in (torch.bfloat16, torch.float32))


@pytest.mark.parametrize("case", CASES_TO_CHECK.values(), ids=CASES_TO_CHECK)
@pytest.mark.parametrize("name", [*EAGER_NAMES, "triton", "triton, Philox"])
def test_every_provider_is_right(name, case):
    if name.startswith("triton") and case.dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cannot compute in bfloat16")
    assert verdict(BY_NAME[name], case) is None


def planted(name: str, spoil) -> Provider:
    """A provider whose forward is changed by `spoil(result)`."""
    provider = BY_NAME[name]

    def make(case):
        forward = provider.make(case)
        return lambda inputs: spoil(forward(inputs))

    return provider._replace(make=make)


def halved_gradient(z):
    z = z.view_as(z)
    z.register_hook(lambda grad: grad / 2)
    return z


FAULTS = {
    "z": lambda found: found._replace(z=found.z * 1.01),
    "kl_samplewise": lambda found: found._replace(kl_samplewise=found.kl_samplewise + 1),
    "kl_spatial": lambda found: found._replace(kl_spatial=found.kl_spatial.flip(-1)),
    "kl_channelwise": lambda found: found._replace(kl_channelwise=found.kl_channelwise * math.nan),
    "kl_samplewise_restricted": lambda found: found._replace(kl_samplewise_restricted=found.kl_samplewise),
    "logprob_q": lambda found: found._replace(logprob_q=found.logprob_q * 1.001),
    "gradient of q": lambda found: found._replace(z=halved_gradient(found.z)),
}


@pytest.mark.parametrize("where", FAULTS)
def test_a_wrong_provider_is_seen(where):
    assert verdict(planted("cpp, Philox", FAULTS[where])).startswith(f"{where} is off by ")


def test_noise_that_nobody_knows_is_taken_from_z():
    case = TINY._replace(batch=8, space=(8, 8), window=4)
    assert verdict(BY_NAME["torch"]._replace(noise="compiler"), case) is None
    stretched = planted("torch", lambda found: found._replace(z=2 * found.z))._replace(noise="compiler")
    assert verdict(stretched, case) == "its noise is not standard normal"
    noise = torch.randn(10000)
    assert looks_normal(noise)
    halves, neighbours = torch.cat([noise[:5000]] * 2), noise[:5000].repeat_interleave(2)
    for wrong in (noise + 0.1, noise * 1.1, halves, neighbours, noise.sign(), noise * math.nan):
        assert not looks_normal(wrong)


def test_a_provider_that_is_wrong_raises_or_cannot_run_leaves_the_others_alone(monkeypatch):
    def raising(*_):
        raise RuntimeError("no kernel\nand more of it")

    def reason(name):
        return "not built" if name == "cpp" else None

    monkeypatch.setattr("bench.kernels.providers.reason_unavailable", reason)
    upstream, wrong = BY_NAME["upstream"], planted("torch", FAULTS["kl_samplewise"])
    providers = [BY_NAME[name] for name in ("triton", "cpp", "torch, compiled", "upstream")]
    providers += [upstream._replace(name="raising", make=lambda case: raising), wrong]
    run = CaseRun(TINY, DEVICE, 0.0, time.perf_counter, providers)
    assert isinstance(run.entries.pop("upstream"), Entry)
    assert "median_us" not in run.entries["torch"]
    found = {name: (row["status"], row["reason"].partition(" by ")[0]) for name, row in run.entries.items()}
    assert found == {
        "triton": ("skipped", "there is no GPU"),
        "cpp": ("skipped", "not built"),
        "torch, compiled": ("skipped", "compiling takes too long to do it for every case"),
        "raising": ("failed", "RuntimeError: no kernel"),
        "torch": ("wrong", "kl_samplewise is off"),
    }


def test_validation_is_on_for_upstream_alone_and_left_as_it_was():
    seen = []
    for name in ("upstream", "upstream, validation off"):
        stages = planted(name, lambda found: seen.append(Distribution._validate_args)).stages(TINY)
        with stages.context():
            stages.forward(make_inputs(TINY, DEVICE))
    assert seen == [True, False]
    assert Distribution._validate_args


def test_bytes_are_those_of_the_tensors_moved():
    passes = ("forward", "backward", "step", "sample")
    for name, per_latent in (("cpp, Philox", [20, 36, 56, 12]), ("upstream", [28, 40, 68, 20])):
        assert [bytes_moved(TINY, BY_NAME[name], each) / TINY.latents for each in passes] == per_latent
    half = TINY._replace(dtype=torch.bfloat16)
    assert bytes_moved(half, BY_NAME["cpp, Philox"], "step") == 28 * TINY.latents


def test_calls_and_memory_are_counted():
    inputs = make_inputs(TINY, DEVICE)
    names = ("upstream", "upstream, validation off", "cpp, Philox")
    found = {name: count(BY_NAME[name].stages(TINY), inputs, DEVICE) for name in names}
    for counts in found.values():
        assert set(counts) == set(TINY.passes)
        assert counts["step"]["launches"] == counts["forward"]["launches"] + counts["backward"]["launches"]
    assert [counts["step"]["synchronisations"] for counts in found.values()] == [11, 0, 0]
    ours, upstreams = (found[name]["step"]["kept_mib"] for name in ("cpp, Philox", "upstream"))
    assert ours == pytest.approx((2 * inputs.q.nbytes + 8) / 2**20, rel=1e-3)  # q, p and the seed
    assert ours * 4 < upstreams


SLOWED = """
import time
from pathlib import Path
import pytest
from bench.kernels import cases, providers
upstream, slow = providers.PROVIDERS[:2]
def make(case):
    forward = upstream.make(case)
    return lambda inputs: (time.sleep(0.05), forward(inputs))[1]
providers.PROVIDERS = (upstream, upstream._replace(name="slowed", make=make))
cases.CASES = (cases.Case("tiny", 2, (4, 4), 8, quick=True),)
from bench.kernels import run
run.LEAST = run.MOST = 3
from bench.report import results
results.GROWING = Path(__file__).parent
results.RESULTS = results.GROWING / "kept"
results.RESULTS.mkdir()
for part in ([], ["-k", "step"]):
    suite = ["bench/kernels/test_kernels.py", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    assert pytest.main([*suite, *part]) == 0
"""


def test_a_planted_slowdown_shows_and_a_part_is_not_kept(tmp_path):
    (tmp_path / "planted.py").write_text(SLOWED)
    # A worker of pytest-xdist would time nothing.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(tmp_path / "planted.py")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    for folder, number in ((tmp_path / "kept", 6), (tmp_path, 2)):
        (written,) = folder.glob("*.csv")
        rows = {(row["provider"], row["pass"]): float(row["median_us"]) for row in read_rows(written)}
        assert len(rows) == number
        assert rows["slowed", "step"] > rows["upstream", "step"] + 40_000
