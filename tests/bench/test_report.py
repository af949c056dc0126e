"""A results file is written as it is read; README and figure show its own numbers, and the checks find what is not."""

import csv
import shutil
from pathlib import Path

import pytest

from bench.report import figures, readme
from bench.report.results import COLUMNS, NAME, Table, find, newest, read

FOLDER = "bench/results"
KERNEL_FILE, TRAINING_FILE, MMSE_FILE, PEERS_FILE, HOST_COST_FILE = FILES = [
    f"abacus-2026-01-31{kind}.csv" for kind in ("", "-train", "-mmse", "-peers", "-hostcost")
]
NAMES = ["figures", "kernels", "training", "mmse", "peers", "hostcost"]
FIGURE = "abacus-2026-01-31-time.png"
ENVIRONMENT = {"device": "an abacus", "threads": "2", "torch": "2.0", "ladder_kernels": "0.1", "date": "2026-01-31"}
SHAPES = {"level 8x8 b2": (2, 8), "level 4x4 b2": (2, 4), "sweep 2^8": (2, 8), "sweep 2^10": (2, 16)}
SECONDS = {"upstream": 100.0, "upstream, compiled": 40.0, "torch": 50.0, "cpp": 10.0}
VARIANTS = {"upstream": 100.0, "upstream, compiled": 80.0, "patched": 50.0}


def kernel_rows() -> list[dict[str, str]]:
    """Every pass of every provider at every shape: a microsecond times SECONDS for each latent."""
    rows = []
    for case, (batch, side) in SHAPES.items():
        latents = batch * 2 * side * side
        for provider, cost in SECONDS.items():
            for name, factor in (("forward", 1), ("backward", 2), ("step", 3)):
                median = cost * factor * latents
                cells = {"case": case, "provider": provider, "pass": name, "mode": "eager", "status": "ok"}
                cells |= {"batch": batch, "channels": 2, "space": f"{side}x{side}", "latents": latents}
                cells |= {"dtype": "float32", "layout": "nchw", "kl": "mc", "kept_mib": cost * latents / 1024}
                cells |= {"median_us": median, "p20_us": 0.9 * median, "p80_us": 1.2 * median}
                rows.append(cells | {"bytes": 20 * latents, "copy_gb_per_s": 10} | ENVIRONMENT)
    return rows


def training_rows() -> list[dict[str, str]]:
    rows = []
    for variant, median in VARIANTS.items():
        for name in ("train", "predict"):
            cells = {"variant": variant, "precision": "fp32", "pass": name, "status": "ok", "median_ms": median}
            rows.append(cells | ENVIRONMENT)
    return rows


def mmse_rows() -> list[dict[str, str]]:
    """Seconds of two ways at two sizes, the second way in half of the first's."""
    ways = {"the loop": 1.0, "ours": 0.5}
    rows = [(way, side, cost * side / 64) for side in (64, 256) for way, cost in ways.items()]
    return [{"way": w, "side": side, "median_s": s, "peak_mib": 8 * s} | ENVIRONMENT for w, side, s in rows]


def peers_rows() -> list[dict[str, str]]:
    """One that is told, beside the class, which is not, and one that is not."""
    differences = {"z_difference": 1e-7, "kl_difference": 3e-7, "gradient_difference": 2e-7}
    times = {"theirs_us": 4000, "theirs_compiled_us": 2000, "ours_us": 1000, "ours_compiled_us": 900}
    told = {"peer": "diffusers, LDM", "ours": "the function"} | differences | times | ENVIRONMENT
    return [told | {"ours": "the class", "ours_us": 7000}, told, told | {"peer": "nobody"}]


def host_cost_rows() -> list[dict[str, str]]:
    """Of the upstream block, ours eager, and a backend that cannot be built."""
    times = {"upstream, compiled": {"block": 200, "prediction": 30}}
    times["cpp"] = {"function": 50, "block": 100, "prediction": 15}
    rows = [
        {"who": who, "pass": name, "status": "ok", "median_us": time} | ENVIRONMENT
        for who, passes in times.items()
        for name, time in passes.items()
    ]
    return [*rows, {"who": "cuda", "status": "failed", "reason": "no compiler"} | ENVIRONMENT]


