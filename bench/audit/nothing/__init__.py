"""The GPU backends on CPU tensors, their kernels launched into nothing: what is left is what a call costs the host."""

import os
import subprocess
from pathlib import Path
from typing import Any

from bench.audit.fake_gpu import install
from ladder_kernels.backends import native, select

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "out" / "nothing" / "libladder_kernels_cuda.so"
HERE = Path(__file__).parent


def triton() -> None:
    """From now on `use_backend("triton")` takes CPU tensors. The interpreter must not have been asked for."""
    from ladder_kernels.backends import triton as backend

    install("sm_90")
    _serve_everything(backend)


def cuda() -> None:
    """The same of `use_backend("cuda")`. Raises what building its host code raises."""
    from ladder_kernels.backends import cuda as backend

    os.environ["LADDER_KERNELS_CUDA_LIBRARY"] = str(_build())
    native.find.cache_clear()
    backend.stream_of = lambda tensor: 0
    _serve_everything(backend)


def _serve_everything(backend: Any) -> None:
    backend.unavailable = lambda: None
    backend.unsupported = lambda q, p, source: None
    select._find.cache_clear()


def _build() -> Path:
    """csrc/cuda without its kernels, which takes some seconds."""
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    sources = map(str, [*sorted((ROOT / "csrc" / "cuda").glob("*.cpp")), HERE / "launches.cpp"])
    # As setup.py builds it; ahead of the toolkit's headers come those of this folder.
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", f"-I{HERE}"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *sources, "-o", str(LIBRARY)], check=True)
    return LIBRARY
