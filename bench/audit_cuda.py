"""`python -m bench.audit_cuda`: what the kernels of the built CUDA extension cost, read from their machine code.

For every kernel and architecture in ladder_kernels._CUDA: registers, stack, spills, shared memory, and of those that
move vectors the width of the global accesses and the instructions per latent in the main loop. `--check` compares
with the stored table and fails where a kernel got worse. It needs no GPU, but nvdisasm and cuobjdump.
"""

import argparse
import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import sass
from bench.audit import ALLOWED_GROWTH, WIDE_SHARE, print_table

TABLE = Path(__file__).parent / "results" / "audit_cuda.csv"
KEY = ("target", "kernel", "access", "kl", "stable", "noise", "p")

# Of the default step: Monte-Carlo KL, stable variance, Philox noise. Elements of a thread in one turn of the loop.
DEFAULT = {"target": "sm_90", "kl": "mc", "stable": "1", "noise": "philox", "p": "1"}
BUDGETS = {"forward": 85, "backward": 120}
WIDTH = 8

ACCESSES = {
    "VectorsIf": "float32 vectors",
    "VectorsI6__half": "float16 vectors",
    "VectorsI13__nv_bfloat16": "bfloat16 vectors",
    "SinglesIf": "singles in float32",
    "SinglesId": "singles in float64",
}


def tool(name: str) -> str:
    """The program beside nvcc, on PATH, or in Triton's package."""
    folders = [os.path.join(os.environ[home], "bin") for home in ("CUDA_HOME", "CUDA_PATH") if home in os.environ]
    folders.append(os.environ.get("PATH", ""))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(os.path.join(os.path.dirname(triton.origin), "backends", "nvidia", "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        sys.exit(f"{name} is neither in CUDA_HOME/bin, nor on PATH, nor in Triton: pip install triton")
    return found


def run(*command: str, folder: str | None = None) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def audit(extension: str) -> list[dict[str, Any]]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", os.path.abspath(extension), folder=folder)
        rows = [row for cubin in sorted(Path(folder).glob("*.cubin")) for row in _audit_cubin(cubin)]
    return sorted(rows, key=_key)


def _audit_cubin(cubin: Path) -> Iterator[dict[str, Any]]:
    target = re.findall(r"sm_\d+", cubin.name)[-1]
    usage = dict(re.findall(r"Function (\S+):\n\s*(.*)", run(tool("cuobjdump"), "-res-usage", str(cubin))))
    sections = re.split(r"^\s*\.section\s+\.text\.", run(tool("nvdisasm"), "-c", str(cubin)), flags=re.MULTILINE)
    for section in sections[1:]:
        symbol = section.split(",")[0].strip('"\t ')
        yield {"target": target, **_variant(symbol), **_cost(section, usage[symbol], vectors="Vectors" in symbol)}


def _variant(symbol: str) -> dict[str, str]:
    """What a mangled name says."""
    kernel = re.search(r"\d(backward_shared|forward|backward|sample|sums)_kernel", symbol)
    access = re.search("|".join(map(re.escape, ACCESSES)), symbol)
    compute = "singles in float64" if symbol.endswith("IdEEvNS0_7ForwardENS0_4SumsE") else "singles in float32"
    path = re.search(r"HotPathILNS_2KLE(\d)ELb(\d)ELb(\d)ELb(\d)E", symbol)
    if kernel is None:
        raise ValueError(f"unknown kernel {symbol}")
    kl, stable, philox, p = path.groups() if path else ("", "", "", "")
    return {
        "kernel": kernel.group(1),
        "access": ACCESSES[access.group()] if access else compute,
        "kl": {"1": "mc", "2": "analytic"}.get(kl, ""),
        "stable": stable,
        "noise": {"0": "given", "1": "philox"}.get(philox, ""),
        "p": p,
    }


def _cost(section: str, usage: str, vectors: bool) -> dict[str, Any]:
    loop = sass._main_loop(section, r"\s*(\.L_x_\d+):", r"\s*/\*[0-9a-f]+\*/\s+(.*?);", r"BRA.*?(\.L_x_\d+)")
    names = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in loop]
    widths = Counter(sass._bits(name) for name in names if name.startswith(("LDG.", "STG.")))
    cost = sass.KernelCost(
        registers=sass._number(r"REG:(\d+)", usage),
        stack=sass._number(r"STACK:(\d+)", usage),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", section)),
        shared=sass._number(r"SHARED:(\d+)", usage),
        instructions=len(loop),
        accesses=dict(widths),
    )
    return {
        "registers": cost.registers,
        "stack": cost.stack,
        "spills": cost.spills,
        "shared": cost.shared,
        # One loop that looks every option up says nothing about the elements that go through it.
        "wide_access_share": round(cost.wide_share, 3) if vectors else "",
        "instructions_per_latent": round(cost.instructions / WIDTH, 1) if vectors else "",
    }


def faults(rows: list[dict[str, Any]], stored: list[dict[str, str]]) -> list[str]:
    """What is wrong with these kernels, and where they got worse than the stored ones."""
    before = {_key(row): row for row in stored}
    found = []
    for row in rows:
        name = " ".join(filter(None, _key(row)))
        if row["stack"] or row["spills"]:
            found.append(f"{name}: {row['stack']} bytes of stack, {row['spills']} spills")
        if row["wide_access_share"] == "":
            continue
        if row["wide_access_share"] < WIDE_SHARE:
            found.append(f"{name}: only {row['wide_access_share']} of the traffic in 128-bit accesses")
        count, budget = row["instructions_per_latent"], BUDGETS.get(row["kernel"])
        if budget is not None and count > budget and all(row[field] == value for field, value in DEFAULT.items()):
            found.append(f"{name}: {count} instructions per latent, the budget is {budget}")
        old = before.get(_key(row))
        if old is None:
            found.append(f"{name}: not in the stored table; run `python -m bench.audit_cuda`")
        elif count > ALLOWED_GROWTH * float(old["instructions_per_latent"]):
            found.append(f"{name}: instructions per latent {old['instructions_per_latent']} -> {count}")
    return found


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[field] for field in KEY)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit_cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored table instead of writing it")
    check = parser.parse_args().check
    spec = importlib.util.find_spec("ladder_kernels._CUDA")
    if spec is None or spec.origin is None:
        sys.exit("not built; run: LADDER_KERNELS_BUILD_CUDA=1 pip install --no-build-isolation -e .")
    rows = audit(spec.origin)
    print_table(rows)
    if check:
        with TABLE.open(newline="") as file:
            found = faults(rows, list(csv.DictReader(file)))
        print("\n".join(found) or f"{len(rows)} kernels: no stack, no spills, wide accesses, no growth")
        return int(bool(found))
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
