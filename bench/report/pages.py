"""`python -m bench.report.pages`: writes the pages' tables from bench/results, the newest of each machine.

Each stands between `<!-- generated: NAME -->` and `<!-- end -->`, on any page; nothing else is touched. `--check`
writes nothing and fails where a table, or a figure of bench/results, is not what the results give. Lines and columns of
the tables: bench/report/tables.py.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.cli import Parser
from bench.report import figures, tables
from bench.report.results import HOST_COST, KERNELS, MMSE, TRAINING, find, newest, read

ROOT, FOLDER = Path(__file__).parents[2], Path("bench", "results")
PAGES = ("README.md", "docs/performance.md")
BLOCK = re.compile(r"<!-- generated: (?P<name>.*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
NOT_MEASURED = "Not measured yet."
TABLES = {
    KERNELS: ("kernels", tables.kernels_table),
    TRAINING: ("training", tables.training_table),
    MMSE: ("mmse", tables.mmse_table),
    HOST_COST: ("hostcost", tables.host_cost_table),
}
"""By the kind of results: the name of its tables, and what makes one."""


def generated(folder: Path) -> dict[str, str]:
    """The generated texts by name, for a page in `folder`."""
    parts: dict[str, list[str]] = {"figures": [], **{name: [] for name, _ in TABLES.values()}}
    for results in newest(map(read, find(ROOT / FOLDER))):
        name, table = TABLES[results.kind]
        parts[name].append(tables.section(results, table(results), os.path.relpath(results.path, folder)))
        if results.kind == KERNELS and figures.swept(results):
            figure = os.path.relpath(figures.figure_path(results), folder)
            parts["figures"].append(f"![time of a step against its size, {results.machine}]({figure})")
    return {name: "\n\n".join(texts) or NOT_MEASURED for name, texts in parts.items()}


def filled() -> Iterator[tuple[Path, str, str]]:
    """Every page, its text, and its text as it should be. Raises ValueError for a mark that nothing belongs in."""
    for page in filter(Path.exists, (ROOT / name for name in PAGES)):
        text, texts = page.read_text(), generated(page.parent)
        new = text
        for match in BLOCK.finditer(text):
            if match["name"] not in texts:
                raise ValueError(f"{page} generates {match['name']!r}, expected one of {sorted(texts)}")
            new = new.replace(
                match[0], f"<!-- generated: {match['name']} -->\n\n{texts[match['name']]}\n\n<!-- end -->"
            )
        yield page, text, new


def faults() -> list[str]:
    """The pages and the figures of bench/results that are not what the results give."""
    found = [f"{page.relative_to(ROOT)}: out of date; run `make readme`" for page, text, new in filled() if text != new]
    drawn = figures.drawable(find(ROOT / FOLDER))
    left_over = set((ROOT / FOLDER).glob("*.png")) - {figures.figure_path(each) for each in drawn}
    found += [fault for each in drawn if (fault := figures.fault(each))]
    return found + [f"{path.name}: no results file gives it; remove it" for path in sorted(left_over)]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.pages", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing, the figures too")
    try:
        if parser.parse_args(arguments).check:
            found = faults()
            print("\n".join(found) or "the tables and the figures are what the results give")
            return int(bool(found))
        for page, _, text in filled():
            page.write_text(text)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
