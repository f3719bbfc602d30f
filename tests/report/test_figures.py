"""Figures show what they say: every model, every class, every chance, and letters in any script."""

from __future__ import annotations

import json
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from support.run_folders import Folder, outcomes

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.report import assemble
from medmllm_plugins.report.evidence import evidence_figures
from medmllm_plugins.report.figures import attribution_figures, health_figure, mapping_figures
from medmllm_plugins.report.figures import figure_style as drawing_module
from medmllm_plugins.report.figures.count_matrix import CountMatrix, confusion_matrix, draw_matrices, legible, luminance
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult, collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.tables import answer_tables
from medmllm_plugins.report.verdict import verdicts
from medmllm_plugins.results.manifest import Manifest, TaskEntry
from medmllm_plugins.results.metric_files import read_metrics
from medmllm_plugins.results.run_reader import RunFolder, TaskRun
from medmllm_plugins.utils.json_values import clean

SVG = "{http://www.w3.org/2000/svg}"


def dataset_of(*folders: Folder) -> DatasetRuns:
    (dataset,) = collect_runs([folder.folder for folder in folders]).datasets
    return dataset


def probed(folder: Path, name: str, *, seed: int = 0, layers: int = 24, **changed: Any) -> Folder:
    """A probed model, with other entries in its analysis."""
    made = Folder(folder, name).answers("med_probe_toy", outcomes(seed=seed))
    made.probes("med_probe_toy", layers=layers, seed=seed)
    path = made.folder / "med_probe_toy.probes.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), encoding="utf-8")
    return made


def words(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_each_number_of_classes_has_its_chance(tmp_path: Path) -> None:
    two = probed(tmp_path / "b", "model-b", labels=["no", "yes"], chance=0.5)
    dataset = dataset_of(probed(tmp_path / "a", "model-a"), two)
    with style():
        drawing = mapping_figures.lens(dataset, 1)
    assert drawing is not None
    said = words(drawing.svg)
    assert "chance, 2 classes" in said and "chance, 3 classes" in said


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=5, unique_by=clean))
def test_classes_keep_their_names_in_a_confusion_matrix(names: list[str]) -> None:
    kinds = ["(ambiguous)", "(out_of_list)", "(refusal)"]
    counts = [[1] * (len(names) + len(kinds)) for _ in names]
    metrics = {"confusion": {"rows": names, "columns": [*names, *kinds], "counts": counts}}
    matrix = confusion_matrix(result_of(read_metrics(metrics)))
    assert matrix is not None
    assert matrix.columns[: len(names)] == matrix.rows == [clean(name) for name in names]
    assert matrix.columns[len(names) :] == ["ambiguous", "out of list", "refusal"]


def result_of(summary: AnySummary | None) -> TaskResult:
    """A task with these figures of its answers."""
    task = TaskRun("med_cls_toy", TaskEntry(), summary, (), (), None, None, ())
    run = RunFolder(Path("run"), Manifest(), (task,), {}, ())
    return TaskResult(Subject(0, "model-a", (run,)), run, task)


def test_a_hidden_model_leaves_no_name_in_a_figure(tmp_path: Path) -> None:
    dataset = dataset_of(*(all_kinds(tmp_path / str(turn), turn) for turn in range(2)))
    evidence = build_section(dataset).evidence
    draws = [
        # Curves of the classes of one model are hidden as a whole.
        *(draw for name, draw in evidence_figures(dataset, evidence).items() if not name.startswith("roc ")),
        *(
            partial(draw, dataset)
            for draw in (
                health_figure.health,
                mapping_figures.gains,
                mapping_figures.lens,
                attribution_figures.checks,
                attribution_figures.randomisation,
            )
        ),
    ]
    for number, draw in enumerate(draws):
        with style():
            drawing = draw(number)
        assert drawing is not None, draw
        root = ET.fromstring(drawing.inline)
        for parent in list(root.iter()):
            for node in list(parent):
                if node.attrib.get("data-series") == "0":
                    parent.remove(node)
        left = words(ET.tostring(root, encoding="unicode"))
        assert not any("model-0" in item for item in left), (drawing.stem, left)
        assert any("model-1" in item for item in left), (drawing.stem, left)


def all_kinds(folder: Path, turn: int) -> Folder:
    """A model with a run of each kind."""
    made = probed(folder, f"model-{turn}", seed=turn, layers=4)
    rows = outcomes(seed=turn)
    made.answers("med_cls_toy", rows).attributions("med_attr_toy")
    columns = {row.document or "": {"scanner": "AB"[index % 2]} for index, row in enumerate(rows)}
    made.folds([(row.document or "", row.group, "test") for row in rows], columns)
    return made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=turn + 5), image="blank")


def test_a_warning_names_letters_without_a_font(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    labels = ("\N{EGYPTIAN HIEROGLYPH A001} one", "two", "three")  # no font of the list has it
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(labels=labels), labels=labels)
    report = assemble.build_report(collect_runs([made.folder]))
    (said,) = [warning for warning in report.notes.warnings if "boxes" in warning]
    assert "\N{EGYPTIAN HIEROGLYPH A001}" in said and "o" not in said.partition(":")[0].partition("has ")[2]
    (roc,) = [drawing for drawing in report.drawings() if drawing.stem == "toy.roc"]
    assert any(labels[0] in item for item in words(roc.svg)) and roc.missing_letters == "\N{EGYPTIAN HIEROGLYPH A001}"
    assert not any("Glyph" in str(item.message) for item in recwarn), "it is on the page, not in the terminal"


def test_a_font_of_another_script_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing_module.fontManager, "ttflist", [SimpleNamespace(name="Noto Sans CJK SC")])
    drawing_module.font_families.cache_clear()
    try:
        assert drawing_module.font_families() == ["DejaVu Sans", "Noto Sans CJK SC"]
    finally:
        drawing_module.font_families.cache_clear()


def test_other_warnings_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with style(), pytest.warns(UserWarning, match="layout"):
        figure = Figure(figsize=(2, 2))
        monkeypatch.setattr(figure, "draw", lambda renderer: warnings.warn("layout failed", stacklevel=1))
        drawing_module.finish(figure, "a.classes", number=0, macro="agreement", data_set="a", matrices=[])


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_counts_are_clear_on_any_shade(back: tuple[float, float, float]) -> None:
    light = [luminance({"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}[legible(back)]), luminance(back)]
    assert (max(light) + 0.05) / (min(light) + 0.05) >= 4.5


def test_counts_in_files_are_written_in_the_clearer_colour() -> None:
    shares = np.array([[56, 44], [25, 75]])
    with style():
        matrix = CountMatrix(result_of(None), ["a", "b"], ["a", "b"], shares)
        figure = draw_matrices([matrix], "#0072b2", column_axis="x", row_axis="y")
    assert {text.get_color() for text in figure.axes[0].texts} == {"black"}  # white on them is 3.3 and less


def test_accuracy_is_the_column_after_the_model(tmp_path: Path) -> None:
    dataset = dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20)))
    table = answer_tables.metrics_table(dataset, verdicts(dataset))
    assert [column.name for column in table.columns[:2]] == ["model", "accuracy"]
    assert all(isinstance(row[1], float | Estimate) for row in table.rows)


@given(st.text(st.characters()))
def test_no_text_turns_the_writing_around_it(value: str) -> None:
    result = clean(value)
    assert not any(unicodedata.bidirectional(item) in TURNING for item in result)
    assert clean(result) == result and len(result) == len(value)


TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
