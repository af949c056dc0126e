"""Selection of the backend: forced, automatic, and what the user is told."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import ladder_kernels
from ladder_kernels.backends import select


@pytest.fixture
def broken(monkeypatch):
    """The cpp backend as one that cannot run."""
    original = select._find
    monkeypatch.setattr(select, "_find", lambda name: (None, "it is broken") if name == "cpp" else original(name))
    select._say_once.cache_clear()


@pytest.fixture
def picky(monkeypatch):
    """The cpp backend as one that takes no tensor of this call."""
    module = SimpleNamespace(NAME="cpp", unsupported=lambda q, p, source: "tensors are too blue")
    original = select._find
    monkeypatch.setattr(select, "_find", lambda name: (module, None) if name == "cpp" else original(name))
    select._say_once.cache_clear()


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


def test_use_backend_nests_and_restores():
    before = select._forced
    with ladder_kernels.use_backend("torch"):
        assert select._forced == "torch"
        with pytest.raises(RuntimeError), ladder_kernels.use_backend("torch"):
            raise RuntimeError
        assert select._forced == "torch"
    assert select._forced == before


def python(code_or_module, *arguments, **environment):
    command = [sys.executable, *code_or_module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_the_environment_forces_a_backend_but_never_breaks_the_import():
    code = "import torch, ladder_kernels; print('imported'); ladder_kernels.normal_sample(torch.zeros(1, 2, 3))"
    good = python(["-c", code], LADDER_KERNELS_BACKEND="torch")
    assert good.returncode == 0
    bad = python(["-c", code], LADDER_KERNELS_BACKEND="numpy")
    assert bad.stdout == "imported\n"
    assert "unknown backend 'numpy'" in bad.stderr


@pytest.mark.parametrize("missing", ["triton", "careamics", "torchvision"])
def test_the_import_needs_nothing_optional(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import ladder_kernels.info; ladder_kernels.info.collect()"
    result = python(["-c", code])
    assert result.returncode == 0, result.stderr


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
