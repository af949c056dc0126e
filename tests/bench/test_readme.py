"""The README's tables are the results' own numbers, and --check finds what is not."""

from pathlib import Path

import pytest

from bench.report import plots, readme
from bench.report.results import Results, find
from tests.bench.made_up_results import changed, kernel_rows, loss_rows, training_rows, write

NAMES = ("kernels", "training", "audit")
KERNELS, TRAINING = "abacus-2026-01-31.csv", "abacus-2026-01-31-train.csv"
AUDIT = [
    {
        "backend": "triton",
        "target": target,
        "kernel": kernel,
        "options": "stable, philox, p",
        "registers": "40",
        "stack": "0",
        "spills": "0",
    }
    | {"wide_access_share": "0.959", "instructions_per_latent": count}
    for target in ("sm_80", "sm_90")
    for kernel, count in (("forward mc", "60.4"), ("forward analytic", "75.6"), ("backward mc", "70"), ("sample", "33"))
]


def fake_figures(results: Results) -> dict[Path, bytes]:
    """One figure of everything that real ones are drawn from, at no cost."""
    path = results.path.with_name(f"{results.path.stem}-all.svg")
    return {path: repr((results.rows, results.losses)).encode()}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose README and figures are what its results give."""
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    for module in (plots, readme):
        monkeypatch.setattr(module, "figures", fake_figures)
    write(tmp_path / "bench/results/audit.csv", AUDIT)
    write(tmp_path / "bench/results" / KERNELS, kernel_rows())
    write(tmp_path / "bench/results" / TRAINING, training_rows())
    write(tmp_path / "bench/results/abacus-2026-01-31-train-losses.csv", loss_rows())
    marks = "\n\n".join(f"## {name}\n<!-- generated: {name} -->\n<!-- end -->\nby hand" for name in NAMES)
    (tmp_path / "README.md").write_text(marks)
    update(tmp_path)
    return tmp_path


def update(root: Path) -> str:
    """Draws and writes all; returns the README."""
    plots.main([str(path) for path in find(root / "bench/results")])
    assert readme.main([]) == 0
    return (root / "README.md").read_text()


def row_of(text: str, name: str) -> str:
    """The first line of a table that begins with `name`."""
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |"))


def test_the_tables_are_the_results(root):
    text = (root / "README.md").read_text()
    # 256 and 64 latents, 300 and 30 microseconds each; 0.1 and 0.01 MiB per latent
    assert row_of(text, "upstream") == "| upstream | 76.8 ms (1.00x) | 19.2 ms (1.00x) | 31.2 MiB |"
    assert row_of(text, "cpp") == "| cpp | 7.68 ms (10.0x) | 1.92 ms (10.0x) | 3.12 MiB |"
    assert "| level 8x8 b2 | cpp | 2.56 ms | 5.12 ms | 7.68 ms | 10.0x | 4.00x | 2.50 MiB |" in text
    assert row_of(text, "patched") == "| patched | fp32 | 50.0 ms (2.00x) | 50.0 ms (2.00x) | - | -0.5 |"
    assert row_of(text, "forward, instructions per latent").endswith("| 60 to 76 | 60 to 76 |")
    assert row_of(text, "traffic in 128-bit accesses, at least").endswith("| 95 % | 95 % |")
    assert (
        text.count("an abacus, 2 threads · torch 2.0 · careamics 0.3 · ladder_kernels 0.1 (abcdef) · 2026-01-31") == 2
    )
    assert text.count("by hand") == len(NAMES)


def test_every_figure_is_shown(root):
    text = (root / "README.md").read_text()
    drawn = [path.relative_to(root).as_posix() for path in root.glob("bench/results/*.svg")]
    assert len(drawn) == 2
    for path in drawn:
        assert text.count(f"]({path})") == 1


def test_writing_twice_changes_nothing_and_the_check_passes(root, capsys):
    before = (root / "README.md").read_text()
    assert update(root) == before
    capsys.readouterr()
    assert readme.main(["--check"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


STEP = {"case": "level 8x8 b2", "provider": "cpp", "pass": "step"}


def test_a_changed_number_fails_the_check(root, capsys):
    write(root / "bench/results" / KERNELS, changed(kernel_rows(), STEP, {"median_us": "7000"}))
    before = (root / "README.md").read_text()
    capsys.readouterr()
    assert readme.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md, table kernels: out of date; run `make readme`",
        "bench/results/abacus-2026-01-31-all.svg: out of date; run `make plots`",
    ]
    assert (root / "README.md").read_text() == before
    assert "7.00 ms" in update(root)
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("file", "rows", "complaints"),
    [
        (
            TRAINING,
            changed(training_rows(), {"variant": "patched"}, {"median_ms": "7"}),
            ["table training", "train-all.svg: out of date"],
        ),
        ("audit.csv", changed(AUDIT, {"kernel": "sample"}, {"instructions_per_latent": "34"}), ["table audit"]),
        ("abacus-2026-01-31-train-losses.csv", loss_rows()[:-1], ["train-all.svg: out of date"]),
    ],
)
def test_each_file_is_checked(root, capsys, file, rows, complaints):
    write(root / "bench/results" / file, rows)
    capsys.readouterr()
    assert readme.main(["--check"]) == 1
    found = capsys.readouterr().out.splitlines()
    assert len(found) == len(complaints)
    for line, complaint in zip(found, complaints, strict=True):
        assert complaint in line


def test_a_figure_that_is_missing_stale_or_left_over_fails_the_check(root, capsys):
    results = root / "bench/results"
    (results / "abacus-2026-01-31-all.svg").unlink()
    (results / "abacus-2026-01-31-train-all.svg").write_text("<svg/>")
    (results / "old.svg").write_text("<svg/>")
    capsys.readouterr()
    assert readme.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "bench/results/abacus-2026-01-31-all.svg: missing; run `make plots`",
        "bench/results/abacus-2026-01-31-train-all.svg: out of date; run `make plots`",
        "bench/results/old.svg: no results file gives it; remove it",
    ]


def test_a_hand_edit_inside_the_marks_fails_the_check(root, capsys):
    path = root / "README.md"
    path.write_text(path.read_text().replace("7.68 ms", "6.68 ms"))
    assert readme.main(["--check"]) == 1
    path.write_text(path.read_text().replace("6.68 ms", "7.68 ms").replace("by hand", "edited"))
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_what_is_not_ok_is_told_without_a_time(root, status):
    cells = {"status": status, "reason": "z differs\nby 7"}
    write(root / "bench/results" / KERNELS, changed(kernel_rows(), STEP, cells))
    text = update(root)
    assert row_of(text, "cpp") == f"| cpp | **{status}** | 1.92 ms (10.0x) | 3.12 MiB |"
    assert f"| level 8x8 b2 | cpp | 2.56 ms | 5.12 ms | **{status}** | - | - | 2.50 MiB |" in text
    assert f"- cpp: {status} (level 8x8 b2 step): z differs by 7" in text


def test_slower_is_told_too(root):
    write(root / "bench/results" / KERNELS, changed(kernel_rows(), STEP, {"median_us": "153600"}))
    assert "| cpp | 154 ms (0.500x) |" in update(root)


def test_what_cannot_run_here_has_no_line(root):
    skipped = {"status": "skipped", "reason": "there is no GPU"}
    rows = kernel_rows()
    rows += [row | skipped | {"provider": "cuda"} for row in rows if row["provider"] == "cpp" and row["pass"] == "step"]
    text = update_with(root, rows)
    assert "| cuda |" not in text
    assert "- cuda: skipped (level 8x8 b2 step, level 4x4 b2 step, sweep 2^8 step and 1 more): there is no GPU" in text


def update_with(root: Path, rows: list[dict[str, str]]) -> str:
    write(root / "bench/results" / KERNELS, rows)
    return update(root)


def test_cuda_graphs_are_compared_with_a_compiled_graph_alone(root):
    rows = kernel_rows()
    graphs = [row | {"mode": "graph"} for row in rows if row["provider"] == "cpp"]
    text = update_with(root, rows + graphs)
    assert "| level 8x8 b2 | cpp, CUDA graph | 2.56 ms | 5.12 ms | 7.68 ms | 10.0x | - | 2.50 MiB |" in text


def test_other_kinds_of_levels_stay_out_of_the_table(root):
    rows = kernel_rows()
    others = [row | {"case": "level 8x8 b32", "batch": "32"} for row in rows if row["case"] == "level 8x8 b2"]
    assert "b32" not in update_with(root, rows + others)


def test_only_the_newest_of_a_machine_is_told(root):
    write(root / "bench/results/abacus-2025-12-01.csv", changed(kernel_rows(), STEP, {"median_us": "7000"}))
    text = update(root)
    assert "2025-12-01" not in text
    assert "7.00 ms" not in text


def test_without_results_the_readme_says_so(root):
    for path in root.glob("bench/results/abacus*"):
        path.unlink()
    assert readme.main([]) == 0
    assert (root / "README.md").read_text().count(readme.NOT_MEASURED) == 2
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize("change", [("generated: kernels", "kernels"), ("generated: kernels", "generated: audit")])
def test_marks_that_do_not_fit_are_one_line(root, capsys, change):
    path = root / "README.md"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(SystemExit) as exit_info:
        readme.main(["--check"])
    assert exit_info.value.code == 2
    assert "expected each of ['audit', 'kernels', 'training'] once" in capsys.readouterr().err
