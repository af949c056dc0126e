"""The GPU backends on CPU tensors, their kernels launched into nothing: what is left is what a call costs the host."""

import os
import sys
from pathlib import Path
from typing import Any

from bench.audit.fake_gpu import install
from ladder_kernels.backends import select

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "out" / "nothing"
HERE = Path(__file__).parent
HOST_CODE = ("module", "forward", "backward", "plan")


def triton() -> None:
    """From now on `use_backend("triton")` takes CPU tensors. The interpreter must not have been asked for."""
    from ladder_kernels.backends import triton as backend

    install("sm_90")
    _serve_everything(backend)


def cuda() -> None:
    """The same of `use_backend("cuda")`. Raises what building its host code raises."""
    from ladder_kernels.backends import cuda as backend

    backend._functions._module = _build()
    _serve_everything(backend)


def _serve_everything(backend: Any) -> None:
    backend.unavailable = lambda: None
    backend.unsupported = lambda q, p, source: None
    select._find.cache_clear()


def _build() -> Any:
    """csrc/cuda without its kernels; building it takes about a minute, the first time."""
    from torch.utils import cpp_extension  # here: to import it is to be told that there is no GPU

    BUILD.mkdir(parents=True, exist_ok=True)
    # pip puts ninja here, and the environment need not be activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    sources = [ROOT / "csrc" / "cuda" / f"{name}.cpp" for name in HOST_CODE] + [HERE / "launches.cpp"]
    return cpp_extension.load(
        "_CUDA",
        [str(source) for source in sources],
        # As setup.py builds it; ahead of torch's headers come those of this folder.
        extra_cflags=["-O2", "-g0", "-fvisibility=hidden", "-include", str(HERE / "cuda_means_cpu.h")],
        extra_include_paths=[str(HERE)],
        build_directory=str(BUILD),
        with_cuda=False,
    )
