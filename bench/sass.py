"""Reads compiled kernels: registers, stack, spills, access widths, and the instructions of the main loop."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

WARP = 32
WAVE = 64


class KernelCost(NamedTuple):
    """What a compiled kernel costs; `instructions` and the access counts are those of its main loop, per thread."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    accesses: dict[int, int]  # bits of a global access -> how many

    @property
    def wide_share(self) -> float:
        """The share of the loop's global traffic that moves 128 bits a thread; the rest is sums and scalars."""
        total = sum(bits * count for bits, count in self.accesses.items())
        return 128 * self.accesses.get(128, 0) / total if total else 0.0


def cuda_cost(cubin: bytes, tools: str, shared: int) -> KernelCost:
    """The cost of one cubin; `tools` is the folder of nvdisasm and cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = _run(os.path.join(tools, "nvdisasm"), "-c", file.name)
        usage = _run(os.path.join(tools, "cuobjdump"), "-res-usage", file.name)
    loop = _main_loop(sass, r"\s*(\.L_x_\d+):", r"\s*/\*[0-9a-f]+\*/\s+(.*?);", r"BRA.*?(\.L_x_\d+)")
    names = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in loop]
    widths: Counter[int] = Counter()
    for name in names:
        if name.startswith(("LDG.", "STG.")):
            widths[_bits(name)] += 1
    return KernelCost(
        registers=_number(r"REG:(\d+)", usage),
        stack=_number(r"STACK:(\d+)", usage),
        spills=sum(name.startswith(("LDL", "STL")) for name in names),
        shared=shared,
        instructions=len(loop),
        accesses=dict(widths),
    )


def amd_cost(assembly: str, shared: int) -> KernelCost:
    """The cost of one AMD kernel from its assembly."""
    loop = _main_loop(assembly, r"(\.LBB\d+_\d+):", r"\t([a-z]\w+.*)", r"s_c?branch\w* (\.LBB\d+_\d+)")
    widths: Counter[int] = Counter()
    for line in loop:
        match = re.match(r"(?:global|buffer)_(?:load|store)_(\w+)", line)
        if match:
            widths[_amd_bits(match.group(1))] += 1
    return KernelCost(
        registers=_number(r"\.vgpr_count:\s+(\d+)", assembly),
        stack=_number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        spills=_number(r"\.vgpr_spill_count:\s+(\d+)", assembly),
        shared=shared,
        instructions=len(loop),
        accesses=dict(widths),
    )


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the output of the disassembler")
    return int(match.group(1))


def _main_loop(text: str, label: str, instruction: str, branch: str) -> list[str]:
    """The instructions of the longest stretch that a branch leads back over."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    loop: list[str] = []
    for line in text.splitlines():
        if match := re.match(label, line):
            labels[match.group(1)] = len(lines)
        elif match := re.match(instruction, line):
            lines.append(match.group(1))
            target = re.search(branch, match.group(1))
            if target and len(lines) - labels.get(target.group(1), len(lines)) > len(loop):
                loop = lines[labels[target.group(1)] :]
    return loop


def _bits(name: str) -> int:
    """Width of LDG.E.128 and the like; plain ones move 32 bits."""
    for suffix, bits in (("128", 128), ("64", 64), ("U16", 16), ("S16", 16), ("U8", 8), ("S8", 8)):
        if suffix in name.split("."):
            return bits
    return 32


def _amd_bits(kind: str) -> int:
    if match := re.match(r"dword(?:x(\d))?", kind):
        return 32 * int(match.group(1) or 1)
    return 16 if "short" in kind or "b16" in kind or "d16" in kind else 8
