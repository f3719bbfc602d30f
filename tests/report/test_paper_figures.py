"""Figures for papers: the width of a column, 7 pt type that stays type, nothing cut off, the same bytes each time."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.figures import figure_style, parallel_figures
from medmllm_plugins.report.figures.figure_style import (
    Drawing,
    SeriesMarks,
    finish,
    panel_grid,
    series_style,
    style,
)
from medmllm_plugins.report.figures.interactive import new_plot, to_json
from medmllm_plugins.report.figures.paper_layout import PAPER_WIDTHS, RESOLUTION
from medmllm_plugins.report.figures.parallel_figures import FailedFigure, draw_all
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import build_section

LONG = "a method of many words, such as are in the names of checkpoints and of their options"


def lines(number: int = 0, *, names: Sequence[str] = ("medm_vl (demo)", LONG)) -> Drawing:
    """Draw a figure as the page's are drawn: rows with names, and a legend below."""
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    for index, name in enumerate(names):
        marks(index, axes.plot([1, 2], [index, index + 0.5], label=name, **series_style(index)))
    axes.set_yticks(range(len(names)), list(names))
    axes.set_xlabel("accuracy, percent")
    marks.legend(figure, axes)
    return finish(figure, "toy.mapping", number=number, data_set="Toy", models=[(name, "kind", 0.1) for name in names])


def panels(count: int, number: int = 0) -> Drawing:
    figure = panel_grid(count, 4, lambda axes, index: axes.set_title(f"model {index}"), size=(2.5, 2.6))
    return finish(figure, "toy.reliability", number=number, data_set="Toy", errors=[("a", 0.1)])


def drawn(job: partial[Drawing], width_mm: int) -> Drawing:
    with style(width_mm):
        return job()


@pytest.mark.parametrize("width_mm", PAPER_WIDTHS)
def test_each_file_has_the_width_of_the_column(width_mm: int) -> None:
    files = drawn(partial(lines), width_mm).files
    assert set(files) == {f"-{width_mm}mm.{ending}" for ending in ("pdf", "svg", "png")}
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", files[f"-{width_mm}mm.pdf"])
    assert box is not None and float(box[1]) == pytest.approx(width_mm / 25.4 * 72, abs=0.1)
    root = ET.fromstring(files[f"-{width_mm}mm.svg"])
    assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx(width_mm / 25.4 * 72, abs=0.1)
    picture = Image.open(io.BytesIO(files[f"-{width_mm}mm.png"]))
    assert picture.width == pytest.approx(width_mm / 25.4 * RESOLUTION, abs=1)
    assert picture.info["dpi"][0] == pytest.approx(RESOLUTION, abs=0.1)


