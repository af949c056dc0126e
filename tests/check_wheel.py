"""`python check_wheel.py WHEEL`: whether an installed wheel is whole and its kernels do a step.

Run by `make dist`, in an environment that has the wheel and torch, away from the sources.
"""

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

import ladder_kernels
from ladder_kernels.backends import select


def check_content(wheel: Path) -> None:
    """The package and its metadata, compiled code where it belongs, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = [name for name in names if name.endswith((".so", ".pyd", ".dylib"))]
    assert compiled == ["ladder_kernels/libladder_kernels_cpu.so"], compiled
    assert "-py3-none-manylinux_" in wheel.name, wheel.name
    others = {name.partition("/")[0] for name in names} - {"ladder_kernels"}
    assert len(others) == 1, others
    assert others.pop().endswith(".dist-info")
    assert any(name.endswith("LICENSE") for name in names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules >= {"ladder_kernels/backends/triton/forward.py", "ladder_kernels/backends/torch/formulas.py"}


def check_info() -> None:
    """It runs as the README tells, and the version is the distribution's."""
    said = subprocess.run(
        [sys.executable, "-m", "ladder_kernels.info"], capture_output=True, text=True, check=True
    ).stdout
    version = importlib.metadata.version("ladder_kernels")
    assert ladder_kernels.__version__ == version
    assert f"ladder_kernels: {version}" in said, said


def gradients(backend: str) -> list[torch.Tensor]:
    """Of a random loss of one step, at q and p."""
    torch.manual_seed(0)
    q, p = (torch.randn(2, 6, 8, 8, requires_grad=True) for _ in range(2))
    with ladder_kernels.use_backend(backend):
        step = ladder_kernels.normal_sample_kl(q, p, seed=1)
    loss = (step.z * torch.randn(step.z.shape)).sum() + (step.kl_samplewise * torch.randn(2)).sum()
    return [step.z, *torch.autograd.grad(loss, [q, p])]


def check_step() -> None:
    """The kernels serve, and have the numbers of the plain formula."""
    serves = select.serving(torch.zeros(1, 2, 3))
    assert serves == "cpp", (serves, select.reason_unavailable("cpp"))
    for found, expected in zip(gradients("cpp"), gradients("torch"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def main() -> None:
    wheel = Path(sys.argv[1])
    assert "site-packages" in ladder_kernels.__file__, ladder_kernels.__file__
    check_content(wheel)
    check_info()
    check_step()
    print(f"{wheel.name}: whole, and cpp does a step with torch {torch.__version__}")


if __name__ == "__main__":
    main()
