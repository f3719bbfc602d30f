"""What a task may be told, by its YAML and behind its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.errors import MedMLLMError, OptionError
from medmllm_plugins.prompts.task_names import declared_tasks, split_name, task_settings
from medmllm_plugins.prompts.task_settings import ARGUMENTS, TaskSettings, read_settings

INLINE = {
    "name": "mine",
    "title": "Mine",
    "layout": "phantoms",
    "modality": "image",
    "classes": {"round mass": [], "spiculated mass": [], "textured patch": [], "no finding": []},
}
FINDINGS = {**INLINE, "kind": "multilabel"}


def settings(**fields: Any) -> TaskSettings:
    return read_settings("t", {"medmllm": {"dataset": "demo", **fields}})


def test_defaults() -> None:
    result = settings()
    assert (result.dataset.name, result.protocol, result.folds) == ("demo", "closed_set", ("test",))
    assert (result.order, result.paraphrase, result.image, result.on_error) == ("given", 0, "shown", "raise")


def test_arguments_behind_a_name_mean_what_the_yaml_means() -> None:
    behind = task_settings(
        "med_cls_demo_letter:order=varied:folds=test+validation:on_error=skip:image=blank:paraphrase=2"
    )
    written = settings(
        protocol="letter",
        order="varied",
        folds=["validation", "test"],
        on_error="skip",
        image="blank",
        paraphrase=2,
    )
    assert behind == written
    assert behind.folds == ("validation", "test")


def test_a_declaration_may_stand_in_the_task_itself() -> None:
    assert read_settings("t", {"medmllm": {"dataset": INLINE}}).dataset.name == "mine"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dataset": "nowhere"}, "No data set is called 'nowhere'"),
        ({"dataset": ["demo"]}, "No data set is called"),
        ({"protocl": "letter"}, "protocl"),
        ({"protocol": "letters"}, "`protocol` to be one of"),
        ({"folds": []}, "`folds` to be some of"),
        ({"folds": "test+tset"}, "`folds` to be some of"),
        ({"order": "cyclic"}, "`order` to be one of"),
        ({"paraphrase": 4}, "0 to 3 or 'all'"),
        ({"paraphrase": -1}, "whole number"),
        ({"paraphrase": True}, "whole number"),
        ({"paraphrase": "1.5"}, "whole number"),
        ({"image": "black"}, "`image` to be one of"),
        ({"on_error": "ignore"}, "`on_error` to be one of"),
        ({"protocol": "open", "order": "varied"}, "lists no options"),
        ({"order": "varied", "paraphrase": "all"}, "either order=varied or paraphrase=all"),
        ({"slices": 4}, "holds images, not volumes"),
        ({"size": 64}, "comes in one size"),
        ({"frame": "first"}, "no multi-frame DICOM files"),
        ({"window": "lung"}, "holds images, not volumes"),
        ({"dataset": FINDINGS, "protocol": "letter"}, "one yes/no question for each finding"),
        ({"dataset": FINDINGS, "order": "varied"}, "one yes/no question for each finding"),
        ({"dataset": FINDINGS, "paraphrase": "all"}, "expected one wording"),
    ],
)
def test_a_wrong_setting_says_what_was_expected(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        settings(**fields)
    assert str(caught.value).startswith("Task 't'")


@pytest.mark.parametrize("metadata", [None, {}, {"medmllm": None}, {"medmllm": {}}, {"medmllm": ["demo"]}, "demo"])
def test_a_task_without_a_data_set(metadata: Any) -> None:
    with pytest.raises(OptionError, match="dataset: NAME"):
        read_settings("t", metadata)


def test_volumes_have_a_view() -> None:
    volumes = {**INLINE, "dimensions": 3}
    asked = {"slices": "5", "window": "lung", "plane": "coronal"}
    view = read_settings("t", {"medmllm": {"dataset": volumes, **asked}}).view
    assert (view.slices, view.montage, view.window, view.plane) == (5, False, "lung", "coronal")
    assert read_settings("t", {"medmllm": {"dataset": volumes, "montage": 4}}).view.montage
    wrong: dict[str, dict[str, Any]] = {
        "either": {"slices": 2, "montage": 2},
        "at least 1": {"slices": 0},
        "`plane`": {"plane": "x"},
    }
    for says, item in wrong.items():
        with pytest.raises(OptionError, match=says):
            read_settings("t", {"medmllm": {"dataset": volumes, **item}})


@pytest.mark.parametrize("name", ["t:", "t:order", "t:order=", "t:=given", "t:ordr=given", "t:order=given:order=given"])
def test_a_wrong_argument_behind_a_name(name: str) -> None:
    with pytest.raises(OptionError, match="arguments like") as caught:
        split_name(name)
    assert all(argument in str(caught.value) for argument in ARGUMENTS)


@given(st.text(max_size=60))
def test_any_name_splits_or_is_refused(name: str) -> None:
    try:
        base, arguments = split_name(name)
    except OptionError:
        return
    assert ":".join([base, *(f"{key}={value}" for key, value in arguments.items())]) == name


def test_every_data_set_gives_its_tasks() -> None:
    tasks = declared_tasks()
    assert {"med_cls_demo", "med_cls_demo_letter", "med_cls_demo_open", "med_cls_busi"} <= set(tasks)
    for name, task in tasks.items():
        prefix = {"classify": "med_cls", "probe": "med_probe", "attribute": "med_attr", "patch": "med_patch"}[
            task.purpose
        ]
        assert name.startswith(f"{prefix}_{task.dataset}")
        if task.purpose != "classify":
            continue
        result = task_settings(name)
        assert name.startswith(f"med_cls_{result.dataset.name}")
        if result.dataset.kind == "multilabel":
            assert name == f"med_cls_{result.dataset.name}"


def test_an_unknown_task_names_a_handful_that_may_be_meant() -> None:
    with pytest.raises(OptionError, match=r"got 'med_cls_bussi'\. Did you mean med_cls_busi") as caught:
        task_settings("med_cls_bussi:order=varied")
    assert len(str(caught.value)) < 300
    with pytest.raises(OptionError, match=r"got 'quite other'\. `medmllm task list` lists all"):
        task_settings("quite other")
    with pytest.raises(OptionError, match=r"got the group 'med_cls'\. Name its tasks: med_cls_busi med_cls_covid19_ct"):
        task_settings("med_cls")
    with pytest.raises(OptionError, match=r"got 'ordr=varied'\. Did you mean order\?"):
        task_settings("med_cls_busi:ordr=varied")


def test_a_yaml_task_takes_arguments_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmllm_plugins.plugins.manager import reset

    text = "task: mine\nmetadata:\n  medmllm: {dataset: demo, protocol: letter}\n"
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("task: other\ndataset_path: json\n")
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path))
    reset()
    try:
        assert task_settings("mine:image=blank").image == "blank"
        assert task_settings("mine").protocol == "letter"
        with pytest.raises(OptionError, match="no task of medmllm-plugins"):
            task_settings("other")
    finally:
        reset()


def test_settings_are_plain_json() -> None:
    import json

    for name in (name for name, task in declared_tasks().items() if task.purpose == "classify"):
        result = task_settings(name).to_dict()
        assert json.loads(json.dumps(result)) == result


def test_errors_are_ours() -> None:
    assert issubclass(OptionError, MedMLLMError)
