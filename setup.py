"""Build script: metadata lives in pyproject.toml; the default build compiles nothing and does not import torch.

LADDER_KERNELS_BUILD_CPU=1 compiles the native CPU backend, ladder_kernels._C; LADDER_KERNELS_BUILD_CUDA=1 the CUDA
backend, ladder_kernels._CUDA, for the architectures of TORCH_CUDA_ARCH_LIST. Neither needs a GPU to be there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

INSTALL = "pip install --no-build-isolation -e ."


def opted_in(device: str) -> bool:
    return os.environ.get(f"LADDER_KERNELS_BUILD_{device}", "0") not in ("", "0")


def fail(device: str, missing: str, remedy: str) -> None:
    sys.exit(f"LADDER_KERNELS_BUILD_{device}=1, but {missing}. {remedy}")


def torch_extensions(device: str) -> Any:
    """torch.utils.cpp_extension, from the torch that the extension is going to run with."""
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        command = f"LADDER_KERNELS_BUILD_{device}=1 {INSTALL}"
        fail(device, f"torch cannot be imported here ({error})", f"Install torch, then run: {command}")
    return cpp_extension


def cpu_extension() -> Any:
    cpp_extension = torch_extensions("CPU")
    if sys.platform == "win32":
        fail("CPU", "the sources need GCC or Clang", "On Windows, build under WSL.")
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        fail("CPU", f"there is no C++ compiler {compiler!r}", "Install one (apt install g++) or name it in CXX.")
    # torch's threads are OpenMP's on Linux; its macOS builds have a runtime of their own.
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    # Neither errno nor floating-point traps are used, and either would forbid vectorisation. NaN and infinity mean
    # what they do in IEEE 754. Products and sums may fuse.
    floats = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    return cpp_extension.CppExtension(
        "ladder_kernels._C",
        sorted(map(str, Path("csrc/cpu").rglob("*.cpp"))),
        depends=sorted(map(str, Path("csrc").rglob("*.h"))),
        extra_compile_args=[
            "-O3",
            "-g0",
            "-fno-thread-jumps",  # else GCC turns selects into branches, which vectorise badly
            "-fopenmp-simd",
            "-fvisibility=hidden",
            *floats,
            *threads,
        ],
        extra_link_args=threads,
    )


def cuda_home() -> Path:
    """The root of the CUDA toolkit; nvcc knows it even where the one on PATH is a wrapper script."""
    remedy = "Install the CUDA toolkit that torch was built with, and put nvcc on PATH or its root into CUDA_HOME."
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    compiler = shutil.which("nvcc", path=os.path.join(given, "bin") if given else None)
    if compiler is None:
        fail(
            "CUDA", f"there is no nvcc in {given}/bin" if given else "there is no nvcc on PATH and no CUDA_HOME", remedy
        )
    said = subprocess.run([compiler, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.MULTILINE)
    if top is None:
        fail("CUDA", f"{compiler} does not say where its toolkit is", remedy)
    return Path(top.group(1)).resolve()


def missing_headers(home: Path) -> list[str]:
    """Folders of torch's nvidia wheels with the headers that a compiler-only toolkit lacks."""
    folders = [home / "include"]
    for header in ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "nv/target"):
        if any((folder / header).exists() for folder in folders):
            continue
        wheels = [Path(entry) / "nvidia" for entry in sys.path]
        found = [path for wheel in wheels for path in sorted(wheel.glob("*/include")) if (path / header).exists()]
        if not found:
            remedy = (
                f"Install the toolkit's headers, or: pip install nvidia-cuda-runtime (of torch's CUDA), then {INSTALL}"
            )
            fail("CUDA", f"neither {folders[0]} nor torch's nvidia wheels have {header}", remedy)
        folders.append(found[0])
    return [str(folder) for folder in folders[1:]]


def cuda_extension() -> Any:
    home = cuda_home()
    # Before torch.utils.cpp_extension is imported, which guesses otherwise.
    os.environ["CUDA_HOME"] = str(home)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0")
    cpp_extension = torch_extensions("CUDA")
    import torch

    if torch.version.cuda is None:
        remedy = "Install one from https://pytorch.org/get-started."
        fail("CUDA", f"torch {torch.__version__} is built without CUDA", remedy)
    return cpp_extension.CUDAExtension(
        "ladder_kernels._CUDA",
        sorted(str(path) for path in Path("csrc/cuda").rglob("*") if path.suffix in (".cpp", ".cu")),
        depends=sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")),
        include_dirs=missing_headers(home),
        extra_compile_args={
            "cxx": ["-O2", "-g0", "-fvisibility=hidden"],
            "nvcc": ["-O3", "-Xcompiler=-fvisibility=hidden"],
        },
    )


# CUDA first: it sets what torch.utils.cpp_extension reads when it is imported.
extensions = [build() for name, build in (("CUDA", cuda_extension), ("CPU", cpu_extension)) if opted_in(name)]
commands = {"build_ext": torch_extensions("CPU").BuildExtension} if extensions else {}
setup(ext_modules=extensions, cmdclass=commands)
