"""`python -m bench.report.readme`: writes the README's tables from bench/results, the newest of each machine.

Each stands between `<!-- generated: NAME -->` and `<!-- end -->`; nothing else is touched. `--check` writes nothing
and fails where a table, or a figure of bench/results, is not what the results give.
"""

import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.cli import Parser
from bench.report.plots import figures
from bench.report.results import KERNELS, TRAINING, Results, find, newest, read
from bench.report.tables import audit_table, kernels_section, training_section

ROOT, FOLDER = Path(__file__).parents[2], Path("bench", "results")
BLOCK = re.compile(r"<!-- generated: (?P<name>.*?) -->\n(?P<body>.*?)<!-- end -->", re.DOTALL)
SECTIONS = {KERNELS: ("kernels", kernels_section), TRAINING: ("training", training_section)}
NOT_MEASURED = "Not measured yet."


class Drawn(NamedTuple):
    """A results file and its figures as they should be."""

    results: Results
    figures: dict[Path, bytes]


def draw_all(folder: Path) -> list[Drawn]:
    """Every results file of a folder with its figures; writes nothing."""
    files = [read(path) for path in find(folder)]
    return [Drawn(each, figures(each)) for each in files]


def tables(root: Path, drawn: Sequence[Drawn]) -> dict[str, str]:
    """The generated texts of the README by name, from the newest results of each machine."""
    with (root / FOLDER / "audit.csv").open(newline="") as file:
        texts = {"audit": audit_table(list(csv.DictReader(file)))}
    paths = {each.results.path: each.figures for each in drawn}
    for kind, (name, make) in SECTIONS.items():
        parts = []
        for results in newest(each.results for each in drawn if each.results.kind == kind):
            links = [path.relative_to(root).as_posix() for path in (results.path, *paths[results.path])]
            parts.append(make(results, links[0], links[1:]))
        texts[name] = "\n\n".join(parts) or NOT_MEASURED
    return texts


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
    drawn = draw_all(root / FOLDER)
    readme, texts = (root / "README.md").read_text(), tables(root, drawn)
    filled(readme, texts)
    stated = {match["name"]: match[0] for match in BLOCK.finditer(readme)}
    found = [
        f"README.md, table {name}: out of date; run `make readme`"
        for name, text in texts.items()
        if stated[name] != block(name, text)
    ]
    expected = {path: content for each in drawn for path, content in each.figures.items()}
    present = set((root / FOLDER).glob("*.svg"))
    for path in sorted(expected.keys() | present):
        name = path.relative_to(root)
        if path not in present:
            found.append(f"{name}: missing; run `make plots`")
        elif path not in expected:
            found.append(f"{name}: no results file gives it; remove it")
        elif path.read_bytes() != expected[path]:
            found.append(f"{name}: out of date; run `make plots`")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing, the figures too")
    check = parser.parse_args(arguments).check
    try:
        if check:
            found = faults(ROOT)
            print("\n".join(found) or "the README's tables and the figures are what the results give")
            return int(bool(found))
        path = ROOT / "README.md"
        path.write_text(filled(path.read_text(), tables(ROOT, draw_all(ROOT / FOLDER))))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
