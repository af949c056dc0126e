"""Pages and figure show a results file's own numbers, and the check finds what they do not."""

import itertools
from pathlib import Path

import pytest

from bench.report import figures, pages
from bench.report.results import COLUMNS, NAME, Table, find, newest, read

FOLDER = "bench/results"
KINDS = {"": "kernels", "-train": "training", "-mmse": "mmse", "-hostcost": "hostcost"}
FIGURE = f"{FOLDER}/abacus-2026-01-31-time.png"
ENVIRONMENT = {"device": "an abacus", "threads": "2", "torch": "2.0", "ladder_kernels": "0.1", "date": "2026-01-31"}
SHAPES = {"level 8x8 b2": (2, 8), "level 4x4 b2": (2, 4), "sweep 2^8": (2, 8), "sweep 2^10": (2, 16)}
SECONDS = {"upstream": 100.0, "upstream, compiled": 40.0, "torch": 50.0, "cpp": 10.0}


def rows_of(kind: str) -> list[dict]:
    if kind == "":
        return kernel_rows()
    if kind == "-train":
        cells = {"precision": "fp32", "status": "ok"}
        medians = {"upstream": 100.0, "patched": 50.0}
        passes = ("train", "predict")
        return [cells | {"variant": v, "pass": p, "median_ms": ms} for v, ms in medians.items() for p in passes]
    if kind == "-mmse":
        ways = {"the loop": 1.0, "ours": 0.5}
        rows = [(way, tile, cost * tile / 64) for tile in (64, 256) for way, cost in ways.items()]
        return [{"way": way, "side": tile, "median_s": seconds, "peak_mib": 8} for way, tile, seconds in rows]
    times = {"upstream, compiled": {"block": 200, "prediction": 30}, "cpp": {"function": 50, "block": 100}}
    return [{"who": who, "pass": p, "median_us": us} for who, passes in times.items() for p, us in passes.items()]


def kernel_rows() -> list[dict]:
    """Every pass of every provider at every shape: a microsecond times SECONDS for each latent."""
    rows = []
    common = {"status": "ok", "channels": 2, "dtype": "float32", "layout": "nchw", "kl": "mc", "copy_gb_per_s": 10}
    passes = {"forward": 1, "backward": 2, "step": 3}
    for (case, (batch, side)), (provider, cost), name in itertools.product(SHAPES.items(), SECONDS.items(), passes):
        latents = batch * 2 * side * side
        median = cost * passes[name] * latents
        cells = {"case": case, "batch": batch, "space": f"{side}x{side}", "latents": latents, "bytes": 20 * latents}
        cells |= {"provider": provider, "pass": name, "kept_mib": cost * latents / 1024}
        rows.append(common | cells | {"median_us": median, "p20_us": 0.9 * median, "p80_us": 1.2 * median})
    return rows


def write(path: Path, rows: list[dict]) -> None:
    table = Table(path, COLUMNS[NAME.fullmatch(path.stem)["kind"]])
    for row in rows:
        table.add(row | ENVIRONMENT)


def change(root: Path, kind: str, wanted: dict, cells: dict) -> None:
    """Rewrites a results file, the rows with the `wanted` cells changed."""
    rows = rows_of(kind)
    assert any(wanted.items() <= row.items() for row in rows)
    changed = [row | cells if wanted.items() <= row.items() else row for row in rows]
    write(root / FOLDER / f"abacus-2026-01-31{kind}.csv", changed)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose pages and figure are what its results give."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for kind in KINDS:
        write(tmp_path / FOLDER / f"abacus-2026-01-31{kind}.csv", rows_of(kind))
    (tmp_path / "docs").mkdir()
    marks = "<!-- generated: {} -->\n<!-- end -->\nby hand\n"
    (tmp_path / "README.md").write_text(marks.format("training"))
    (tmp_path / "docs" / "performance.md").write_text("".join(map(marks.format, ["figures", *KINDS.values()])))
    update(tmp_path)
    return tmp_path


def update(root: Path) -> str:
    """Draws and writes all; returns the page with all tables."""
    assert pages.main([]) == 0
    return (root / "docs" / "performance.md").read_text()


