"""The table of the audit: what a row says, the stored one, and what is wrong with new ones."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.audit.machine_code import KernelCost
from bench.report.results import RESULTS, Table, read_rows

TABLE = RESULTS / "audit.csv"
WIDE_SHARE = 0.95
BUDGETS_TARGET = "sm_90"
# Instructions per latent there. A softplus has a logarithm's polynomial for q and for p beside the logarithms.
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
    if target != BUDGETS_TARGET:
        return ""
    memory, issue = bytes_per_latent / COPY_BYTES_PER_SECOND, per_latent / INSTRUCTIONS_PER_SECOND
    return "memory" if memory >= issue else "issue"


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with these kernels."""
    return [f"{_name(line)}: {complaint}" for line in rows for complaint in _faults(line)]


def _faults(line: dict[str, Any]) -> Iterator[str]:
    if int(line["stack"]) or int(line["spills"]):
        yield f"{line['stack']} bytes of stack, {line['spills']} spills"
    if line["instructions_per_latent"] == "":
        return
    if float(line["wide_access_share"]) < WIDE_SHARE:
        yield f"only {line['wide_access_share']} of the traffic in 128-bit accesses"
    budgets = BUDGETS_OF_SOFTPLUS if "softplus" in line["options"] else BUDGETS
    budget = budgets.get(line["kernel"].split()[0])
    if line["target"] == BUDGETS_TARGET and budget is not None and float(line["instructions_per_latent"]) > budget:
        yield f"{line['instructions_per_latent']} instructions per latent, the budget is {budget}"


def differences(rows: list[dict[str, Any]], stored: list[dict[str, str]]) -> list[str]:
    """Where the stored table is not these rows: the same compiler makes the same of the same kernels."""
    before, now = ({_name(line): {k: str(v) for k, v in line.items()} for line in lines} for lines in (stored, rows))
    found = [f"{name}: {'stored, but not there' if name in before else 'not stored'}" for name in before ^ now.keys()]
    for name in before.keys() & now.keys():
        changes = [f"{key} {old} -> {now[name][key]}" for key, old in before[name].items() if old != now[name][key]]
        found += [f"{name}: {', '.join(changes)}"] * bool(changes)
    return sorted(found)


def _name(line: dict[str, Any]) -> str:
    return " ".join(line[field] for field in Variant._fields)


def read_table() -> list[dict[str, str]]:
    return read_rows(TABLE)


def write_table(rows: list[dict[str, Any]]) -> None:
    table = Table(TABLE, list(rows[0]))
    for line in rows:
        table.add(line)
    table.done()


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {field: max(len(field), *(len(str(line[field])) for line in rows)) for field in rows[0]}
    for line in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(value).ljust(widths[field]) for field, value in line.items()).rstrip())
