"""The files beside the page: each has a name of its own, none is a trap, and none of somebody else's goes away."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.report_files import file_names, write_report
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.tables import answer_tables
from medmllm_plugins.utils.atomic_files import csv_text

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def inside(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("accuracy_figure_only")
def test_data_sets_of_like_names_have_files_of_their_own(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a")
    for turn, name in enumerate(("a b", "a_b", "A_B", "x" * 300)):
        made.answers(f"med_cls_{turn}", outcomes(count=20, seed=turn), dataset=name)
    report = write_report([made.folder], tmp_path / "report.html")
    beside = tmp_path / "report_files"
    assert len(list(beside.glob("tables/*.csv"))) == len(report.tables())
    assert len(list(beside.glob("figures/*.svg"))) == len(list(beside.glob("figures/*.png"))) == len(report.drawings())
    names = [path.name for path in beside.rglob("*.metrics.csv")]
    assert sorted(names)[:3] == ["A_B-3.metrics.csv", "a_b-2.metrics.csv", "a_b.metrics.csv"] and len(names) == 4


@given(st.lists(TEXTS, min_size=1, max_size=6, unique=True))
def test_plain_names_are_names_of_files_and_all_differ(names: list[str]) -> None:
    file_of = file_names(names)
    assert list(file_of) == names and len({item.casefold() for item in file_of.values()}) == len(names)
    for result in file_of.values():
        assert (
            result
            and not result.startswith(".")
            and not set(result) & set('/\\:*?"<>|\0\n')
            and len(result.encode()) < 200
        )


@pytest.mark.usefixtures("accuracy_figure_only")
def test_files_of_somebody_else_are_left(tmp_path: Path) -> None:
    beside = tmp_path / "mine_files"
    (beside / "figures").mkdir(parents=True)
    (beside / "figures" / "thesis.png").write_bytes(b"mine")
    many = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20), dataset="first")
    write_report([many.folder], tmp_path / "mine.html")
    before = inside(beside)
    other = Folder(tmp_path / "b").answers("med_cls_toy", outcomes(count=20), dataset="second")
    write_report([other.folder], tmp_path / "mine.html")
    after = inside(beside)
    assert after["figures/thesis.png"] == b"mine"
    assert any("first." in name for name in before) and not any("first." in name for name in after)


@pytest.mark.usefixtures("without_figures")
def test_a_foreign_list_of_files_deletes_nothing_elsewhere(tmp_path: Path) -> None:
    beside = tmp_path / "mine_files"
    (beside / "tables").mkdir(parents=True)
    kept = [tmp_path / "thesis.csv", beside / "notes.csv", beside / "tables" / ".hidden.csv"]
    for path in kept:
        path.write_text("mine", encoding="utf-8")
    listed = ["../thesis.csv", "tables/../../thesis.csv", "notes.csv", "tables/.hidden.csv", str(kept[0]), 3, None]
    content = json.dumps({"medmllm_report": 1, "files": listed})
    (beside / "report.json").write_text(content, encoding="utf-8")
    write_report([Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20)).folder], tmp_path / "mine.html")
    assert all(path.read_text("utf-8") == "mine" for path in kept)


@pytest.mark.usefixtures("without_figures")
def test_a_damaged_list_of_files_is_no_hindrance(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=20)).folder
    (tmp_path / "r_files").mkdir()
    for broken in ("", "[]", '{"medmllm_report": 1, "files": 3}', "[" * 100_000):
        (tmp_path / "r_files" / "report.json").write_text(broken, encoding="utf-8")
        write_report([folder], tmp_path / "r.html")
        assert json.loads((tmp_path / "r_files" / "report.json").read_text("utf-8"))["files"]


CELLS = st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.none())


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5))
@example([["a\r=HYPERLINK(1)", "\r"]])
def test_no_cell_is_a_formula_and_nothing_else_changes(rows: list[list[str | int | float | None]]) -> None:
    result = list(csv.reader(io.StringIO(csv_text(["=a", "b"], rows), newline="")))
    assert result[0] == ["'=a", "b"]
    for row, read in zip(rows, result[1:], strict=True):
        for value, cell in zip(row, read, strict=True):
            if isinstance(value, str):
                assert cell == (f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value)
            else:
                assert cell == ("" if value is None else str(value))


def test_answers_and_classes_are_no_formulas(tmp_path: Path) -> None:
    labels = ("=cmd|'/c calc'!A1", "-1+1", "normal")
    said = ('=HYPERLINK("http://x")', "+1", "@SUM(A1)")
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(labels=labels), labels=labels, said=said)
    (part,) = collect_runs([made.folder]).datasets
    answers = {row["answer"] for row in csv.DictReader(io.StringIO(answer_tables.unparsed_table(part).csv()))}
    assert answers == {f"'{item}" for item in said}
    classes = [row["class"] for row in csv.DictReader(io.StringIO(answer_tables.class_table(part).csv()))]
    assert classes == [f"'{labels[0]}", f"'{labels[1]}", "normal"]
    assert (made.folder / "med_cls_toy.per_class.csv").read_text("utf-8").count("\n'") == 2