def write(path: Path, rows: list[dict]) -> None:
    table = Table(path, COLUMNS[NAME.fullmatch(path.stem)["kind"]])
    for row in rows:
        table.add(row)


def changed(rows: list[dict], wanted: dict, cells: dict) -> list[dict]:
    """The rows, those with the `wanted` cells changed."""
    assert any(wanted.items() <= row.items() for row in rows)
    return [row | cells if wanted.items() <= row.items() else row for row in rows]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose README and figure are what its results give."""
    root = tmp_path_factory.mktemp("written")
    for name, rows in zip(FILES, (kernel_rows, training_rows, mmse_rows, peers_rows, host_cost_rows), strict=True):
        write(root / FOLDER / name, rows())
    marks = [f"<!-- generated: {name} -->\n<!-- end -->\nby hand" for name in NAMES]
    (root / "README.md").write_text("\n\n".join(marks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readme, "ROOT", root)
        update(root)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    return tmp_path


def update(root: Path) -> str:
    """Draws and writes all; returns the README."""
    assert figures.main([str(path) for path in find(root / FOLDER)]) == 0
    assert readme.main([]) == 0
    return (root / "README.md").read_text()


def complaints(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    code, found = readme.main(["--check"]), capsys.readouterr().out.splitlines()
    assert code == (found != ["the README's tables and the figures are what the results give"])
    return found if code else []


def row_of(text: str, name: str) -> str:
    """The first line of a table that begins with `name`."""
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_tables_are_the_results(root):
    text = (root / "README.md").read_text()
    # 256 and 64 latents, 300 and 30 microseconds each; 0.1 and 0.01 MiB per latent
    assert row_of(text, "upstream") == "| upstream | 76.8 ms (1.00x) | 19.2 ms (1.00x) | 31.2 MiB |"
    assert row_of(text, "cpp") == "| cpp | 7.68 ms (10.0x) | 1.92 ms (10.0x) | 3.12 MiB |"
    assert row_of(text, "patched") == "| patched | 50.0 ms (2.00x) | 50.0 ms (2.00x) | - |"
    assert row_of(text, "ours") == "| ours | 500 ms (2.00x) | 4.00 MiB | 2.00 s (2.00x) | 16.0 MiB |"
    peer = "| diffusers, LDM | `.diffusers()` | 3e-07 | 4.00 / 2.00 ms | 1.00 / 0.900 ms |"
    assert row_of(text, "diffusers, LDM") == peer
    assert "nobody" not in text
    assert text.count("by hand") == len(NAMES)
    assert text.count("an abacus, 2 threads · torch 2.0 · ladder_kernels 0.1 · 2026-01-31") == len(FILES)


def test_what_a_call_costs_the_host_is_told_beside_upstreams_compiled_block(root):
    _, _, body = (root / "README.md").read_text().partition("generated: hostcost")
    assert row_of(body, "upstream, compiled") == "| upstream, compiled | - | 200 µs (1.00x) | 30.0 µs (1.00x) |"
    assert row_of(body, "cpp") == "| cpp | 50.0 µs (4.00x) | 100 µs (2.00x) | 15.0 µs (2.00x) |"
    assert row_of(body, "cuda") == "| cuda | **failed** | **failed** | **failed** |"


def test_no_table_of_the_readme_is_long_and_each_leads_to_its_file():
    for match in readme.BLOCK.finditer((Path(__file__).parents[2] / "README.md").read_text()):
        lines = match["body"].splitlines()
        if match["name"] == "figures":
            assert match["body"].count("![") == 1
            continue
        assert 0 < sum(line.startswith("| ") for line in lines) - 2 <= 7, match["name"]
        assert ".csv)" in match["body"]


def test_writing_twice_changes_nothing_and_the_check_passes(root, capsys):
    before = (root / "README.md").read_text()
    assert update(root) == before
    assert complaints(capsys) == []


STEP = {"case": "level 8x8 b2", "provider": "cpp", "pass": "step"}
SWEPT = STEP | {"case": "sweep 2^10"}


@pytest.mark.parametrize(
    ("file", "rows", "expected"),
    [
        (KERNEL_FILE, changed(kernel_rows(), STEP, {"median_us": 7}), ["README.md, table kernels: out of date"]),
        (MMSE_FILE, changed(mmse_rows(), {"way": "ours"}, {"peak_mib": 7}), ["README.md, table mmse: out of date"]),
        (PEERS_FILE, changed(peers_rows(), {}, {"ours_us": 7}), ["README.md, table peers: out of date"]),
        (HOST_COST_FILE, changed(host_cost_rows(), {"who": "cpp"}, {"median_us": 7}), ["README.md, table hostcost"]),
        (KERNEL_FILE, changed(kernel_rows(), SWEPT, {"median_us": 7}), [f"{FIGURE}: out of date"]),
        (TRAINING_FILE, changed(training_rows(), {"variant": "patched"}, {"median_ms": 7}), ["README.md, table train"]),
    ],
    ids=["level", "mmse", "peers", "hostcost", "sweep", "training"],
)
def test_a_changed_number_fails_the_check_and_is_then_shown(root, capsys, file, rows, expected):
    write(root / FOLDER / file, rows)
    found = complaints(capsys)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))
    update(root)
    assert complaints(capsys) == []


def test_a_figure_that_is_missing_or_left_over_fails_the_check(root, capsys):
    (root / FOLDER / FIGURE).rename(root / FOLDER / "old.png")
    assert complaints(capsys) == [
        f"{FIGURE}: missing; run `make plots`",
        "old.png: no results file gives it; remove it",
    ]


def test_a_hand_edit_inside_the_marks_fails_the_check(root, capsys):
    path = root / "README.md"
    path.write_text(path.read_text().replace("by hand", "edited"))
    assert complaints(capsys) == []
    path.write_text(path.read_text().replace("7.68 ms", "6.68 ms"))
    assert complaints(capsys) == ["README.md, table kernels: out of date; run `make readme`"]


def test_marks_that_do_not_fit_are_one_line(root, capsys):
    path = root / "README.md"
    path.write_text(path.read_text().replace("generated: kernels", "generated: figures"))
    with pytest.raises(SystemExit):
        readme.main(["--check"])
    assert f"expected each of {sorted(NAMES)} once" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "cell"), [("wrong", "**wrong**"), ("failed", "**failed**"), ("skipped", "-")])
def test_what_is_not_ok_has_no_time_and_is_not_drawn(root, status, cell):
    rows = changed(kernel_rows(), STEP, {"status": status})
    write(root / FOLDER / KERNEL_FILE, changed(rows, SWEPT, {"status": status}))
    assert row_of(update(root), "cpp") == f"| cpp | {cell} | 1.92 ms (10.0x) | - |"
    figure = figures.draw(figures.swept(read(root / FOLDER / KERNEL_FILE)))
    assert [len(line.get_xdata()) for line in figure.axes[2].get_lines() if line.get_label() == "cpp"] == [1]


def test_time_is_drawn_as_measured(root):
    axes = figures.draw(figures.swept(read(root / FOLDER / KERNEL_FILE))).axes[2]
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    expected = {provider: cost * 3e-6 for provider, cost in SECONDS.items() if provider != "torch"}
    # 20 bytes a latent at 10 GB/s
    for name, each in (expected | {"copying its bytes": 2e-9}).items():
        assert drawn.pop(name) == (pytest.approx([256, 1024]), pytest.approx([each * 256, each * 1024]))
    assert drawn == {}


def test_only_the_newest_of_a_machine_is_told(root):
    write(root / FOLDER / "abacus-2025-12-01.csv", changed(kernel_rows(), STEP, {"median_us": 7000}))
    write(root / FOLDER / "slide-rule-2025-12-01.csv", kernel_rows())
    names = [results.path.name for results in newest(map(read, find(root / FOLDER)))]
    assert names == [*sorted(FILES, key=lambda name: name.removesuffix(".csv")), "slide-rule-2025-12-01.csv"]
    assert "7.00 ms" not in update(root)


def test_a_row_is_in_the_file_at_once_and_what_it_leaves_out_is_empty(tmp_path):
    table = Table(tmp_path / "new" / "x.csv", ("a", "b"))
    table.add({"b": 1})
    with (tmp_path / "new" / "x.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "", "b": "1"}]
