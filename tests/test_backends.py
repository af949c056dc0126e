"""Selection of the backend: forced, automatic, and what the user is told."""

import functools
import json
import logging
import os
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch

import ladder_kernels
from ladder_kernels.backends import select
from ladder_kernels.noise import philox_normal


def pretend(monkeypatch, find):
    """Let `find` tell what backends there are, and nothing be known or said of them yet."""
    monkeypatch.setattr(select, "_find", find)
    for cached in ("_available", "_say_not_used"):
        monkeypatch.setattr(select, cached, functools.cache(getattr(select, cached).__wrapped__))


@pytest.fixture
def broken(monkeypatch):
    """The cpp backend as one that cannot run."""
    original = select._find
    pretend(monkeypatch, lambda name: (None, "it is broken") if name == "cpp" else original(name))


@pytest.fixture
def picky(monkeypatch):
    """The cpp backend as one that takes no tensor of this call."""
    module = SimpleNamespace(NAME="cpp", unsupported=lambda q, p: "tensors are too blue")
    original = select._find
    pretend(monkeypatch, lambda name: (module, None) if name == "cpp" else original(name))


def call():
    return ladder_kernels.normal_sample(torch.zeros(1, 2, 3))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"numpy.*torch, cpp, triton, cuda"), ladder_kernels.use_backend("numpy"):
        pass


@pytest.mark.usefixtures("broken")
def test_a_forced_backend_that_cannot_run_raises_with_the_reason():
    with pytest.raises(select.BackendUnavailableError, match=r"cpp.*it is broken"), ladder_kernels.use_backend("cpp"):
        pass


@pytest.mark.usefixtures("picky")
def test_a_forced_backend_that_cannot_take_the_tensors_raises_with_the_reason():
    with (
        ladder_kernels.use_backend("cpp"),
        pytest.raises(select.BackendUnavailableError, match=r"cpp.*too blue"),
    ):
        call()


@pytest.mark.parametrize("reason", ["broken", "picky"])
def test_the_automatic_choice_falls_back_and_says_so_once(reason, request, caplog):
    request.getfixturevalue(reason)
    with caplog.at_level(logging.INFO, "ladder_kernels"):
        call()
        call()
    assert len(caplog.records) == 1
    assert "broken" in caplog.text or "too blue" in caplog.text


@pytest.mark.parametrize("asked", ["eager", "compiled", "info"])
def test_what_is_there_but_broken_is_warned_of_once(asked, recwarn, monkeypatch):
    def unavailable():
        raise OSError("built for another version; to rebuild it, run: pip install")

    monkeypatch.setitem(sys.modules, "ladder_kernels.backends.cpp", SimpleNamespace(unavailable=unavailable))
    pretend(monkeypatch, functools.cache(select._find.__wrapped__))
    ask = {
        "eager": lambda: served(),
        "compiled": lambda: select.default("cpu"),
        "info": lambda: select.reason_unavailable("cpp"),
    }[asked]
    ask()
    ask()
    assert served() == "torch"
    (warned,) = recwarn.list
    said = str(warned.message)
    assert said.startswith("the backend 'cpp' of ladder_kernels is there but broken")
    assert said.endswith("to rebuild it, run: pip install")
    with pytest.raises(select.BackendUnavailableError, match="another version"), ladder_kernels.use_backend("cpp"):
        pass


def test_what_was_never_built_is_no_warning(recwarn, monkeypatch):
    stand_in = SimpleNamespace(unavailable=lambda: "not built")
    monkeypatch.setitem(sys.modules, "ladder_kernels.backends.cpp", stand_in)
    pretend(monkeypatch, functools.cache(select._find.__wrapped__))
    assert served() == "torch"
    assert not recwarn.list


def served() -> str:
    q = torch.zeros(1, 2, 3)
    return select.serving(q)


def test_use_backend_nests_and_restores():
    before = served()
    with ladder_kernels.use_backend("torch"):
        assert served() == "torch"
        with ladder_kernels.use_backend("triton"):
            assert served() == "triton"
        with pytest.raises(RuntimeError), ladder_kernels.use_backend("triton"):
            raise RuntimeError
        assert served() == "torch"
    assert served() == before


def test_devices_without_kernels_are_served_by_torch():
    assert select.default("mps") == "torch"


