"""Reads compiled kernels: registers, stack, spills, and the instructions and access widths of the main loop."""

import os
import re
import subprocess
from typing import NamedTuple


class KernelCost(NamedTuple):
    """What a compiled kernel costs; the last two are of its main loop, per thread."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    wide_share: float | None
    """Of the global traffic, what moves 128 bits a thread; the rest is sums and scalars."""


def kernel_costs(cubin: str) -> dict[str, KernelCost]:
    """The cost of every kernel in a file of machine code, by its mangled name."""
    usage = dict(re.findall(r"Function (\S+):\s*(.*)", run_tool("cuobjdump", "-res-usage", cubin)))
    sections = re.split(r"^\s*\.section\s+\.text\.", run_tool("nvdisasm", "-c", cubin), flags=re.MULTILINE)[1:]
    named = {section.split(",")[0].strip('"\t '): section for section in sections}
    # Code that several kernels share has a section, but no usage, of its own.
    return {name: _cost(sass, usage[name]) for name, sass in named.items() if name in usage}


def _cost(sass: str, usage: str) -> KernelCost:
    registers, stack, shared = (_number(rf"{name}:(\d+)", usage) for name in ("REG", "STACK", "SHARED"))
    spills = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return KernelCost(registers, stack, spills, shared, *_main_loop(sass))


def run_tool(name: str, *arguments: str, folder: str | None = None) -> str:
    """The output of nvdisasm or cuobjdump, which come with Triton."""
    import triton

    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=True, cwd=folder)
    return result.stdout + result.stderr


def _main_loop(sass: str) -> tuple[int, float | None]:
    """Length and wide share of the stretch that moves the most data of those that a branch leads back over.

    A loop of the epilogue can be longer. Where no loop moves any it is the length of the whole kernel.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    best = (0, 0, 0.0)
    for line in sass.splitlines():
        if match := re.match(r"\s*(\.L_x_\d+):", line):
            labels[match[1]] = len(lines)
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(match[1])
            target = re.search(r"BRA.*?(\.L_x_\d+)", match[1])
            if target and target[1] in labels:
                bits = [_bits(each) for each in lines[labels[target[1]] :]]
                best = max(best, (sum(bits), len(bits), 128 * bits.count(128) / (sum(bits) or 1)))
    return best[1:] if best[0] else (sum(not each.startswith("NOP") for each in lines), None)


def _bits(instruction: str) -> int:
    """Width of LDG.E.128 and the like; plain ones move 32 bits, and what is no access none."""
    name = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")
    if name[0] not in ("LDG", "STG", "LD", "ST"):
        return 0
    widths = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
    return next((bits for suffix, bits in widths.items() if suffix in name), 32)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the output of the disassembler")
    return int(match[1])
