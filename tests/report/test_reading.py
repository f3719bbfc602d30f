"""Run folders are read as far as they go, and what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import LABELS, Folder, outcomes

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.results.outcome_files import load_run
from medmllm_plugins.results.run_reader import RunFolder, read_run


def test_a_whole_run_misses_nothing(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy", outcomes())
    made.folds([("a", "g", "train"), ("b", "g", "test"), ("c", "h", "test")]).sealed()
    run = read_run(made.folder)
    (task,) = run.tasks
    assert run.all_missing() == [] and task.scored and len(task.outcomes) == 120 and task.plain
    assert {item.status for item in task.unparsed} == {"refusal", "out_of_list", "ambiguous"}
    folds = run.folds["toy"]
    assert (folds.groups, folds.divided, folds.exposed, folds.counts["test"]) == (2, 1, 1, 2)


def test_an_interrupted_run_says_what_it_lacks(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run")
    made.manifest["finished"] = None
    made.tell("med_probe_toy", features={"extra": []})
    run = read_run(made.folder)
    said = " ".join(run.all_missing())
    assert "not finished" in said and "nothing of it is scored yet." in said
    kept = made.folder / ".unfinished" / "x"
    kept.mkdir(parents=True)
    (kept / "answers.0.jsonl").write_text("{}\n{}\n\n")
    assert "nothing of it is scored yet; 2 answers of the run are kept." in " ".join(
        read_run(made.folder).all_missing()
    )
    (made.folder / "med_probe_toy.outcomes.jsonl").write_text("")
    said = " ".join(read_run(made.folder).all_missing())
    assert "no figures of the answers" in said and "no probes" in said
    (made.folder / "med_probe_toy.outcomes.jsonl").unlink()
    made.manifest["tasks"] = {}
    made.write()
    assert "no task yet" in " ".join(read_run(made.folder).all_missing())


def test_without_a_manifest_the_files_tell_the_tasks(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy:image=blank", outcomes(), image="blank")
    (made.folder / "manifest.json").write_text("{ not json", encoding="utf-8")
    run = read_run(made.folder)
    assert [task.name for task in run.tasks] == ["med_cls_toy:image=blank"]
    assert run.tasks[0].dataset == "toy" and "manifest.json cannot be read" in run.missing[0]


def test_damaged_files_are_notes_and_not_errors(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy", outcomes()).probes("med_probe_toy")
    path = made.folder / "med_cls_toy.outcomes.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"id": 1\n[]\n', encoding="utf-8")
    (made.folder / "med_probe_toy.probes.json").write_text('{"medmllm_probes": 1, "points": []}', encoding="utf-8")
    (made.folder / "toy.folds.json").write_text("[]", encoding="utf-8")
    run = read_run(made.folder)
    said = " ".join(run.all_missing())
    assert "2 damaged lines" in said and "expected the curves" in said and "toy.folds.json" in said
    assert len(run.tasks[0].outcomes) == 120


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        '{"medmllm_probes": 1, "points": [{}], "mapping": {"agreement": 3}}',
        '{"medmllm_probes": 1, "points": [{}], "mapping": {"agreement": [[[Infinity]]], "relabelling": [Infinity]}}',
    ],
)
def test_probes_of_any_content_never_raise(tmp_path: Path, content: str) -> None:
    made = Folder(tmp_path / "run").probes("med_probe_toy")
    (made.folder / "med_probe_toy.probes.json").write_text(content, encoding="utf-8")
    read_run(made.folder)


def test_probes_that_failed_say_why(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_probe_toy", outcomes())
    made.tell("med_probe_toy", probes={"failed": "the folds cannot carry probes"})
    assert "the folds cannot carry probes" in " ".join(read_run(made.folder).all_missing())


def test_attributions_are_read_and_pictures_outside_are_not(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").attributions("med_attr_toy", documents=2)
    (tmp_path / "secret.png").write_bytes(b"x")
    index = made.folder / "attributions" / "med_attr_toy" / "index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content["entries"][0]["original"] = "../../../secret.png"
    content["entries"][1] = {}
    index.write_text(json.dumps(content), encoding="utf-8")
    (task,) = read_run(made.folder).tasks
    assert task.attributions is not None and task.missing == ()
    assert task.attributions.entries[0].original is None and task.attributions.entries[1].method == "unnamed"
    assert any("secret.png" in warning for warning in task.attributions.warnings)
    assert len(task.attributions.summary) == 4 and task.attributions.summary[0].area == 0.15


def test_metrics_of_a_newer_version_are_noted(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run").answers("med_cls_toy", outcomes())
    path = made.folder / "med_cls_toy.metrics.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"medmllm_metrics": 99}), encoding="utf-8"
    )
    run = read_run(made.folder)
    assert run.tasks[0].summary is None
    assert "med_cls_toy.metrics.json cannot be used: expected version 1 of the format" in " ".join(run.all_missing())
    with pytest.raises(DataError, match=r"med_cls_toy\.metrics\.json: expected version 1 of the format"):
        load_run(made.folder)


def test_attributions_that_were_only_begun_are_told_of(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run")
    made.tell("med_attr_toy")
    (made.folder / "med_attr_toy.outcomes.jsonl").write_text("")
    assert "no attributions" in " ".join(read_run(made.folder).all_missing())
    entries = made.folder / "attributions" / "med_attr_toy" / "entries"
    entries.mkdir(parents=True)
    (entries / "a.json").write_text("{}")
    assert "attributions of 1 document were started" in " ".join(read_run(made.folder).all_missing())


def test_no_run_folder_is_an_error_that_helps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a run folder, got none"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="manifest"):
        read_run(tmp_path)
    Folder(tmp_path / "inside")
    with pytest.raises(DataError, match=r"It holds run folders: name them, such as .*inside"):
        read_run(tmp_path)


def test_a_task_of_another_package_is_named(tmp_path: Path) -> None:
    made = Folder(tmp_path / "run")
    made.manifest["tasks"] = {"mmmu": {"metrics": {}}, "../evil": {}}
    made.write()
    said = read_run(made.folder).all_missing()
    assert any("not a task of this package" in item for item in said) and any(
        "not a valid file name" in item for item in said
    )


# -- files that do not agree -------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def whole(folder: Path) -> Folder:
    made = Folder(folder).answers("med_cls_toy", outcomes(), evaluated=120)
    made.tell("med_cls_toy", labels=list(LABELS), kind="multiclass", positive=None)
    return made.folds([("a", "g", "train"), ("b", "h", "test")]).probes("med_probe_toy", layers=2)


def accuracy(run: RunFolder) -> Estimate:
    """The accuracy of a run's first task."""
    assert run.tasks[0].summary is not None
    return run.tasks[0].summary.metrics["accuracy"]


