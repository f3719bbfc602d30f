"""Robustness: changed questions with paired differences, and subgroups from the columns of the data."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.changed_questions import changed_questions
from medmllm_plugins.report.figures import robustness_figures
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.subgroups import subgroups
from medmllm_plugins.report.tables import answer_tables


def dataset_of(*folders: Folder) -> DatasetRuns:
    (dataset,) = collect_runs([folder.folder for folder in folders]).datasets
    return dataset


def all_changes(folder: Path, name: str = "model-a") -> Folder:
    made = Folder(folder, name).answers("med_cls_toy", outcomes(skill=2, seed=1))
    made.answers("med_probe_toy", outcomes(skill=2, seed=1))
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=2), image="blank")
    made.answers("med_cls_toy:image=shuffled", outcomes(skill=0.2, seed=3), image="shuffled")
    made.answers("med_cls_toy_letter", outcomes(skill=1, seed=4), protocol="letter")
    made.answers("med_cls_toy_open", outcomes(skill=1.5, seed=5), protocol="open")
    for seed, (setting, value, noun) in enumerate((("order", "varied", "order"), ("paraphrase", "all", "wording"))):
        rows = [row for turn in range(3) for row in outcomes(skill=2, seed=10 * seed + turn, variant=f"{noun} {turn}")]
        made.answers(f"med_cls_toy:{setting}={value}", rows, **{setting: value})
    return made


def test_every_change_is_compared_with_the_usual_question(tmp_path: Path) -> None:
    changes = changed_questions(dataset_of(all_changes(tmp_path / "a")))
    assert [change.change for change in changes] == [
        "other orders (3)",
        "other wordings (3)",
        "protocol: letters",
        "protocol: open question",
        "blank image",
        "shuffled image",
    ]
    assert {change.usual.task.name for change in changes if change.usual is not None} == {"med_cls_toy"}
    usual = outcomes(skill=2, seed=1)
    correct = np.mean([row.predicted == row.label for row in usual])
    blank = outcomes(skill=0, seed=2)
    change = changes[4]
    assert change.usual_accuracy == pytest.approx(correct) and change.shared == 120
    assert change.difference.value == pytest.approx(np.mean([row.predicted == row.label for row in blank]) - correct)
    assert change.difference.low < change.difference.value < change.difference.high < 0
    differs = [row.predicted != other.predicted for row, other in zip(usual, blank, strict=True)]
    assert change.changed_answers == pytest.approx(np.mean(differs))


def test_orders_count_as_their_mean_and_as_flips(tmp_path: Path) -> None:
    change = changed_questions(dataset_of(all_changes(tmp_path / "a")))[0]
    by_variant = [outcomes(skill=2, seed=turn, variant=f"order {turn}") for turn in range(3)]
    accuracies = [np.mean([row.predicted == row.label for row in rows]) for rows in by_variant]
    assert change.variants == pytest.approx(accuracies) and change.accuracy.value == pytest.approx(np.mean(accuracies))
    assert change.difference.value == pytest.approx(np.mean(accuracies) - change.usual_accuracy)
    answers = [{rows[index].predicted for rows in by_variant} for index in range(120)]
    assert change.changed_answers == pytest.approx(np.mean([len(kinds) > 1 for kinds in answers]))


def test_without_the_usual_question_there_is_no_difference(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy:image=blank", outcomes(skill=0), image="blank")
    dataset = dataset_of(made)
    (change,) = changed_questions(dataset)
    assert change.usual is None and np.isnan(change.difference.value) and np.isnan(change.changed_answers)
    (row,) = robustness_figures.question_chart([change]).rows
    assert row.right == "not compared" and len(row.marks) == 1 and not row.linked
    (record,) = csv.DictReader(io.StringIO(answer_tables.sensitivity_table(dataset, [change]).csv()))
    assert record["difference"] == record["usual_accuracy"] == record["n"] == ""


def test_both_figures_show_dumbbells_with_points_and_changed_answers(tmp_path: Path) -> None:
    dataset = dataset_of(all_changes(tmp_path / "a"), all_changes(tmp_path / "b", "model-b"))
    changes = changed_questions(dataset)
    with style():
        drawing = robustness_figures.changed_question_figure(dataset, changes, 2)
    assert drawing is not None
    chart = robustness_figures.question_chart(changes)
    assert [row.left for row in chart.rows if not row.marks] == ["model-a (tiny)", "model-b (tiny)"]
    blank = next(row for row in chart.rows if row.left == "blank image")
    change = changes[4]
    points = f"{100 * change.difference.value:+.1f}".replace("-", "−")
    assert blank.right == f"{points} points, {100 * change.changed_answers:.0f}%" and blank.linked
    assert [mark.filled for mark in blank.marks] == [True, False]
    orders = chart.rows[1]
    assert [mark.small for mark in orders.marks] == [False, True, True, True, False]
    for row in chart.rows:
        assert row.left in drawing.svg and row.left in drawing.interactive
        assert row.right in drawing.svg and row.right in drawing.interactive
    assert '"series-1"' in drawing.interactive and 'data-series="1"' in drawing.inline


def scanners(count: int) -> Mapping[str, Mapping[str, str]]:
    """Two scanners with many documents and one with four; ages of all."""
    return {
        f"doc-{index:05d}": {
            "scanner": "rare" if index < 4 else ("A", "B")[index % 2],
            "age": str(20 + index % 60),
            "report": f"text {index}",
        }
        for index in range(count)
    }


def with_columns(folder: Path, name: str = "model-a", seed: int = 0) -> Folder:
    rows = outcomes(seed=seed)
    made = Folder(folder, name).answers("med_cls_toy", rows)
    return made.folds([(row.document or "", row.group, "test") for row in rows], scanners(len(rows)))


def test_subgroups_have_the_accuracy_of_their_documents(tmp_path: Path) -> None:
    result = subgroups(dataset_of(with_columns(tmp_path / "a")))
    rows = {row.value: row for row in result.rows if row.column == "scanner"}
    assert list(rows) == ["A", "B"] and result.left_out == ("scanner: rare",) and result.unusable == ("report",)
    columns = scanners(120)
    for value, row in rows.items():
        mine = [item for item in outcomes() if columns[item.document or ""]["scanner"] == value]
        hits = sum(item.predicted == item.label for item in mine)
        assert row.documents == len(mine) == 58 and row.groups == len({item.group for item in mine})
        assert row.accuracy.value == pytest.approx(hits / len(mine))
        wilson = binomtest(hits, len(mine)).proportion_ci(method="wilson")
        assert (row.accuracy.low, row.accuracy.high) == pytest.approx((wilson.low, wilson.high), abs=0.03)


def test_a_column_of_many_numbers_is_divided_into_four(tmp_path: Path) -> None:
    result = subgroups(dataset_of(with_columns(tmp_path / "a")))
    ages = [row for row in result.rows if row.column == "age"]
    assert [row.value for row in ages] == ["20–34", "35–49", "50–64", "65–79"]
    assert [row.documents for row in ages] == [30] * 4


def test_models_stand_beside_each_other_and_the_page_names_what_is_left_out(tmp_path: Path) -> None:
    made = [with_columns(tmp_path / name, name, seed) for seed, name in enumerate(("model-a", "model-b"))]
    report = write_report([folder.folder for folder in made], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = html[html.index('<section id="robustness"') :]
    assert "Subgroups that are too small: scanner: rare." in part and "not divided into subgroups: report." in part
    section = report.sections[0]
    chart = robustness_figures.subgroup_chart(section.evidence.subgroups)
    value = next(row for row in chart.rows if row.left == "A")
    assert len(value.marks) == 2 and value.right == "n = 58"
    assert value.marks[0].shift != value.marks[1].shift
    drawing = section.figures["subgroups"]
    assert "One subgroup of fewer than 10 documents not shown." in drawing.caption
    assert "scanner" in drawing.svg and "n = 58" in drawing.interactive
    names = {row["column"] for row in csv.DictReader(io.StringIO(section.tables["subgroups"].csv()))}
    assert names == {"scanner", "age"}


def test_data_without_columns_have_no_subgroups(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    assert subgroups(dataset_of(made)).rows == ()
    made.folds([("doc-00000", "patient-0", "test")])
    assert subgroups(dataset_of(made)).rows == ()


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.integers(), st.lists(st.integers())), max_size=40))
def test_odd_columns_are_no_error(tmp_path_factory: pytest.TempPathFactory, odd: list[Any]) -> None:
    root = tmp_path_factory.mktemp("odd")
    made = Folder(root / "a").answers("med_cls_toy", outcomes(count=40))
    names = [f"doc-{index:05d}" for index in range(40)]
    made.folds(
        [(name, "g", "test") for name in names], {name: {"x": item} for name, item in zip(names, odd, strict=False)}
    )
    result = subgroups(dataset_of(made))
    assert all(row.documents >= 10 and 0 <= row.accuracy.value <= 1 for row in result.rows)
