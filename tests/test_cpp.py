"""What is particular to the native CPU backend: threads, instruction sets, and an extension that cannot serve."""

import os
import subprocess
import sys

import pytest
import torch

from ladder_kernels import normal_sample_kl, use_backend
from tests import oracle
from tests.test_functional import packed, random_incoming


def step_and_gradients(shape, p_batch, layout=torch.contiguous_format):
    torch.manual_seed(0)
    q = packed(shape).contiguous(memory_format=layout).requires_grad_()
    p = packed(shape, batch=p_batch).contiguous(memory_format=layout).requires_grad_()
    incoming = random_incoming(shape, oracle.OUTPUTS)
    with use_backend("cpp"):
        outputs = normal_sample_kl(q, p, seed=7, logvar_max=20.0, vanilla_latent_hw=8, elementwise=True)._asdict()
        return [*outputs.values(), *oracle.gradients(outputs, [q, p], incoming)]


@pytest.mark.parametrize("p_batch", [6, 1], ids=["learned", "batch 1"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(layout, p_batch):
    shape, results = (6, 24, 33, 31), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(step_and_gradients(shape, p_batch, layout))
    torch.set_num_threads(1)
    for values in results[1:]:
        assert all(torch.equal(value, expected) for value, expected in zip(values, results[0], strict=True))


Q, STEP = torch.zeros(2, 4, 3), ("mode", False, True, None, 1.0, None, False)
WRONG = {
    "q": (torch.zeros(2, 3, 3), None, None, STEP, {}, r"q must be .*got \[2, 3, 3\]"),
    "p": (Q, torch.zeros(3, 4, 3), None, STEP, {}, r"p must have shape \[2, 4, 3\], got \[3, 4, 3\]"),
    "draw": (Q, None, None, ("dice", *STEP[1:]), {}, "draw must be noise, seed, latent or mode, got dice"),
    "no noise": (Q, None, None, ("noise", *STEP[1:]), {}, "'noise' needs a source"),
    "noise": (Q, None, Q, ("noise", *STEP[1:]), {}, r"source must have shape \[2, 2, 3\], got \[2, 4, 3\]"),
    "seed": (Q, None, Q, ("seed", *STEP[1:]), {}, "seed must be one int64 element"),
    "window": (Q, None, None, (*STEP[:5], (0, 1, 0, 4), False), {}, r"window .*got \[0, 1, 0, 4\]"),
    "gradient": (Q, None, None, STEP, {"grad_spatial": torch.zeros(2, 4)}, r"kl_spatial must have shape \[2, 3\]"),
}


@pytest.mark.parametrize(("q", "p", "source", "step", "grads", "message"), WRONG.values(), ids=WRONG)
def test_the_ops_refuse_what_does_not_fit(q, p, source, step, grads, message):
    names = [argument.name for argument in torch.ops.ladder_kernels_cpu.backward.default._schema.arguments[10:18]]
    incoming = [grads.get(name) for name in names]
    with pytest.raises(ValueError, match=message):
        torch.ops.ladder_kernels_cpu.backward(q, p, source, *step, *incoming, True, False, False)


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


SUMS = """
import torch
from tests.test_cpp import step_and_gradients
torch.save([t.detach() for t in step_and_gradients((2, 5, 9, 8), 2)], {path!r})
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same_numbers(capability, tmp_path):
    path = str(tmp_path / "values.pt")
    result = python(SUMS.format(path=path), ATEN_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr
    for value, expected in zip(torch.load(path), step_and_gradients((2, 5, 9, 8), 2), strict=True):
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        ("import sys; sys.modules['ladder_kernels._C'] = None", "LADDER_KERNELS_BUILD_CPU=1"),
        ("import torch; torch.__version__ = '1.0.0'", "built for torch"),
    ],
    ids=["not built", "another torch"],
)
def test_an_extension_that_cannot_serve_is_reported_and_replaced(sabotage, reason):
    code = f"""
{sabotage}
import logging, torch, ladder_kernels
from ladder_kernels.backends.select import reason_unavailable
logging.basicConfig(level=logging.INFO)
print(reason_unavailable("cpp"))
ladder_kernels.normal_sample(torch.zeros(1, 2, 3))
ladder_kernels.normal_sample(torch.zeros(1, 2, 3))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert reason in result.stdout
    assert result.stderr.count("backend 'cpp' not used") == 1
