"""`python -m bench.report.pages`: writes the pages' tables and draws the figures from bench/results.

A table, of the newest file of each machine, stands between `<!-- generated: NAME -->` and `<!-- end -->`, on any page;
nothing else is touched. `--check` writes nothing and fails where a table or a figure is not what the results give.
Lines and columns of the tables: bench/report/tables.py.
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
    drawn = {figures.figure_path(each): each for each in figures.drawable(find(ROOT / FOLDER))}
    stale = [page for page, text, new in filled() if text != new]
    stale += [path for path, results in drawn.items() if not figures.is_drawn(results)]
    found = [f"{path.relative_to(ROOT)}: out of date; run `make readme`" for path in stale]
    left_over = sorted(set((ROOT / FOLDER).glob("*.png")) - drawn.keys())
    return found + [f"{path.relative_to(ROOT)}: no results file gives it; remove it" for path in left_over]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.pages", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    try:
        if parser.parse_args(arguments).check:
            found = faults()
            print("\n".join(found) or "the tables and the figures are what the results give")
            return int(bool(found))
        for page, _, text in filled():
            page.write_text(text)
        for results in figures.drawable(find(ROOT / FOLDER)):
            if not figures.is_drawn(results):
                figures.write(results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
