"""The figures show what the results files say, in the same bytes every time, on white and on dark pages."""

from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from bench.report import figure_style, plots
from bench.report.kernel_figures import kernel_figures
from bench.report.results import find, newest, read
from bench.report.training_figures import training_figures
from tests.bench.made_up_results import SECONDS, changed, kernel_rows, loss_rows, training_rows, write

KERNELS, TRAINING = "abacus-2026-01-31.csv", "abacus-2026-01-31-train.csv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / KERNELS, kernel_rows())
    write(tmp_path / TRAINING, training_rows())
    write(tmp_path / "abacus-2026-01-31-train-losses.csv", loss_rows())
    write(tmp_path / "audit.csv", [{"target": "sm_90"}])
    return tmp_path


def curves(axes) -> dict[str, object]:
    """The drawn lines by colour, in the order of drawing."""
    return {line.get_color(): line for line in axes.get_lines()}


def texts(figure) -> str:
    return "\n".join(text.get_text() for part in (figure, *figure.axes) for text in part.texts)


def test_every_results_file_gets_its_figures_and_no_other(folder, capsys):
    assert plots.main([str(path) for path in find(folder)]) == 0
    expected = {"time", "share", "memory", "train-time", "train-losses"}
    assert {path.name for path in folder.glob("*.svg")} == {f"abacus-2026-01-31-{name}.svg" for name in expected}
    assert len(capsys.readouterr().out.split()) == len(expected)


def test_equal_files_give_equal_bytes_and_others_do_not(folder):
    before = plots.figures(read(folder / KERNELS))
    assert plots.figures(read(folder / KERNELS)) == before
    wanted = {"case": "sweep 2^10", "provider": "cpp", "pass": "step"}
    write(folder / KERNELS, changed(kernel_rows(), wanted, {"median_us": "7"}))
    after = plots.figures(read(folder / KERNELS))
    assert [path.stem.rsplit("-", 1)[1] for path in before if after[path] != before[path]] == ["time"]


def test_figures_have_no_date_and_no_background(folder):
    for content in plots.figures(read(folder / KERNELS)).values():
        assert b"<dc:date>" not in content
        assert b"fill: #ffffff" not in content


def test_time_is_drawn_as_measured_with_the_own_line_last(folder):
    figure = kernel_figures(read(folder / KERNELS))["time"]
    assert [axes.get_title() for axes in figure.axes] == ["forward", "backward", "step"]
    axes = figure.axes[2]
    lines = curves(axes)
    assert list(lines)[-1] == figure_style.OUR_COLOUR
    assert lines[figure_style.OUR_COLOUR].get_zorder() >= max(line.get_zorder() for line in axes.get_lines())
    assert list(lines[figure_style.OUR_COLOUR].get_xdata()) == [256, 1024]
    assert lines[figure_style.OUR_COLOUR].get_ydata() == pytest.approx([30e-6 * 256, 30e-6 * 1024])
    assert lines[figure_style.UPSTREAM_COLOUR].get_ydata() == pytest.approx([300e-6 * 256, 300e-6 * 1024])
    # 20 bytes a latent at 10 GB/s
    assert lines[figure_style.GREY].get_ydata() == pytest.approx([2e-9 * 256, 2e-9 * 1024])
    assert [text.get_text() for text in axes.texts] == ["copying its bytes", "cpp", "upstream, compiled", "upstream"]


def test_share_and_memory_are_drawn_as_measured(folder):
    figures = kernel_figures(read(folder / KERNELS))
    lines = curves(figures["share"].axes[0])
    assert list(lines) == [figure_style.PURPLE, figure_style.OUR_COLOUR]
    assert lines[figure_style.OUR_COLOUR].get_xdata() == pytest.approx([0.1, 0.1])
    assert [axes.get_title() for axes in figures["memory"].axes] == ["kept for backward"]
    lines = curves(figures["memory"].axes[0])
    assert list(lines) == [figure_style.UPSTREAM_COLOUR, figure_style.PURPLE, figure_style.OUR_COLOUR]
    assert lines[figure_style.UPSTREAM_COLOUR].get_xdata() == pytest.approx([25, 6.25])