def test_type_is_7_points_and_stays_type() -> None:
    files = drawn(partial(lines), 88).files
    svg, pdf = files["-88mm.svg"].decode(), files["-88mm.pdf"]
    sizes = {float(size) for size in re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", svg)}
    # An SVG of matplotlib has 72 units an inch, so that its pixels are points.
    assert sizes == {7.0} and "medm_vl (demo)" in svg
    assert b"/Type3" not in pdf and b"/FontFile2" in pdf


def test_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each text of each figure of a page lies within the figure, at both widths."""
    outside: list[str] = []
    original = figure_style.paper_files

    def check(figure: Figure, title: str, stem: str) -> dict[str, bytes]:
        files = original(figure, title, stem)
        figure.set_dpi(RESOLUTION)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        width, height = figure.get_size_inches() * RESOLUTION
        left_out = labels_of_no_tick(figure)
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible() and text not in left_out:
                box = text.get_window_extent(renderer)
                if box.x0 < -2 or box.y0 < -2 or box.x1 > width + 2 or box.y1 > height + 2:
                    outside.append(f"{stem} at {width:.0f}: {text.get_text()!r} {box}")
        return files

    monkeypatch.setattr(figure_style, "paper_files", check)
    labels = [f"class {index:02d}" for index in range(9)]
    made = Folder(tmp_path / "a", "a-model-with-a-rather-long-name").answers("med_probe_toy", outcomes())
    made.probes("med_probe_toy", layers=28)
    many = Folder(tmp_path / "b", "model-b").answers(
        "med_cls_toy", outcomes(count=300, labels=labels), labels=labels, dataset="many"
    )
    for dataset in collect_runs([made.folder, many.folder]).datasets:
        jobs = [partial(job, 0) for job in build_section(dataset).figure_jobs().values()]
        assert not [item for item in draw_all(jobs, workers=1) if isinstance(item, FailedFigure)]
    drawn(partial(lines), 88), drawn(partial(lines), 180), drawn(partial(panels, 5), 88)
    assert outside == []


def labels_of_no_tick(figure: Figure) -> list[Text]:
    """Return the labels of ticks beyond the limits of their axis, which are not drawn."""
    return [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]


def test_a_legend_takes_more_lines_in_a_column_and_keeps_its_names() -> None:
    svg = drawn(partial(lines, names=[f"model with number {index}" for index in range(4)]), 88).files["-88mm.svg"]
    words = ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert [words.count(f"model with number {index}") for index in range(4)] == [2] * 4  # a row each, a legend


def test_labels_of_layers_do_not_overlap() -> None:
    names = ["embed", *map(str, range(40)), "norm"]

    def layers(number: int = 0) -> Drawing:
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xticks(range(len(names)), names)
        return finish(figure, "toy.reliability", number=number, data_set="Toy", errors=[])

    svg = drawn(partial(layers), 88).files["-88mm.svg"]
    words = ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    kept = [name for name in names if name in words]
    assert {"embed", "norm"} <= set(kept) and 10 < len(kept) < 30


def test_figures_appear_at_the_widths_that_suit_them() -> None:
    assert not drawn(partial(panels, 1), 180).files  # it gains nothing from two columns
    assert drawn(partial(panels, 1), 88).files and drawn(partial(panels, 4), 180).files
    tall, wide = (drawn(partial(panels, 4), width).files[f"-{width}mm.png"] for width in PAPER_WIDTHS)
    shapes = [Image.open(io.BytesIO(content)) for content in (tall, wide)]
    assert shapes[0].height > shapes[0].width and shapes[1].height < shapes[1].width

    def three_across(number: int = 0) -> Drawing:
        figure = Figure(figsize=(7.6, 2.5), layout="constrained")
        figure.subplots(1, 3)
        return finish(figure, "toy.reliability", number=number, data_set="Toy", errors=[])

    assert not drawn(partial(three_across), 88).files and drawn(partial(three_across), 180).files


def test_the_page_is_drawn_at_its_own_size_and_interactive_and_paper_is_not() -> None:
    def job() -> Drawing:
        figure = Figure(figsize=(3.9, 1))
        return finish(figure, "toy.reliability", number=3, interactive=to_json(new_plot(90), 3), data_set="", errors=[])

    (drawing,) = draw_all([job])
    assert isinstance(drawing, Drawing) and drawing.interactive and drawing.inline and set(drawing.files)
    assert drawing.width == round(3.9 * 96) and not drawn(partial(job), 88).interactive


def test_one_that_fails_on_paper_alone_stays_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_style, "fit", lambda *_: 1 / 0)
    (failed,) = draw_all([lines])
    assert isinstance(failed, FailedFigure) and "division by zero" in failed.error
    assert failed.drawing is not None and failed.drawing.inline and not failed.drawing.files


def test_processes_draw_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_figures, "_MIN_JOBS", 1)
    jobs = [partial(lines, number) for number in range(2)]
    assert draw_all(jobs, workers=2) == draw_all(jobs, workers=1)


def test_files_do_not_depend_on_time_or_hash_seed() -> None:
    code = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]; from report.test_paper_figures import drawn, lines; "
        "files = drawn(lines, 88).files; print([hashlib.sha256(files[name]).hexdigest() for name in sorted(files)])"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parents[1])]
    seeds = ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "SOURCE_DATE_EPOCH": "86400"})
    printed = {
        subprocess.run(words, env=os.environ | seed, check=True, capture_output=True, text=True).stdout
        for seed in seeds
    }
    assert len(printed) == 1
