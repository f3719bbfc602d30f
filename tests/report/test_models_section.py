"""Models compared: the ranking, the compact table, and paired differences with Holm's correction."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.assemble import Report, build_report
from medmllm_plugins.report.figures import accuracy_figure
from medmllm_plugins.report.figures.figure_style import MUTED, style
from medmllm_plugins.report.model_comparison import COMPACT
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.run_pairs import model_differences
from medmllm_plugins.report.sections import DatasetSection
from medmllm_plugins.results.comparison import compare, holm


def report_of(*folders: Folder) -> Report:
    return build_report(collect_runs([folder.folder for folder in folders]))


def page_of(*folders: Folder) -> tuple[str, Report]:
    """The page, and the report that it shows."""
    path = folders[0].folder.parent / "page" / "report.html"
    report = write_report([folder.folder for folder in folders], path)
    return path.read_text(encoding="utf-8"), report


def section_of(*folders: Folder) -> DatasetSection:
    (section,) = report_of(*folders).sections
    return section


def three(tmp_path: Path) -> list[Folder]:
    """Two models, one with controls and another protocol, and a reference classifier between them."""
    first = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes(skill=1.0, seed=1))
    first.answers("med_cls_toy:image=blank", outcomes(skill=3, seed=5), image="blank")
    first.answers("med_cls_toy_letter", outcomes(skill=3, seed=6), protocol="letter")
    second = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(skill=3.0, seed=2))
    reference = Folder(tmp_path / "c", "baseline pixels", baseline="pixels")
    return [first, second, reference.answers("med_cls_toy", outcomes(skill=2.0, seed=3))]


@pytest.mark.usefixtures("without_figures")
def test_models_are_sorted_and_controls_are_not_ranked(tmp_path: Path) -> None:
    comparison = section_of(*three(tmp_path)).evidence.comparison
    labels = [model.result.subject.label for model in comparison.models]
    assert labels == ["model-b (tiny)", "baseline pixels", "model-a (tiny)"]
    assert [row[0] for row in comparison.table.rows] == labels and comparison.ranked
    assert [row[-1] for row in comparison.table.rows] == ["med_cls_toy"] * 3
    assert [row[-1] for row in comparison.other_tasks.rows] == ["med_cls_toy_letter"]


@pytest.mark.usefixtures("without_figures")
def test_the_page_has_few_columns_and_the_file_has_all(tmp_path: Path) -> None:
    section = section_of(*three(tmp_path))
    assert [column.name for column in section.evidence.comparison.table.columns] == list(COMPACT)
    rows = list(csv.DictReader(io.StringIO(section.tables["metrics"].csv())))
    assert {row["task"] for row in rows} == {"med_cls_toy", "med_cls_toy_letter", "med_cls_toy:image=blank"}
    assert {"guess", "ece", "brier", "auprc"} <= set(rows[0])


def test_both_figures_show_the_same_rows(tmp_path: Path) -> None:
    section = section_of(*three(tmp_path))
    drawing = section.figures["accuracy"]
    for model in section.evidence.comparison.models:
        shown = f"{100 * model.accuracy.value:.1f}%"
        assert shown in drawing.svg and f'"{shown}"' in drawing.interactive
        assert f'"{model.result.subject.label}"' in drawing.interactive
    assert drawing.interactive.count('"series-0"') > 3
    assert "most common class" in drawing.svg and "most common class" in drawing.interactive
    assert "Grey: reference classifiers." in drawing.caption


def test_reference_classifiers_have_no_colour_of_a_model(tmp_path: Path) -> None:
    section = section_of(*three(tmp_path))
    chart = accuracy_figure.accuracy_chart(section.evidence.comparison)
    reference = next(row for row in chart.rows if row.subject is not None and row.subject.reference)
    with style():
        drawing = accuracy_figure.accuracies(section.dataset, section.evidence.comparison, 0)
    assert drawing is not None and reference.subject is not None
    blocks = re.findall(rf'data-series="{reference.subject.number}">(.*?)</g>', drawing.inline, re.DOTALL)
    assert blocks and not any("var(--series-" in block for block in blocks)
    assert MUTED in drawing.interactive


def test_a_single_model_has_a_row_and_no_figure(tmp_path: Path) -> None:
    one_model, _, reference = three(tmp_path)
    html, report = page_of(one_model, reference)
    drawing = report.sections[0].figures["accuracy"]
    assert drawing.inline == "" and drawing.interactive == "" and drawing.svg
    models = html[html.index('<section id="models"') : html.index('<section id="probabilities"')]
    assert "<figure" not in models and "toy: metrics" in models


def test_p_values_are_those_of_compare_and_corrected_by_holm(tmp_path: Path) -> None:
    rows = [outcomes(skill=skill, seed=seed) for skill, seed in ((2.0, 1), (1.9, 2), (0.2, 3))]
    made = [Folder(tmp_path / str(index), f"model-{index}") for index in range(3)]
    for folder, answers in zip(made, rows, strict=True):
        folder.answers("med_cls_toy", answers)
    (dataset,) = collect_runs([folder.folder for folder in made]).datasets
    pairs = model_differences(dataset)
    for pair in pairs:
        first, second = (int(side.subject.label[6]) for side in (pair.first, pair.second))
        assert pair.p == pytest.approx(compare(rows[second], rows[first]).p, abs=0.01)
    ranked = sorted(pairs, key=lambda pair: pair.p)
    assert ranked[0].p_holm == pytest.approx(min(1, 3 * ranked[0].p))
    assert ranked[1].p_holm == pytest.approx(min(1, max(3 * ranked[0].p, 2 * ranked[1].p)))
    assert ranked[2].p_holm == pytest.approx(max(ranked[1].p_holm, ranked[2].p))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.usefixtures("without_figures")
def test_differences_are_folded_and_say_how_they_are_corrected(tmp_path: Path) -> None:
    html, report = page_of(*three(tmp_path))
    table = report.sections[0].tables["differences"]
    assert "Holm" in table.note and [column.name for column in table.columns[-2:]] == ["p", "p_holm"]
    (details,) = re.findall(r'<details[^>]*id="table-toy.differences"[^>]*>', html)
    assert "open" not in details


@pytest.mark.usefixtures("without_figures")
def test_pairs_without_shared_questions_have_no_p_value(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes())
    other = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=3)[:30])
    (other.folder / "med_cls_toy.outcomes.jsonl").unlink()
    (row,) = csv.DictReader(io.StringIO(section_of(made, other).tables["differences"].csv()))
    assert row["p"] == row["p_holm"] == ""