@pytest.mark.parametrize("sealed", [True, False])
def test_an_edited_figure_is_computed_again_with_its_interval(tmp_path: Path, sealed: bool) -> None:
    made = whole(tmp_path / "run")
    before = accuracy(read_run(made.folder))
    if sealed:
        made.sealed()
    path = made.folder / "med_cls_toy.metrics.json"
    edit(path, lambda content: content["metrics"]["accuracy"].__setitem__("value", 0.99))
    run = read_run(made.folder)
    shown = accuracy(run)
    assert shown.value == pytest.approx(before.value) and shown.low < shown.value < 0.95
    said = " ".join(run.all_missing())
    assert "computed again from the answers" in said and "med_cls_toy.metrics.json" in said
    assert ("metrics.accuracy.value is 0.99" in said) != sealed


def test_an_edited_interval_of_a_sealed_run_is_computed_again(tmp_path: Path) -> None:
    made = whole(tmp_path / "run").sealed()
    edit(
        made.folder / "med_cls_toy.metrics.json", lambda content: content["metrics"]["accuracy"].__setitem__("low", 0.0)
    )
    assert accuracy(read_run(made.folder)).low > 0.5


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("med_cls_toy.outcomes.jsonl", lambda run: run.tasks[0].outcomes == () and run.tasks[0].scored),
        ("med_probe_toy.probes.json", lambda run: run.tasks[1].probing is None),
        ("toy.folds.json", lambda run: run.folds == {}),
        ("manifest.json", lambda run: True),
    ],
)
def test_what_differs_from_the_seal_is_named_and_not_used(
    tmp_path: Path, name: str, gone: Callable[[RunFolder], bool]
) -> None:
    made = whole(tmp_path / "run").sealed()
    before = read_run(made.folder)
    assert (before.missing == () and not gone(before)) or name == "manifest.json"
    path = made.folder / name
    text = path.read_text("utf-8")
    path.write_text(text.replace("benign", "malign", 1) if "benign" in text else text.replace("toy", "tox", 1))
    run = read_run(made.folder)
    assert gone(run) and any(name in note and "seal" in note for note in run.missing)
    assert run.tasks[0].summary == before.tasks[0].summary


def test_figures_of_which_nothing_can_be_relied_on_are_not_shown(tmp_path: Path) -> None:
    made = whole(tmp_path / "run").sealed()
    for name in ("med_cls_toy.outcomes.jsonl", "med_cls_toy.metrics.json"):
        (made.folder / name).write_text((made.folder / name).read_text("utf-8").replace("benign", "malignant", 1))
    (task, _) = read_run(made.folder).tasks
    assert not task.scored and task.outcomes == () and any("figures" in note for note in task.missing)


def test_lines_that_do_not_go_with_the_task_are_left_out_by_number(tmp_path: Path) -> None:
    made = whole(tmp_path / "run")
    path = made.folder / "med_cls_toy.outcomes.jsonl"
    lines = path.read_text("utf-8").splitlines()
    lines[5] = json.dumps({**json.loads(lines[5]), "label": "Covd"})
    path.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    (task, _) = read_run(made.folder).tasks
    assert len(task.outcomes) == 119 and len({outcome.id for outcome in task.outcomes}) == 119
    assert any("2 damaged lines" in note and "line 6" in note and "Covd" in note for note in task.missing)
    assert task.scored  # of all answers, as the note on those on record says


def test_answers_that_are_missing_are_counted(tmp_path: Path) -> None:
    made = whole(tmp_path / "run")
    path = made.folder / "med_cls_toy.outcomes.jsonl"
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:-1]) + "\n", encoding="utf-8")
    (task, _) = read_run(made.folder).tasks
    assert any("expected 120 scored answers, as manifest.json says, got 119" in note for note in task.missing)


def test_a_finished_run_without_its_seal_says_so(tmp_path: Path) -> None:
    assert "cannot be checked: expected seal.json" in read_run(whole(tmp_path / "run").folder).missing[0]
