"""Outcomes on disk come back as they were, and damage is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.outcome_files import load_run, read_outcomes, write_outcomes

TEXT = st.text(max_size=20)


@given(
    st.dictionaries(TEXT, st.tuples(TEXT, TEXT, TEXT), max_size=5),
    st.none() | st.lists(st.floats(-9, 9), max_size=3).map(tuple),
)
def test_round_trip(tmp_path_factory, documents, scores):
    path = tmp_path_factory.mktemp("outcomes") / "t.outcomes.jsonl"
    outcomes = [
        Outcome(name, group, label, label, "parsed", scores, None, variant, name or None)
        for name, (group, label, variant) in documents.items()
    ]
    write_outcomes(path, outcomes, {name: "line\u2028end\r\n" for name in documents})
    assert read_outcomes(path) == sorted(outcomes, key=lambda outcome: outcome.id)


CONTRADICTION = '{"id": "1", "group": "g", "label": "a", "predicted": null, "status": "parsed"}'


@pytest.mark.parametrize("damaged", ["{", "[]", "5", '{"id": "1"}', CONTRADICTION])
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "t.outcomes.jsonl"
    write_outcomes(path, [Outcome("1", "g", "a", "a", "parsed")])
    path.write_text(path.read_text() + damaged + "\n")
    with pytest.raises(DataError, match=r"t\.outcomes\.jsonl, line 2: "):
        read_outcomes(path)


def test_a_run_folder_is_read_whole(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"tasks": {"t:order=varied": {}, "other": {}}}))
    write_outcomes(tmp_path / "t+order=varied.outcomes.jsonl", [Outcome("1", "g", "a", None, "refusal")])
    assert list(load_run(tmp_path).outcomes) == ["t:order=varied"]


@pytest.mark.parametrize("manifest", [None, "{", "[]", "{}"])
def test_no_run_folder(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match="expected a run folder"):
        load_run(tmp_path)


LINE = '{"id": "%s", "group": "g", "label": "%s", "predicted": "a", "status": "parsed", "scores": %s}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE % ("1", "a", "[0, 1]"), r"every id once, got '1' again \(first in line 1\)"),
        (LINE % ("2", "Covd", "[0, 1]"), r"`label` to be one of a, b, got 'Covd'"),
        (LINE.replace('"predicted": "a"', '"predicted": "c"') % ("2", "a", "[0, 1]"), "`predicted` to be one of a, b"),
        (LINE % ("2", "a", "[0, 1, 2]"), "2 scores, one a class, got 3"),
        (LINE % ("2", "a", "[0, NaN]"), "finite label scores"),
        (LINE % ("2", "a", "[0, Infinity]"), "finite label scores"),
    ],
)
def test_what_does_not_go_with_the_task_names_file_and_line(tmp_path, line, message):
    (tmp_path / "manifest.json").write_text(json.dumps({"tasks": {"t": {"labels": ["a", "b"]}}}))
    path = tmp_path / "t.outcomes.jsonl"
    write_outcomes(path, [Outcome("1", "g", "a", "a", "parsed", (0.0, 1.0))])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=rf"t\.outcomes\.jsonl, line 2: .*{message}"):
        load_run(tmp_path)


def test_answers_that_are_missing_are_counted(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"tasks": {"t": {"evaluated": 3}}}))
    write_outcomes(tmp_path / "t.outcomes.jsonl", [Outcome("1", "g", "a", "a", "parsed")])
    with pytest.raises(DataError, match=r"t\.outcomes\.jsonl: expected 3 scored answers, .* got 1"):
        load_run(tmp_path)


def test_a_manifest_of_somebody_else_says_who_can_help(tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "read_text", refused)  # root, as in a container, may read everything
    with pytest.raises(DataError, match=r"manifest.json: expected a file that you may read.* chmod a\+r"):
        load_run(tmp_path)
