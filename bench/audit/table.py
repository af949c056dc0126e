"""The table of the audit: what a row says, the stored one, and what is wrong with new ones."""

from typing import Any, NamedTuple

from bench.audit.machine_code import KernelCost
from bench.report.results import RESULTS, Table, read_rows

TABLE = RESULTS / "audit.csv"
ALLOWED_GROWTH = 1.05
WIDE_SHARE = 0.95
# Instructions per latent on sm_90. A softplus has a logarithm's polynomial for q and for p beside the logarithms.
BUDGETS = {"forward": 85, "backward": 120}
BUDGETS_OF_SOFTPLUS = {"forward": 115, "backward": 135}

# An H200: copy bandwidth, and thread instructions issued per second.
COPY_BYTES_PER_SECOND = 4.3e12
INSTRUCTIONS_PER_SECOND = 215e9 * 135
# Values moved per latent: q and p read, z written; q, p, grad z read, both gradients written; q read, z written.
VALUES = {"forward": 5, "backward": 9, "sample": 3}


class Variant(NamedTuple):
    """A compiled kernel. `dtype` is that of the parameters; `options` all that the compiler knew of besides."""

    backend: str
    target: str
    kernel: str
    dtype: str
    options: str


def row(
    variant: Variant, cost: KernelCost, latents: float | None, bytes_per_latent: float, compiler: str
) -> dict[str, Any]:
    """One line. `latents` of a thread in a turn of its main loop; None where the loop says nothing about them."""
    per_latent = cost.instructions / latents if latents else None
    return {
        **variant._asdict(),
        "registers": cost.registers,
        "stack": cost.stack,
        "spills": cost.spills,
        "shared": cost.shared,
        "wide_access_share": "" if per_latent is None else round(cost.wide_share, 3),
        "instructions_per_latent": "" if per_latent is None else round(per_latent, 1),
        "h200_loop_bound": "" if per_latent is None else _loop_bound(variant.target, per_latent, bytes_per_latent),
        "compiler": compiler,
    }


def _loop_bound(target: str, per_latent: float, bytes_per_latent: float) -> str:
    """What keeps an H200 busy longer in the main loop. What a block does once comes on top, and is not in it."""
    if target != "sm_90":
        return ""
    memory, issue = bytes_per_latent / COPY_BYTES_PER_SECOND, per_latent / INSTRUCTIONS_PER_SECOND
    return "memory" if memory >= issue else "issue"


def faults(rows: list[dict[str, Any]], stored: list[dict[str, str]]) -> list[str]:
    """What is wrong with these kernels, and where they got worse than the stored ones."""
    before = {_key(line): line for line in stored}
    found = []
    for line in rows:
        old = before.pop(_key(line), None)
        complaints = _faults(line) if old is None else [*_faults(line), *_growth(line, old)]
        if old is None:
            complaints.append("not in the stored table; run `make audit`")
        found += [f"{' '.join(_key(line))}: {complaint}" for complaint in complaints]
    return found + [f"{' '.join(key)}: stored, but not there any more; run `make audit`" for key in before]


def _faults(line: dict[str, Any]) -> list[str]:
    found = []
    if int(line["stack"]) or int(line["spills"]):
        found.append(f"{line['stack']} bytes of stack, {line['spills']} spills")
    if line["instructions_per_latent"] == "":
        return found
    if float(line["wide_access_share"]) < WIDE_SHARE:
        found.append(f"only {line['wide_access_share']} of the traffic in 128-bit accesses")
    budgets = BUDGETS_OF_SOFTPLUS if "softplus" in line["options"] else BUDGETS
    budget = budgets.get(line["kernel"].split()[0])
    if line["target"] == "sm_90" and budget is not None and float(line["instructions_per_latent"]) > budget:
        found.append(f"{line['instructions_per_latent']} instructions per latent, the budget is {budget}")
    return found


def _growth(line: dict[str, Any], old: dict[str, str]) -> list[str]:
    now, then = line["instructions_per_latent"], old["instructions_per_latent"]
    grown = now != "" and then != "" and float(now) > ALLOWED_GROWTH * float(then)
    return [f"instructions per latent {then} -> {now}"] if grown else []


def _key(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(line[field] for field in Variant._fields)


def read_table() -> list[dict[str, str]]:
    return read_rows(TABLE)


def write_table(rows: list[dict[str, Any]]) -> None:
    table = Table(TABLE, list(rows[0]))
    for line in rows:
        table.add(line)


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {field: max(len(field), *(len(str(line[field])) for line in rows)) for field in rows[0]}
    for line in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(value).ljust(widths[field]) for field, value in line.items()).rstrip())
