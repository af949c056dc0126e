"""The table of the audit: what a row says, and what is wrong with rows."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.audit.machine_code import KernelCost
from bench.report.results import RESULTS, Table

TABLE = RESULTS / "audit.csv"
WIDE_SHARE = 0.95
TARGETS = {"sm_80", "sm_90", "sm_100"}
BUDGETS_TARGET = "sm_90"
# Instructions per latent there. A softplus has a logarithm's polynomial for q and for p beside the logarithms.
BUDGETS = {"forward": 85, "backward": 120}
BUDGETS_OF_SOFTPLUS = {"forward": 115, "backward": 135}


class Variant(NamedTuple):
    """A compiled kernel. `dtype` is that of the parameters; `options` all that the compiler knew of besides."""

    backend: str
    target: str
    kernel: str
    dtype: str
    options: str


def row(variant: Variant, cost: KernelCost, latents: float | None, compiler: str) -> dict[str, Any]:
    """One line. `latents` of a thread in a turn of its main loop; None where the loop says nothing about them."""
    return {
        **variant._asdict(),
        **{"registers": cost.registers, "stack": cost.stack, "spills": cost.spills, "shared": cost.shared},
        "wide_access_share": round(cost.wide_share, 3) if latents and cost.wide_share is not None else "",
        "instructions_per_latent": round(cost.instructions / latents, 1) if latents else "",
        "compiler": compiler,
    }


def name(line: dict[str, Any]) -> str:
    return " ".join(line[field] for field in Variant._fields)


def faults(line: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a kernel, on the target of the budgets; of others the table tells."""
    if line["target"] != BUDGETS_TARGET:
        return
    if int(line["stack"]) or int(line["spills"]):
        yield f"{name(line)}: {line['stack']} bytes of stack, {line['spills']} spills"
    if line["instructions_per_latent"] == "":
        return
    if line["wide_access_share"] != "" and float(line["wide_access_share"]) < WIDE_SHARE:
        yield f"{name(line)}: only {line['wide_access_share']} of the traffic in 128-bit accesses"
    budgets = BUDGETS_OF_SOFTPLUS if "softplus" in line["options"] else BUDGETS
    budget = budgets.get(line["kernel"].split()[0])
    if budget is not None and float(line["instructions_per_latent"]) > budget:
        yield f"{name(line)}: {line['instructions_per_latent']} instructions per latent, the budget is {budget}"


def differences(rows: list[dict[str, Any]], stored: list[dict[str, str]]) -> Iterator[str]:
    """Where the stored table is not these rows: the same compiler makes the same of the same kernels."""
    before, now = ({name(line): {k: str(v) for k, v in line.items()} for line in lines} for lines in (stored, rows))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, {}), now.get(key, {})
        changes = [
            f"{column} {old.get(column)} -> {new.get(column)}" for column in new if old.get(column) != new[column]
        ]
        if changes or not new:
            yield f"{key}: {', '.join(changes) if old and new else 'not stored' if new else 'stored, but not there'}"


def write_table(rows: list[dict[str, Any]]) -> None:
    table = Table(TABLE, list(rows[0]))
    for line in rows:
        table.add(line)
    table.done()


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {field: max(len(field), *(len(str(line[field])) for line in rows)) for field in rows[0]}
    for line in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
        print("  ".join(str(value).ljust(widths[field]) for field, value in line.items()).rstrip())