def row_of(text: str, name: str) -> str:
    """The first line of a table that begins with `name`."""
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_tables_are_the_results(root):
    text = (root / "docs" / "performance.md").read_text()
    # 256 and 64 latents, 300 and 30 microseconds each; 0.1 and 0.01 MiB per latent
    assert row_of(text, "upstream") == "| upstream | 76.8 ms (1.00x) | 19.2 ms (1.00x) | 31.2 MiB |"
    assert row_of(text, "cpp") == "| cpp | 7.68 ms (10.0x) | 1.92 ms (10.0x) | 3.12 MiB |"
    assert row_of(text, "patched") == "| patched | 50.0 ms (2.00x) | 50.0 ms (2.00x) | - |"
    assert row_of(text, "ours") == "| ours | 500 ms (2.00x) | 8.00 MiB | 2.00 s (2.00x) | 8.00 MiB |"
    host = text.partition("generated: hostcost")[2]
    assert row_of(host, "cpp") == "| cpp | 50.0 µs (4.00x) | 100 µs (2.00x) | - |"
    assert text.count("by hand") == 1 + len(KINDS)
    assert text.count("an abacus, 2 threads · torch 2.0 · ladder_kernels 0.1 · 2026-01-31") == len(KINDS)
    assert f"](../{FIGURE})" in text
    assert f"]({FOLDER}/abacus-2026-01-31-train.csv)" in (root / "README.md").read_text()


CHANGES = (
    ("", {"case": "level 8x8 b2", "provider": "cpp"}, ["docs/performance.md"]),
    ("", {"case": "sweep 2^10", "provider": "cpp"}, ["docs/performance.md", FIGURE]),  # the first is undone
    ("-train", {"variant": "patched"}, ["README.md", "docs/performance.md"]),
    ("-hostcost", {"who": "cpp"}, ["docs/performance.md"]),
)


def test_a_changed_number_fails_the_check_and_is_then_shown(root):
    assert pages.faults() == []
    for kind, wanted, stale in CHANGES:
        change(root, kind, wanted, {"median_ms": 7} if kind == "-train" else {"median_us": 7})
        assert [fault.partition(":")[0] for fault in pages.faults()] == stale
        assert pages.main(["--check"]) == 1
        update(root)
        assert pages.main(["--check"]) == 0


def test_a_figure_or_a_page_that_is_not_what_the_results_give_fails_the_check(root, capsys):
    (root / FIGURE).rename(root / FOLDER / "old.png")
    page = root / "docs" / "performance.md"
    page.write_text(page.read_text().replace("by hand", "edited").replace("7.68 ms", "6.68 ms"))
    found = [fault.partition(": ")[::2] for fault in pages.faults()]
    assert found == [
        ("docs/performance.md", "out of date; run `make readme`"),
        (FIGURE, "out of date; run `make readme`"),
        (f"{FOLDER}/old.png", "no results file gives it; remove it"),
    ]
    page.write_text(page.read_text().replace("generated: kernels", "generated: nothing"))
    with pytest.raises(SystemExit):
        pages.main(["--check"])
    assert "generates 'nothing', expected one of ['figures'" in capsys.readouterr().err


def test_what_is_not_ok_has_no_time_and_is_not_drawn(root):
    change(root, "", {"provider": "cpp", "pass": "step"}, {"status": "wrong"})
    assert row_of(update(root), "cpp").startswith("| cpp | **wrong** | **wrong** |")
    (results,) = figures.drawable([root / FOLDER / "abacus-2026-01-31.csv"])
    lines = {line.get_label(): line for line in figures.draw(figures.swept(results)).axes[2].get_lines()}
    assert "cpp" not in lines
    assert list(lines["upstream"].get_xdata()) == [256, 1024]
    assert list(lines["upstream"].get_ydata()) == pytest.approx([256 * 300e-6, 1024 * 300e-6])
    assert list(lines[figures.LEAST].get_ydata()) == pytest.approx([256 * 2e-9, 1024 * 2e-9])


def test_only_the_newest_of_a_machine_is_told(root):
    for name in ("abacus-2025-12-01", "slide-rule-2025-12-01"):
        write(root / FOLDER / f"{name}.csv", kernel_rows())
    names = [results.path.stem for results in newest(map(read, find(root / FOLDER))) if results.kind == ""]
    assert names == ["abacus-2026-01-31", "slide-rule-2025-12-01"]
