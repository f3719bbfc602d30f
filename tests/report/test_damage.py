"""Damaged run folders: whatever stands in them, there is a page, and it says what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.run_folders import Folder, outcomes

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report import assemble
from medmllm_plugins.report.figures import reliability_figure
from medmllm_plugins.report.page import render
from medmllm_plugins.report.report_files import table_paths, write_report
from medmllm_plugins.report.report_notes import collect_notes
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.utils.json_values import number

HUGE = 10**400


def change(folder: Path, name: str, edit: Callable[[Any], object]) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def varied(folder: Path) -> Folder:
    rows = [outcome for turn in range(2) for outcome in outcomes(count=20, seed=turn, variant=f"order {turn}")]
    return Folder(folder).answers("med_cls_toy:order=varied", rows, order="varied")


def answered(folder: Path) -> Folder:
    return Folder(folder).answers("med_cls_toy", outcomes(count=20))


def probed(folder: Path) -> Folder:
    return Folder(folder).probes("med_probe_toy", layers=3)


CASES: dict[str, tuple[Callable[[Path], Folder], str, Callable[[Any], object]]] = {
    "a count is null": (
        answered,
        "med_cls_toy.metrics.json",
        lambda content: content["confusion"]["counts"][0].__setitem__(0, None),
    ),
    "a count is huge": (
        answered,
        "med_cls_toy.metrics.json",
        lambda content: content["confusion"]["counts"][0].__setitem__(0, HUGE),
    ),
    "a variant is null": (
        varied,
        "med_cls_toy+order=varied.metrics.json",
        lambda content: content["variants"].__setitem__("order 1", None),
    ),
    "a renaming is infinite": (
        probed,
        "med_probe_toy.probes.json",
        lambda content: content["mapping"].__setitem__("relabelling", [float("inf")]),
    ),
    "agreement is infinite": (
        probed,
        "med_probe_toy.probes.json",
        lambda content: content["mapping"].__setitem__("agreement", [[[float("inf")]]]),
    ),
    "agreement is huge": (
        probed,
        "med_probe_toy.probes.json",
        lambda content: content["mapping"].__setitem__("agreement", [[[HUGE]]]),
    ),
    "a number is huge": (answered, "med_cls_toy.metrics.json", lambda content: content.__setitem__("n", HUGE)),
    "a task has a long name": (answered, "manifest.json", lambda content: content["tasks"].__setitem__("y" * 300, {})),
}


DRAWN = ("a count is huge", "agreement is infinite")
"""Cases whose page is drawn too; that any figure may fail is tested below."""


@pytest.mark.parametrize("case", CASES)
def test_a_page_all_the_same(tmp_path: Path, case: str, request: pytest.FixtureRequest) -> None:
    if case not in DRAWN:
        request.getfixturevalue("without_figures")
    begin, name, edit = CASES[case]
    made = begin(tmp_path / "a")
    change(made.folder, name, edit)
    report = write_report([made.folder], tmp_path / "report.html")
    assert report.sections and (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("group", None),
            ("group", 5),
            ("label", ["a"]),
            ("id", 1),
            ("document", 3),
            ("variant", {}),
            ("finding", []),
        ],
        *[("scores", [HUGE, 1]), ("scores", "12"), ("scores", 3), ("tokens", [float("inf"), 1, 1]), ("blank", [None])],
    ],
)
def test_an_outcome_of_other_types_is_left_out(tmp_path: Path, name: str, value: Any) -> None:
    made = answered(tmp_path / "a")
    path = made.folder / "med_cls_toy.outcomes.jsonl"
    lines = path.read_text("utf-8").splitlines()
    record = json.loads(lines[0]) | {name: value}
    with pytest.raises(DataError, match=name):
        Outcome.from_dict(record)
    path.write_text("\n".join([json.dumps(record), *lines[1:]]), encoding="utf-8")
    assert any("1 damaged line" in note for note in collect_notes(collect_runs([made.folder])).missing)


@given(st.builds(outcomes, count=st.integers(1, 5), seed=st.integers(0, 9)))
def test_outcomes_are_read_as_they_were_written(rows: list[Outcome]) -> None:
    assert [Outcome.from_dict(json.loads(json.dumps(row.to_dict()))) for row in rows] == rows


def test_a_figure_that_fails_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no bins")

    monkeypatch.setattr(reliability_figure, "reliability", fail)
    report = write_report([answered(tmp_path / "a").folder], tmp_path / "report.html")
    (said,) = [note for note in report.notes.missing if "could not be drawn" in note]
    assert "reliability" in said and "no bins" in said and "toy" in said
    assert {"toy.accuracy", "toy.roc", "toy.confusion"} <= {drawing.stem for drawing in report.drawings()}


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.just(HUGE)))
def test_numbers_from_json_are_finite_or_none_at_all(value: Any) -> None:
    result = number(value)
    assert result != result or abs(result) < float("inf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds a file of each kind."""
    made = varied(tmp_path_factory.mktemp("damage") / "a").answers("med_cls_toy", outcomes(count=20))
    made.probes("med_probe_toy", layers=2).attributions("med_attr_toy", documents=1)
    made.answers("med_cls_toy:image=blank", outcomes(count=20, seed=5), image="blank")
    return made.folds([("a", "g", "train"), ("b", "g", "test")]).folder


def places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON; of arrays the first two entries."""
    if before:
        yield before
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        yield from places(value, (*before, key))


VALUES = (None, "x", float("nan"), float("inf"), [], {}, -1, True, 1e308, ["a"], {"a": 1}, [[1]], HUGE, "")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_place(whole: Path, without_figures: None, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(whole.rglob("*.json"))))
    before = path.read_text("utf-8")
    content = json.loads(before)
    place = data.draw(st.sampled_from(list(places(content))))
    within = content
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = data.draw(st.sampled_from(VALUES))
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
        report = assemble.build_report(collect_runs([whole]))
        assert render(report, "files", table_paths(report))
        assert json.dumps(report.record().to_dict(), allow_nan=False)
        assert all(table.csv() for table in report.tables())
    finally:
        path.write_text(before, encoding="utf-8")
