"""Reads compiled kernels: registers, stack, spills, access widths, and the instructions of the main loop."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

Accesses = Callable[[list[str]], dict[int, int]]
"""Instructions -> bits of a global access -> how many."""


class KernelCost(NamedTuple):
    """What a compiled kernel costs; `instructions` and the accesses are those of its main loop, per thread."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    accesses: dict[int, int]  # bits of a global access -> how many

    @property
    def wide_share(self) -> float:
        """The share of the loop's global traffic that moves 128 bits a thread; the rest is sums and scalars."""
        total = _traffic(self.accesses)
        return 128 * self.accesses.get(128, 0) / total if total else 0.0


def nvidia_costs(cubin: str) -> dict[str, KernelCost]:
    """The cost of every kernel in a file of machine code, by its mangled name."""
    usage = dict(re.findall(r"Function (\S+):\s*(.*)", run_tool("cuobjdump", "-res-usage", cubin)))
    # Code that several kernels share has a section, but no usage, of its own.
    return {name: _nvidia_cost(sass, usage[name]) for name, sass in _sections(cubin) if name in usage}


def amd_cost(assembly: str, shared: int) -> KernelCost:
    """The cost of one AMD kernel from its assembly."""
    label, instruction, branch = r"(\.LBB\d+_\d+):", r"\t([a-z]\w+.*)", r"s_c?branch\w* (\.LBB\d+_\d+)"
    return _cost(
        _stretches(assembly, label, instruction, branch),
        _amd_accesses,
        registers=_number(r"\.vgpr_count:\s+(\d+)", assembly),
        stack=_number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        spills=_number(r"\.vgpr_spill_count:\s+(\d+)", assembly),
        shared=shared,
    )


def run_tool(name: str, *arguments: str, folder: str | None = None) -> str:
    """The output of nvdisasm or cuobjdump, which come with Triton."""
    import triton

    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=True, cwd=folder)
    return result.stdout + result.stderr


def _sections(cubin: str) -> Iterator[tuple[str, str]]:
    """Name and disassembly of every section of code."""
    for section in re.split(r"^\s*\.section\s+\.text\.", run_tool("nvdisasm", "-c", cubin), flags=re.MULTILINE)[1:]:
        yield section.split(",")[0].strip('"\t '), section


def _nvidia_cost(sass: str, usage: str) -> KernelCost:
    label, instruction, branch = r"\s*(\.L_x_\d+):", r"\s*/\*[0-9a-f]+\*/\s+(.*?);", r"BRA.*?(\.L_x_\d+)"
    return _cost(
        _stretches(sass, label, instruction, branch),
        _nvidia_accesses,
        registers=_number(r"REG:(\d+)", usage),
        stack=_number(r"STACK:(\d+)", usage),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=_number(r"SHARED:(\d+)", usage),
    )


def _cost(stretches: list[list[str]], accesses: Accesses, **usage: int) -> KernelCost:
    """What the disassembler says, and what is read from the main loop: the stretch that moves the most data.

    A loop of the epilogue can be longer.
    """
    loop = max(stretches, key=lambda stretch: (_traffic(accesses(stretch)), len(stretch)), default=[])
    return KernelCost(**usage, instructions=len(loop), accesses=accesses(loop))


def _stretches(text: str, label: str, instruction: str, branch: str) -> list[list[str]]:
    """Every stretch of instructions that a branch leads back over."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    stretches = []
    for line in text.splitlines():
        if match := re.match(label, line):
            labels[match.group(1)] = len(lines)
        elif match := re.match(instruction, line):
            lines.append(match.group(1))
            target = re.search(branch, match.group(1))
            if target and target.group(1) in labels:
                stretches.append(lines[labels[target.group(1)] :])
    return stretches


def _traffic(accesses: dict[int, int]) -> int:
    return sum(bits * count for bits, count in accesses.items())


def _nvidia_accesses(loop: list[str]) -> dict[int, int]:
    names = [re.sub(r"^@!?U?P\w+\s+", "", line).split()[0] for line in loop]
    return dict(Counter(_bits(name) for name in names if re.match(r"(LDG|STG|LD|ST)(\.|$)", name)))


def _bits(name: str) -> int:
    """Width of LDG.E.128 and the like; plain ones move 32 bits."""
    for suffix, bits in (("128", 128), ("64", 64), ("U16", 16), ("S16", 16), ("U8", 8), ("S8", 8)):
        if suffix in name.split("."):
            return bits
    return 32


def _amd_accesses(loop: list[str]) -> dict[int, int]:
    matches = [re.match(r"(?:global|buffer)_(?:load|store)_(\w+)", line) for line in loop]
    return dict(Counter(_amd_bits(match.group(1)) for match in matches if match))


def _amd_bits(kind: str) -> int:
    if match := re.match(r"dword(?:x(\d))?", kind):
        return 32 * int(match.group(1) or 1)
    return 16 if "short" in kind or "b16" in kind or "d16" in kind else 8


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the output of the disassembler")
    return int(match.group(1))
