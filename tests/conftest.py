"""What every test gets: a fixed seed, uninitialised memory full of NaN, and the backends that run on this machine."""

import contextlib
import functools
import os
from collections.abc import Iterator

import pytest
import torch

# Tests are thousands of tiny calls, for which threads only wait for each other; this is for those that start a Python.
os.environ["OMP_NUM_THREADS"] = "1"
# Inductor's code without vectors: to try every instruction set and to compile for them would take it a minute more.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
if not torch.cuda.is_available():
    # Read when a kernel is declared, hence before the package is imported.
    os.environ["TRITON_INTERPRET"] = "1"

from torch._dynamo import trace_rules  # declares kernels of Triton's own

from ladder_kernels import use_backend
from ladder_kernels.backends import native

torch.set_num_threads(1)
if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.interpreter import hasten

    hasten()

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Not "those that load": a backend that should run here and does not must fail its tests, not drop out of them.
BACKENDS = ("torch", "cpp", "triton")
if DEVICE.type == "cuda" and native.find("cuda")[1] is None:
    BACKENDS += ("cuda",)
# What torch finds out once it finds out now, before `_poison` replaces some of it: which functions make tensors on the
# default device, and which are torch's own, the only ones that Dynamo traces. A new process group would have it find
# the latter out again.
with DEVICE:
    torch.zeros(())
_FUNCTIONS_OF_TORCH = trace_rules.get_torch_obj_rule_map()
trace_rules.get_torch_obj_rule_map = functools.cache(lambda: _FUNCTIONS_OF_TORCH)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20260822)


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory reads as NaN, so that an element nobody wrote is seen."""

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() and tensor.numel():
                with torch.no_grad():  # it may be a parameter, of a program that is loaded
                    tensor.fill_(float("nan"))
            return tensor

        return allocate_poisoned

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(autouse=True)
def _upstream_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile switches the validation of distributions off for the whole process; upstream's default is on."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before, and nothing left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def device() -> torch.device:
    return DEVICE


def interpreted(backend: str) -> bool:
    """Whether the backend's kernels run in Triton's interpreter."""
    return backend == "triton" and not torch.cuda.is_available()


@contextlib.contextmanager
def serving(backend: str) -> Iterator[None]:
    """A backend serves, with all tensors on the GPU if there is one."""
    on_gpu = DEVICE.type == "cuda" and backend != "cpp"
    with use_backend(backend), DEVICE if on_gpu else contextlib.nullcontext():
        yield


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on one backend after the other."""
    with serving(request.param):
        yield request.param