@pytest.mark.parametrize("status", ["wrong", "failed", "skipped"])
def test_what_is_not_ok_is_not_drawn_but_counted(folder, status):
    wanted = {"case": "sweep 2^10", "provider": "cpp"}
    write(folder / KERNELS, changed(kernel_rows(), wanted, {"status": status, "reason": "because"}))
    figure = kernel_figures(read(folder / KERNELS))["time"]
    assert list(curves(figure.axes[0])[figure_style.OUR_COLOUR].get_xdata()) == [256]
    assert f"not drawn: 3 {status}; why: {KERNELS}" in texts(figure)


def test_a_cuda_graph_is_a_line_of_its_own(folder):
    graph = [row | {"mode": "graph"} for row in kernel_rows() if row["provider"] == "cpp"]
    write(folder / KERNELS, kernel_rows() + graph)
    axes = kernel_figures(read(folder / KERNELS))["time"].axes[2]
    assert [line.get_linestyle() for line in axes.get_lines()][-2:] == ["-", "--"]
    assert "cpp, graph" in [text.get_text() for text in axes.texts]


def test_figures_say_on_what_when_and_with_which_versions(folder):
    for results in map(read, find(folder)):
        make = training_figures if results.kind else kernel_figures
        for figure in make(results).values():
            for part in ("an abacus, 2 threads", "torch 2.0", "ladder_kernels 0.1 (abcdef)", "2026-01-31"):
                assert part in texts(figure)
            assert "triton" not in texts(figure)


def test_training_bars_and_losses_are_drawn_as_measured(folder):
    failed = changed(training_rows(), {"variant": "upstream, compiled", "pass": "train"}, {"status": "failed"})
    write(folder / TRAINING, failed)
    figures = training_figures(read(folder / TRAINING))
    axes = figures["time"].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [100, 50]
    assert [text.get_text().strip() for text in axes.texts] == ["100 ms", "failed", "50 ms"]
    losses = figures["losses"].axes[0].get_lines()
    assert [line.get_color() for line in losses] == [figure_style.UPSTREAM_COLOUR, figure_style.OUR_COLOUR]
    assert losses[-1].get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert losses[-1].get_linewidth() < losses[0].get_linewidth()


def test_without_a_sweep_or_losses_there_is_no_such_figure(tmp_path):
    write(tmp_path / KERNELS, [row for row in kernel_rows() if row["case"].startswith("level")])
    write(tmp_path / TRAINING, training_rows())
    assert set(kernel_figures(read(tmp_path / KERNELS))) == {"share", "memory"}
    assert set(training_figures(read(tmp_path / TRAINING))) == {"time"}


def test_labels_at_line_ends_keep_apart(folder):
    close = dict.fromkeys(SECONDS, 10.0)
    rows = [row | {"median_us": str(close[row["provider"]] * int(row["latents"]))} for row in kernel_rows()]
    write(folder / KERNELS, rows)
    heights = sorted(text.get_position()[1] for text in kernel_figures(read(folder / KERNELS))["time"].axes[-1].texts)
    gaps = [above - below for below, above in pairwise(heights)]
    assert min(gaps) >= figure_style.LABEL_GAP - 1e-9


def luminance(colour: str) -> float:
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"], ids=["white", "dark"])
def test_colours_are_seen_on_white_and_on_dark_pages(page):
    for name, least in {"GREY": 4, "UPSTREAM_COLOUR": 3, "OUR_COLOUR": 3, "PURPLE": 3, "GREEN": 3}.items():
        pair = luminance(getattr(figure_style, name)) + 0.05, luminance(page) + 0.05
        assert max(pair) / min(pair) >= least, name


def test_the_newest_of_each_machine_and_kind(folder):
    write(folder / "abacus-2025-12-01.csv", kernel_rows())
    write(folder / "slide-rule-2025-12-01.csv", kernel_rows())
    names = [results.path.name for results in newest(map(read, find(folder)))]
    assert names == [KERNELS, TRAINING, "slide-rule-2025-12-01.csv"]


@pytest.mark.parametrize(
    ("name", "rows", "complaint"),
    [
        ("abacus.csv", kernel_rows(), "expected a name like <machine>-2026-01-31.csv"),
        (KERNELS, [{"case": "level"}], "lacks the columns batch, bytes"),
        (TRAINING, kernel_rows(), "lacks the columns final_loss"),
    ],
)
def test_a_file_that_is_no_results_file_is_one_line(tmp_path, capsys, name, rows, complaint):
    with pytest.raises(SystemExit) as exit_info:
        plots.main([str(write(tmp_path / name, rows))])
    assert exit_info.value.code == 2
    complained = capsys.readouterr().err
    assert complaint in complained
    assert complained.count("\n") == 1
