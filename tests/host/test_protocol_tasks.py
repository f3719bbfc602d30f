"""Protocols, controls, arguments and files behind ``--tasks``, through the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.host import entry_point
from medmllm_plugins.plugins.manager import reset
from medmllm_plugins.testing.tiny_families import write_family

MINE = """
task: mine
class: !function medmllm_plugins.host.tasks.ClassificationTask
output_type: generate_until
metadata:
  version: 1.0
  medmllm:
    protocol: letter
    dataset:
      name: mine
      title: Mine
      layout: phantoms
      modality: synthetic phantom image
      classes: {round mass: [], spiculated mass: [], textured patch: [], no finding: []}
"""


@pytest.fixture
def manager(drawn_once: None) -> Any:
    entry_point.install_task_hook()
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def test_names_that_no_file_declares(manager: Any) -> None:
    for name in ("med_cls_demo", "med_cls_demo_letter", "med_cls_demo_open", "med_cls_busi"):
        assert name in manager.all_tasks and name in manager.all_subtasks
    assert manager.match_tasks(["med_cls_demo*"]) == ["med_cls_demo", "med_cls_demo_letter", "med_cls_demo_open"]
    listed = manager.list_all_tasks()
    assert "med_cls_demo_open" in listed


def test_arguments_behind_a_name_are_found_as_the_host_looks_for_them(manager: Any) -> None:
    asked = ["med_cls_demo:order=varied", "med_cls_demo"]
    assert manager.match_tasks(asked) == sorted(asked)
    with pytest.raises(MedMLLMError, match="arguments like"):
        manager.match_tasks(["med_cls_demo:ordr=varied"])
    with pytest.raises(MedMLLMError, match="is a group"):
        manager.match_tasks(["med_cls:order=varied"])
    assert manager.match_tasks(["med_cls_nowhere:order=varied"]) == []


def test_a_path_in_place_of_a_name(manager: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(MINE)
    assert manager.match_tasks([str(path)]) == [str(path)]
    loaded = manager.load_task_or_group([str(path)], "chat")
    assert list(loaded) == ["mine"] and loaded["mine"].config.task == "mine"
    assert "\nA. round mass\n" in loaded["mine"].doc_to_text(loaded["mine"].dataset["test"][0])
    assert list(manager.load_task_or_group(["mine:image=blank"], "chat")) == ["mine:image=blank"]
    (tmp_path / "other.yaml").write_text(MINE)
    with pytest.raises(MedMLLMError, match="give it another name"):
        manager.match_tasks([str(tmp_path / "other.yaml")])


def test_the_users_own_folder(drawn_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.tasks import TaskManager

    (tmp_path / "mine.yaml").write_text(MINE)
    monkeypatch.setenv("MEDMLLM_TASKS", str(tmp_path))
    reset()
    try:
        manager = TaskManager(include_defaults=False)
        assert manager.match_tasks(["mine"]) == ["mine"]
        assert manager.load_task_or_group(["mine"], "simple")["mine"].content.data.spec.name == "mine"
    finally:
        reset()


def test_plain_host_tasks_take_no_arguments(manager: Any, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("task: theirs\ndataset_path: json\noutput_type: generate_until\n")
    assert manager.match_tasks([str(tmp_path / "theirs.yaml")])
    with pytest.raises(MedMLLMError, match="no task of medmllm-plugins"):
        manager.load_task_or_group(["theirs:order=varied"], "chat")


@pytest.mark.parametrize("name", ["med_cls_demo_letter", "med_cls_demo_open", "med_cls_demo:paraphrase=1"])
def test_every_protocol_runs_to_the_end(evaluate: Callable[..., Any], tmp_path: Path, name: str) -> None:
    evaluated = evaluate(tmp_path, tasks=[name], limit=16, batch_size=16)
    values = evaluated.values(name)
    assert values["parsed,none"] > 0.5 and "auroc,none" in values
    assert evaluated.manifest["tasks"][name]["questions"] == 480
    outcomes = [json.loads(line) for line in _file(evaluated, name, "outcomes.jsonl").read_text().splitlines()]
    assert len(outcomes) == 16
    right = sum(row["label"] == row["predicted"] for row in outcomes) / 16
    assert values["accuracy,none"] == pytest.approx(right)


def test_a_blank_image_tells_nothing(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    name = "med_cls_demo:image=blank"
    evaluated = evaluate(tmp_path, tasks=[name], limit=48, batch_size=16)
    assert evaluated.values(name)["auroc,none"] == pytest.approx(0.5)
    assert len({sample["filtered_resps"][0] for sample in evaluated.samples(name)}) == 1


def test_varied_orders_are_compared(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    name = "med_cls_demo:order=varied"
    evaluated = evaluate(tmp_path, tasks=[name], limit=40, batch_size=16)
    values = evaluated.values(name)
    outcomes = [json.loads(line) for line in _file(evaluated, name, "outcomes.jsonl").read_text().splitlines()]
    by_order: dict[str, list[bool]] = {}
    for row in outcomes:
        by_order.setdefault(row["variant"], []).append(row["label"] == row["predicted"])
    assert {order: len(rows) for order, rows in by_order.items()} == {f"order {number}": 10 for number in range(4)}
    accuracies = [sum(rows) / len(rows) for rows in by_order.values()]
    mean = sum(accuracies) / 4
    assert values["accuracy,none"] == pytest.approx(mean)
    assert values["spread,none"] >= 0 and 0 <= values["flips,none"] <= 1
    assert _file(evaluated, name, "variants.csv").is_file()
    task = evaluated.manifest["tasks"][name]
    assert task["prompts"].keys() == task["orders"].keys() and len(set(task["prompts"].values())) == 4
    for order, prompt in task["prompts"].items():
        positions = [prompt.index(label) for label in task["orders"][order]]
        assert positions == sorted(positions), order
    assert task["prompt"] in task["prompts"].values()


def test_examples_reach_a_chat_model_as_turns(manager: Any) -> None:
    task = manager.load_task_or_group(["med_cls_demo_letter"], "chat")["med_cls_demo_letter"]
    task.set_config(key="num_fewshot", value=3)
    row = task.dataset["test"][0]
    messages = task.doc_to_messages(row)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
    answers = [message["content"][0]["text"] for message in messages[1::2]]
    assert answers == ["A", "B", "C"]  # the classes in turn, by their letters
    shown = [part["url"] for message in messages for part in message["content"] if part["type"] == "image"]
    assert len(shown) == 4 and len({picture.tobytes() for picture in shown}) == 4
    assert messages[-1]["content"][-1]["text"] == task.doc_to_text(row)


def test_examples_reach_a_simple_model_as_text_and_images(manager: Any) -> None:
    task = manager.load_task_or_group(["med_cls_demo"], "simple")["med_cls_demo"]
    task.set_config(key="num_fewshot", value=2)
    row = task.dataset["test"][0]
    text = task.fewshot_context(row, 2)
    question = task.doc_to_text(row)
    assert text == f"{question}\nround mass\n\n{question}\nspiculated mass\n\n{question}"
    assert len(task.doc_to_visual(row)) == 3


def test_our_models_say_that_they_take_one_image(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MedMLLMError, match="one user turn with images"):
        evaluate(tmp_path, limit=2, num_fewshot=2)


def _file(evaluated: Any, task: str, ending: str) -> Path:
    return Path(evaluated.folder) / f"{task.replace(':', '+')}.{ending}"


def test_models_of_several_images_get_solved_examples(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_family("qwen2_5_vl", tmp_path / "checkpoint")
    model = {"model": "medmllm_hf", "model_args": f"pretrained={folder},device=cpu"}
    shot = evaluate(tmp_path / "shot", limit=4, num_fewshot=2, batch_size=2, **model)
    none = evaluate(tmp_path / "none", limit=4, batch_size=2, **model)
    assert shot.manifest["tasks"]["med_cls_demo"]["shots"] == 2
    prompts = [run.manifest["tasks"]["med_cls_demo"]["prompt"] for run in (shot, none)]
    assert [prompt.count("<|image_pad|>") for prompt in prompts] == [3, 1]
    assert [prompt.count("assistant") for prompt in prompts] == [3, 1]
    assert len(shot.samples("med_cls_demo")) == 4
