"""A library that is not there is a reason and one that cannot serve a warning; either way another backend serves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ladder_kernels
from ladder_kernels.backends import native

WHOLE = Path(ladder_kernels.__file__).with_name("libladder_kernels_cpu.so")


def cut(share: float) -> Callable[[], bytes]:
    return lambda: WHOLE.read_bytes()[: int(share * WHOLE.stat().st_size)]


def of_another_version() -> bytes:
    content, version = WHOLE.read_bytes(), ladder_kernels.__version__.encode() + b"\0"
    assert content.count(version) == 1
    return content.replace(version, b"9" + version[1:])


FILES = {
    "empty": (lambda: b"", "too short"),
    "text": (lambda: b"version https://git-lfs.github.com/spec/v1\n" * 3, "invalid ELF header"),
    "header alone": (lambda: WHOLE.read_bytes()[:64], "cut short"),
    "half a header": (lambda: WHOLE.read_bytes()[:32], "too short"),
    "one hundredth": (cut(0.01), "cut short"),
    "half": (cut(0.5), "cut short"),
    "all but the end": (lambda: WHOLE.read_bytes()[:-1], "cut short"),
    "another version": (of_another_version, f"of version 9{ladder_kernels.__version__[1:]}, not "),
    "another library": ((Path(torch.__file__).parent / "lib" / "libc10.so").read_bytes, "undefined symbol: ladder_"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the messages are those of Linux's loader")
@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_serve_is_an_error_with_the_commands_that_help(
    content: Callable[[], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content())
    monkeypatch.setenv("LADDER_KERNELS_CPU_LIBRARY", str(path))
    with pytest.raises(ImportError) as raised:
        native.find.__wrapped__("cpu")
    reason = str(raised.value)
    assert said in reason
    assert str(path) in reason
    assert "pip install --force-reinstall --no-deps a wheel of ladder_kernels" in reason
    assert reason.endswith("LADDER_KERNELS_BUILD_CPU=1 pip install .")


def test_a_named_file_that_is_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_KERNELS_CPU_LIBRARY", "/nowhere/library.so")
    library, reason = native.find.__wrapped__("cpu")
    assert library is None
    assert "not built, there is no /nowhere/library.so" in reason


def test_a_named_file_that_is_whole_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copy(WHOLE, tmp_path / "library.so")
    monkeypatch.setenv("LADDER_KERNELS_CPU_LIBRARY", str(path))
    library, reason = native.find.__wrapped__("cpu")
    assert reason is None
    assert library._name == str(path)


SERVED = """
import logging
import torch
import ladder_kernels
from ladder_kernels.info import collect

logging.basicConfig(level=logging.INFO)
print(ladder_kernels.normal_sample(torch.zeros(1, 2, 1), seed=1).shape)
print(ladder_kernels.normal_sample(torch.zeros(1, 2, 1), seed=1).shape)
print(collect()["backends"]["cpp"])
"""


@pytest.mark.parametrize(
    ("content", "said", "warnings"),
    [(None, "not built", 0), (cut(0.5), "cut short", 1), (of_another_version, "of version 9", 1)],
    ids=["none", "half", "another version"],
)
def test_without_a_library_that_serves_another_backend_does_and_says_why_once(
    content: Callable[[], bytes] | None, said: str, warnings: int, tmp_path: Path
) -> None:
    shutil.copytree(WHOLE.parent, tmp_path / "ladder_kernels", ignore=shutil.ignore_patterns("*.so"))
    if content is not None:
        (tmp_path / "ladder_kernels" / WHOLE.name).write_bytes(content())
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SERVED}"]
    environment = {name: value for name, value in os.environ.items() if name != "LADDER_KERNELS_CPU_LIBRARY"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr)
    *shapes, reason = result.stdout.splitlines()
    assert shapes == ["torch.Size([1, 1, 1])"] * 2
    assert said in reason
    assert result.stderr.count("backend 'cpp' not used") == 1
    assert result.stderr.count("the backend 'cpp' of ladder_kernels is there but broken") == warnings
