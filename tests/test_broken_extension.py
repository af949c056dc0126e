"""An extension's file that is damaged or no extension is a reason, and another backend serves; nothing crashes."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ladder_kernels.backends import native

WHOLE = Path(importlib.util.find_spec("ladder_kernels._C").origin)


def cut(share: float) -> Callable[[], bytes]:
    return lambda: WHOLE.read_bytes()[: int(share * WHOLE.stat().st_size)]


FILES = {
    "empty": (lambda: b"", "too short"),
    "text": (lambda: b"version https://git-lfs.github.com/spec/v1\n" * 3, "invalid ELF header"),
    "header alone": (lambda: WHOLE.read_bytes()[:64], "cut short"),
    "half a header": (lambda: WHOLE.read_bytes()[:32], "too short"),
    "one hundredth": (cut(0.01), "cut short"),
    "half": (cut(0.5), "cut short"),
    "all but the end": (lambda: WHOLE.read_bytes()[:-1], "cut short"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the messages are those of Linux's loader")
@pytest.mark.parametrize(("content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_loaded_is_a_reason(
    content: Callable[[], bytes], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"broken_{said.replace(' ', '_')}_{len(content())}"
    package.mkdir()
    (package / WHOLE.name).write_bytes(content())
    monkeypatch.syspath_prepend(tmp_path)
    reason = native.reason_not_loaded(f"{package.name}._C", "LADDER_KERNELS_BUILD_CPU")
    assert said in reason
    assert "LADDER_KERNELS_BUILD_CPU=1 pip install" in reason


def test_a_whole_file_is_loaded() -> None:
    assert native.reason_not_loaded("ladder_kernels._C", "LADDER_KERNELS_BUILD_CPU") is None


SERVED = """
import torch
import ladder_kernels
from ladder_kernels.info import collect

print(ladder_kernels.normal_sample(torch.zeros(1, 2, 1), seed=1).shape)
print(collect()["backends"]["cpp"])
"""


def test_where_the_file_is_cut_short_another_backend_serves_and_info_tells_why(tmp_path: Path) -> None:
    shutil.copytree(WHOLE.parent, tmp_path / "ladder_kernels", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "ladder_kernels" / WHOLE.name).write_bytes(cut(0.5)())
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SERVED}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr)
    shape, reason = result.stdout.splitlines()
    assert shape == "torch.Size([1, 1, 1])"
    assert "cut short" in reason
