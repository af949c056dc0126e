"""`python -m bench.report.plots [csv...]`: draws the figures of results files beside them, from nothing but the files.

Without arguments, those of every results file in bench/results. Equal files give equal bytes, so that
`python -m bench.report.readme --check` can tell a figure that is out of date.
"""

import sys
from pathlib import Path

from matplotlib import rc_context

from bench.cli import Parser
from bench.report.figure_style import STYLE, svg
from bench.report.kernel_figures import kernel_figures
from bench.report.results import KERNELS, Results, find, read
from bench.report.training_figures import training_figures


def figures(results: Results) -> dict[Path, bytes]:
    """The figures of a results file: where each belongs, and its SVG."""
    with rc_context(STYLE):
        make = kernel_figures if results.kind == KERNELS else training_figures
        return {
            results.path.with_name(f"{results.path.stem}-{name}.svg"): svg(each) for name, each in make(results).items()
        }


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.report.plots", description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="*", type=Path, help="results files; all of bench/results where none is named")
    paths = parser.parse_args(arguments).csv or find()
    if not paths:
        parser.error("there are no results files in bench/results to draw")
    for path in paths:
        try:
            drawn = figures(read(path))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        for place, content in drawn.items():
            place.write_bytes(content)
            print(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
