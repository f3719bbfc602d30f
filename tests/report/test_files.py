"""The files beside the page: each has a name of its own, none is a trap, and none of somebody else's goes away."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support.run_folders import FINDINGS, Folder, findings, outcomes

from medmllm_plugins.report.report_files import DICTIONARY, file_names, write_report
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.report.tables import answer_tables
from medmllm_plugins.report.tables.data_dictionary import about, data_dictionary, documents_table, meaning
from medmllm_plugins.report.tables.report_table import read_columns
from medmllm_plugins.report.templating import template_source
from medmllm_plugins.results.report_records import ReportRecord
from medmllm_plugins.results.schema import json_schema
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
    assert len(list(beside.glob("tables/*.documents.csv"))) == len(report.sections) == 4
    files = [name for drawing in report.drawings() for name in drawing.files]
    assert len(list(beside.glob("figures/*"))) == len(files) >= 3 * len(report.drawings()) > 0
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


# -- columns and what they mean --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder_with_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of answers, a probed and an explained task."""
    made = Folder(tmp_path_factory.mktemp("all") / "run-a").answers("med_cls_toy", outcomes(), said=("what?",) * 3)
    varied = [outcome for turn in (0, 1) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    made.answers("med_cls_toy:order=varied", varied, order="varied")
    made.answers("med_cls_toy:image=blank", outcomes(skill=0), image="blank")
    made.answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    made.answers("med_attr_toy", outcomes()).attributions("med_attr_toy")
    return made.multilabel("med_cls_findings", findings()).folder


@pytest.fixture(scope="module")
def written(folder_with_everything: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files beside the page about that run, without figures."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medmllm_plugins.report.assemble.draw_all", lambda jobs: [None for _ in jobs])
        write_report([folder_with_everything], output)
    return output.with_name("report_files")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_each_row_of_each_table_says_its_run_and_data_set(written: Path) -> None:
    tables = list(written.glob("tables/*.csv"))
    assert len(tables) > 20
    for path in tables:
        for row in rows_of(path):
            assert row["run"] == "run-a", path.name
            assert row["data_set"] in ("toy", "findings", "toy, findings"), path.name
            assert path.name in ("runs.csv", "data.csv") or path.name.startswith(f"{row['data_set']}."), path.name
    curves = rows_of(written / "tables" / "toy.curves.csv")
    assert {"vision.00", "connector"} <= {row["layer"] for row in curves}


@pytest.mark.parametrize("table", ["curves", "patches", "interchange", "knockout", "steering", "shortcuts", "masked"])
def test_tables_about_layers_have_a_column_of_layers(table: str) -> None:
    assert "layer" in [column.name for column in read_columns(table)]


def test_the_per_document_file_has_every_answer(written: Path) -> None:
    rows = rows_of(written / "tables" / "toy.documents.csv")
    asked = [row for row in rows if row["task"] == "med_cls_toy"]
    assert len(asked) == len(outcomes()) and len({row["document"] for row in asked}) == len(asked)
    for row in asked:
        assert (row["predicted"] == row["label"]) == (row["correct"] == "1")
        shares = [float(row[name]) for name in row if name.startswith("probability_")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert {row["variant"] for row in rows if row["task"] == "med_cls_toy:order=varied"} == {"order 0", "order 1"}
    assert {row["finding"] for row in rows_of(written / "tables" / "findings.documents.csv")} == set(FINDINGS)


def declared_columns() -> list[tuple[str, str]]:
    declared = yaml.safe_load(template_source("columns.yaml"))
    # Columns of attributions and findings that the code adds are those of the tables below.
    return [(table, column) for table, columns in declared.items() for column in columns]


@pytest.mark.parametrize(("table", "column"), declared_columns())
def test_each_declared_column_is_defined(table: str, column: str) -> None:
    assert meaning(table, column), f"templates/data_dictionary.yaml: define {column!r} of {table!r}"
    assert about(table), f"templates/data_dictionary.yaml: say what the table {table!r} is about"


def test_each_column_of_each_file_is_defined(folder_with_everything: Path) -> None:
    datasets = collect_runs([folder_with_everything]).datasets
    tables = [table for dataset in datasets for table in build_section(dataset).tables.values()]
    tables += [documents_table(dataset) for dataset in datasets]
    undefined = {
        (table.name, column.name)
        for table in tables
        for column, _ in table.csv_columns()
        if meaning(table.name, column.name) is None
    }
    assert undefined == set() and all(about(table.name) for table in tables)


def test_no_definition_is_of_a_column_that_does_not_exist(folder_with_everything: Path) -> None:
    declared = yaml.safe_load(template_source("data_dictionary.yaml"))
    columns = {(table, column) for table, column in declared_columns()}
    for dataset in collect_runs([folder_with_everything]).datasets:
        tables = [*build_section(dataset).tables.values(), documents_table(dataset)]
        columns |= {(table.name, column.name) for table in tables for column, _ in table.csv_columns()}
    used = {(table, name) for table, column in columns if (name := (meaning(table, column) or ("",))[0])}
    specific = {(table, name) for table, names in declared["tables_columns"].items() for name in names}
    assert specific - used - {("metrics", "difference_from_reference"), ("runs", "data_set"), ("data", "run")} == set()
    assert set(declared["tables"]) == set(declared["tables_columns"]) | {table for table, _ in columns}


def test_the_dictionary_stands_beside_the_tables_and_names_all_of_them(written: Path) -> None:
    text = (written / DICTIONARY).read_text("utf-8")
    for path in written.glob("tables/*.csv"):
        _, found, section = text.partition(f"\n## {path.name}\n")
        assert found, path.name
        columns = {line.split("`")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")}
        with path.open(encoding="utf-8") as handle:
            header = [name for name in next(csv.reader(handle)) if not name.endswith(("_low", "_high"))]
        patterns = [name.removesuffix("*") for name in columns if name.endswith("*")]
        assert all(name in columns or name.startswith(tuple(patterns)) for name in header), path.name
    assert "| `probability_*` | share of 1 | Probability of this class" in text
    assert DICTIONARY in json.loads((written / "report.json").read_text("utf-8"))["files"]


def test_an_unknown_table_is_described_by_its_headings(folder_with_everything: Path) -> None:
    dataset = collect_runs([folder_with_everything]).datasets[0]
    table = dataclasses.replace(build_section(dataset).tables["parsing"], stem="toy.of_a_plugin")
    assert "| `accuracy_on_parsed` | share of 1 | Accuracy of the parsed" in data_dictionary({"x.csv": table})


# -- report.json -----------------------------------------------------------------------------------------------------


def faults(value: Any, schema: dict[str, Any], whole: dict[str, Any], path: str = "$") -> list[str]:
    """Return where a value breaks a schema, for the keywords that our schemas use."""
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, path)
    if "anyOf" in schema:
        return [] if any(not faults(value, option, whole) for option in schema["anyOf"]) else [f"{path}: no option"]
    if "const" in schema:
        return [] if value == schema["const"] else [f"{path}: not {schema['const']}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{path}: not among {schema['enum']}"]
    kinds = schema.get("type", [])
    of = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    of |= {"integer": int, "number": (int, float)}
    if kinds and not any(isinstance(value, of[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [f"{path}: not {kinds}, but {type(value).__name__}"]
    problems = [f"{path}: lacks {name}" for name in schema.get("required", []) if name not in value]
    if isinstance(value, dict):
        properties, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, item in value.items():
            problems += faults(item, properties.get(name, other), whole, f"{path}.{name}")
        if properties:
            problems += [f"{path}: unknown {name}" for name in value.keys() - properties.keys()]
    for index, item in enumerate(value if isinstance(value, list) else ()):
        problems += faults(item, schema.get("items", {}), whole, f"{path}[{index}]")
    return problems


def test_the_record_is_what_its_schema_says(written: Path) -> None:
    record = json.loads((written / "report.json").read_text("utf-8"))
    schema = json_schema(ReportRecord)
    assert faults(record, schema, schema) == []
    assert record["medmllm_report"] == 2 and len(record["datasets"]) == 2
    assert set(record["files"]) == {str(path.relative_to(written)) for path in written.glob("tables/*")}
    assert ReportRecord.from_dict(record).to_dict() == record


def test_a_record_that_breaks_its_schema_is_noticed(written: Path) -> None:
    record = json.loads((written / "report.json").read_text("utf-8"))
    schema = json_schema(ReportRecord)
    record["datasets"][0]["verdicts"][0]["questions"] = "many"
    record["datasets"][0]["tables"]["toy.metrics"]["rows"][0]["accuracy"] = ["97%"]
    record["extra"] = 1
    del record["title"]
    problems = "; ".join(faults(record, schema, schema))
    assert "verdicts[0].questions: not integer" in problems and "rows[0].accuracy: no option" in problems
    assert "lacks title" in problems and "unknown extra" in problems
