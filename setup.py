"""Build script: metadata lives in pyproject.toml; the default build compiles nothing and does not import torch.

LADDER_KERNELS_BUILD_CPU=1 compiles the native CPU backend, ladder_kernels._C.
"""

import os
import shutil
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
        extra_compile_args=["-O3", "-g0", "-fopenmp-simd", "-fvisibility=hidden", *floats, *threads],
        extra_link_args=threads,
    )


extensions = [cpu_extension()] if opted_in("CPU") else []
commands = {"build_ext": torch_extensions("CPU").BuildExtension} if extensions else {}
setup(ext_modules=extensions, cmdclass=commands)
