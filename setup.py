"""Build script; metadata lives in pyproject.toml. It needs setuptools alone: neither torch nor Python's headers.

The kernels of csrc become plain libraries inside the package, which serve every Python and every torch:

- `libladder_kernels_cpu`, where there is a C++ compiler. LADDER_KERNELS_BUILD_CPU=1 makes it an error that there is
  none; LADDER_KERNELS_BUILD_CPU=0 leaves the library out.
- `libladder_kernels_cuda`, with LADDER_KERNELS_BUILD_CUDA=1 and nvcc, for the architectures of TORCH_CUDA_ARCH_LIST.
  No GPU need be there.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0"


def say(message: str) -> None:
    print(f"ladder_kernels: {message}", file=sys.stderr)


def fail(device: str, missing: str, remedy: str) -> NoReturn:
    sys.exit(f"LADDER_KERNELS_BUILD_{device}=1, but {missing}. {remedy}")


class Library(Extension):
    """A plain library inside the package: `compiler` makes objects of the sources, and of these the library."""

    def __init__(
        self, device: str, compiler: list[str], compile_flags: list[str], link_flags: list[str], optional: bool = False
    ) -> None:
        files = [*Path("csrc").glob("*.h"), *Path("csrc", device).rglob("*")]
        sources = sorted(str(path) for path in files if path.suffix in (".cpp", ".cu"))
        headers = sorted(str(path) for path in files if path.suffix in (".h", ".cuh"))
        super().__init__(f"ladder_kernels.libladder_kernels_{device}", sources, depends=headers, optional=optional)
        self.compiler, self.compile_flags, self.link_flags = compiler, compile_flags, link_flags


def cpu_library() -> Library | None:
    given = os.environ.get("LADDER_KERNELS_BUILD_CPU", "")
    if given == "0":
        return None
    compiler, missing = cpu_compiler(), None
    if sys.platform == "win32":
        missing, remedy = "the sources need GCC or Clang", "On Windows, build under WSL."
    elif compiler is None:
        missing, remedy = "there is no C++ compiler", "Install one (apt install g++) or name it in CXX."
    if missing is not None and given:
        fail("CPU", missing, remedy)
    if missing is not None:
        say(f"{missing}: the CPU kernels are left out, and plain PyTorch serves in their place. {remedy}")
        return None
    # torch's threads are OpenMP's on Linux, and so are ours, in the same pool.
    threads = ["-fopenmp"] if sys.platform == "linux" else []
    # Neither errno nor floating-point traps are used, and either would forbid vectorisation. NaN and infinity mean
    # what they do in IEEE 754. Products and sums may fuse.
    floats = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    selects = ["-fno-thread-jumps"]  # else GCC turns selects into branches, which vectorise badly
    hidden = ["-fPIC", "-fvisibility=hidden", "-fno-exceptions"]
    flags = ["-std=c++17", "-O3", "-g0", "-fopenmp-simd", *selects, *floats, *hidden, *threads, *flags_of("CXXFLAGS")]
    return Library("cpu", compiler, flags, ["-shared", *threads, *flags_of("LDFLAGS")], optional=not given)


def cpu_compiler() -> list[str] | None:
    """CXX, or else what there is."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])), None)


def flags_of(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def cuda_library() -> Library | None:
    if os.environ.get("LADDER_KERNELS_BUILD_CUDA", "0") in ("", "0"):
        return None
    compiler, home = cuda_compiler()
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    includes = [f"-I{folder}" for folder in missing_headers(home)]
    return Library("cuda", [compiler], [*flags, *architectures(), *includes], ["-shared", *architectures()])


def architectures() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX"."""
    flags = []
    for name in re.split(r"[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES):
        number = name.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if name.endswith("+PTX") else [])
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def cuda_compiler() -> tuple[str, Path]:
    """nvcc, and the root of its toolkit, which it knows even where the one on PATH is a wrapper script."""
    remedy = "Install the CUDA toolkit, and put nvcc on PATH or its root into CUDA_HOME."
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    compiler = shutil.which("nvcc", path=os.path.join(given, "bin") if given else None)
    if compiler is None:
        missing = f"there is no nvcc in {given}/bin" if given else "there is no nvcc on PATH and no CUDA_HOME"
        fail("CUDA", missing, remedy)
    said = subprocess.run([compiler, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.MULTILINE)
    if top is None:
        fail("CUDA", f"{compiler} does not say where its toolkit is", remedy)
    return compiler, Path(top.group(1)).resolve()


def missing_headers(home: Path) -> list[str]:
    """Folders of nvidia's wheels with the headers that a compiler-only toolkit lacks."""
    folders = [home / "include"]
    for header in ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "nv/target"):
        if any((folder / header).exists() for folder in folders):
            continue
        wheels = [Path(entry) / "nvidia" for entry in sys.path]
        found = [path for wheel in wheels for path in sorted(wheel.glob("*/include")) if (path / header).exists()]
        if not found:
            remedy = "Install the toolkit's headers, or the wheel nvidia-cuda-runtime and build without isolation."
            fail("CUDA", f"neither {folders[0]} nor nvidia's wheels have {header}", remedy)
        folders.append(found[0])
    return [str(folder) for folder in folders[1:]]


class BuildLibraries(build_ext):
    """Compiles what has changed, the files of a library at the same time."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', os.sep)}.so"

    def build_extension(self, ext: Any) -> None:
        folder = Path(self.build_temp, ext.name)
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{source.replace(os.sep, '_')}.o") for source in ext.sources]
        commands = [
            [*ext.compiler, *ext.compile_flags, "-c", source, "-o", made]
            for source, made in zip(ext.sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda command: self.make(command, [command[-3], *ext.depends]), commands))
        library = self.get_ext_fullpath(ext.name)
        Path(library).parent.mkdir(parents=True, exist_ok=True)
        self.make([*ext.compiler, *objects, *ext.link_flags, "-o", library], objects)
        say(f"built {library}")

    def make(self, command: Sequence[str], inputs: Sequence[str]) -> None:
        """Runs the command, which ends with its output, unless it has made that before of these inputs."""
        output = Path(command[-1])
        stamp = Path(self.build_temp, f"{output.name}.command")
        made_so = output.exists() and stamp.exists() and stamp.read_text() == shlex.join(command)
        if made_so and not self.force and all(Path(path).stat().st_mtime <= stamp.stat().st_mtime for path in inputs):
            return
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{shlex.join(command)}\n{done.stderr}")
        stamp.write_text(shlex.join(command))


class PlatformWheel(bdist_wheel):
    """With a plain library, a wheel is for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        return "py3", "none", platform


libraries = [library for library in (cuda_library(), cpu_library()) if library is not None]
setup(
    ext_modules=libraries,
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
    options={"build": {"build_base": "out/build"}},
)
