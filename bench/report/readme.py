"""`python -m bench.report.readme`: writes the README's tables from bench/results, the newest of each machine.

Each stands between `<!-- generated: NAME -->` and `<!-- end -->`; nothing else is touched. `--check` writes nothing
and fails where a table, or a figure of bench/results, is not what the results give. Lines and columns of the tables:
bench/report/tables.py.
"""

import re
import sys
from pathlib import Path

from bench.cli import Parser
from bench.report import figures, tables
from bench.report.results import HOST_COST, KERNELS, MMSE, PEERS, TRAINING, find, newest, read

ROOT, FOLDER = Path(__file__).parents[2], Path("bench", "results")
BLOCK = re.compile(r"<!-- generated: (?P<name>.*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
NOT_MEASURED = "Not measured yet."
TABLES = {
    KERNELS: ("kernels", tables.kernels_table),
    TRAINING: ("training", tables.training_table),
    MMSE: ("mmse", tables.mmse_table),
    HOST_COST: ("hostcost", tables.host_cost_table),
    PEERS: ("peers", tables.peers_table),
}
"""By the kind of results: the name of its tables, and what makes one."""


def generated(root: Path) -> dict[str, str]:
    """The generated texts of the README by name."""
    parts: dict[str, list[str]] = {"figures": [], **{name: [] for name, _ in TABLES.values()}}
    for results in newest(map(read, find(root / FOLDER))):
        name, table = TABLES[results.kind]
        parts[name].append(tables.section(results, table(results), results.path.relative_to(root).as_posix()))
        if results.kind == KERNELS and figures.swept(results):
            figure = figures.figure_path(results).relative_to(root).as_posix()
            parts["figures"].append(f"![time of a step against its size, {results.machine}]({figure})")
    return {name: "\n\n".join(texts) or NOT_MEASURED for name, texts in parts.items()}


def filled(readme: str, texts: dict[str, str]) -> str:
    """The README with its tables as they should be. Raises ValueError if a mark is missing or one too many."""
    names = [match["name"] for match in BLOCK.finditer(readme)]
    if sorted(names) != sorted(texts):
        raise ValueError(f"README.md generates {sorted(names)}, expected each of {sorted(texts)} once")
    return BLOCK.sub(lambda match: block(match["name"], texts[match["name"]]), readme)


def block(name: str, text: str) -> str:
    """A generated table between its marks."""
    return f"<!-- generated: {name} -->\n\n{text}\n\n<!-- end -->"


def faults(root: Path) -> list[str]:
    """The tables of the README and the figures of bench/results that are not what the results give."""
    readme, texts = (root / "README.md").read_text(), generated(root)
    filled(readme, texts)
    stated = {match["name"]: match[0] for match in BLOCK.finditer(readme)}
    found = [
        f"README.md, table {name}: out of date; run `make readme`"
        for name, text in texts.items()
        if stated[name] != block(name, text)
    ]
    drawn = figures.drawable(find(root / FOLDER))
    left_over = set((root / FOLDER).glob("*.png")) - {figures.figure_path(each) for each in drawn}
    found += [fault for each in drawn if (fault := figures.fault(each))]
    return found + [f"{path.name}: no results file gives it; remove it" for path in sorted(left_over)]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing, the figures too")
    try:
        if parser.parse_args(arguments).check:
            found = faults(ROOT)
            print("\n".join(found) or "the README's tables and the figures are what the results give")
            return int(bool(found))
        path = ROOT / "README.md"
        path.write_text(filled(path.read_text(), generated(ROOT)))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