def test_use_backend_holds_for_its_own_thread_alone():
    before, seen = served(), {}
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with ladder_kernels.use_backend("torch"):
            entered.set()
            leave.wait()
            seen["inside"] = served()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with ladder_kernels.use_backend("triton"):
        leave.set()
        thread.join()  # it leaves its block while this one is open
        seen["here"] = served()
    assert seen == {"inside": "torch", "here": "triton"}
    assert served() == before


@pytest.mark.parametrize("name", ["numpy", "cuda"])
def test_a_name_that_cannot_serve_raises_without_a_with(name):
    with pytest.raises((ValueError, select.BackendUnavailableError), match=name):
        ladder_kernels.use_backend(name)


@pytest.mark.parametrize("name", select.NAMES)
def test_noise_is_philox_by_default_where_a_kernel_makes_it(monkeypatch, name):
    """Of a backend that runs here in another's place: what is drawn depends on which one serves."""
    stand_in = ModuleType(name)
    vars(stand_in).update(vars(select.load("torch")), NAME=name)
    pretend(monkeypatch, lambda _: (stand_in, None))
    q = torch.zeros(1, 2, 8)
    torch.manual_seed(0)
    z = ladder_kernels.normal_sample(q, variance="exp")
    torch.manual_seed(0)
    if name in ("triton", "cuda"):
        expected = philox_normal(torch.randint(2**63 - 1, ()), 8, torch.float32).view(1, 1, 8)
    else:
        expected = torch.randn(1, 1, 8)
    torch.testing.assert_close(z, expected)


def python(code_or_module, *arguments, **environment):
    command = [sys.executable, *code_or_module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_the_environment_forces_a_backend_but_never_breaks_the_import():
    code = "import torch, ladder_kernels; print('imported'); ladder_kernels.normal_sample(torch.zeros(1, 2, 3))"
    good = python(["-c", code], LADDER_KERNELS_BACKEND="torch")
    assert good.returncode == 0
    bad = python(["-c", code], LADDER_KERNELS_BACKEND="numpy")
    assert bad.stdout == "imported\n"
    assert "LADDER_KERNELS_BACKEND='numpy' names an unknown backend; there are torch, cpp" in bad.stderr
    empty = python(["-c", code], LADDER_KERNELS_BACKEND="")
    assert empty.returncode == 0
    unable = python(["-c", code], LADDER_KERNELS_BACKEND="cuda")
    assert "LADDER_KERNELS_BACKEND='cuda' cannot run here" in unable.stderr


def test_the_import_needs_nothing_optional():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['triton', 'careamics', 'torchvision']); import ladder_kernels.info"
    )
    result = python(["-c", f"{code}; ladder_kernels.info.collect()"])
    assert result.returncode == 0, result.stderr


BROKEN_TRITON = """
import importlib.abc, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise OSError("libcuda.so.1: cannot open shared object file")

import torch  # which may look for Triton itself
for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
    del sys.modules[name]
sys.meta_path.insert(0, Broken())
import ladder_kernels
from ladder_kernels.backends.select import reason_unavailable
print(reason_unavailable("triton"))
ladder_kernels.normal_sample(torch.zeros(1, 2, 3))
from ladder_kernels import info
from ladder_kernels.variance import VarianceMap
info.collect()
"""


def test_whatever_a_broken_triton_raises_is_a_reason():
    result = python(["-c", BROKEN_TRITON])
    assert result.returncode == 0, result.stderr
    assert result.stdout == "OSError: libcuda.so.1: cannot open shared object file\n"


def test_the_import_is_light():
    """Neither the compiler nor Triton: they take seconds."""
    code = "import torch, sys; before = set(sys.modules); import ladder_kernels; print(*(set(sys.modules) - before))"
    added = python(["-c", code]).stdout.split()
    heavy = ("triton", "torch._dynamo", "torch._inductor", "sympy", "careamics", "torch.testing", "scipy")
    assert not [name for name in added if name.startswith(heavy)]


def test_info_tells_every_backend_and_the_environment():
    report = json.loads(python(["-m", "ladder_kernels.info"], "--json", LADDER_KERNELS_BACKEND="torch").stdout)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["ladder_kernels"] == ladder_kernels.__version__
    assert list(report["backends"]) == list(select.NAMES)
    assert report["backends"]["torch"] == "usable"
    assert report["environment"]["LADDER_KERNELS_BACKEND"] == "torch"
    text = python(["-m", "ladder_kernels.info"]).stdout
    assert "torch: usable" in text
    assert "cpu" in text
