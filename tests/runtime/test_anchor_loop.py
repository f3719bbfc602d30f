"""Anchors of a run: shared by its processes, asked in the form that the model takes, and read back by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.core.image_controls import draw_marks
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import Generation, LoadedModel
from medmllm_plugins.probes.anchors import NO_WORDINGS
from medmllm_plugins.prompts.task_content import TaskContent
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_settings import read_settings
from medmllm_plugins.runtime.anchor_loop import AnchorLoop
from medmllm_plugins.runtime.answer_loop import AnswerOptions
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.requests import TaskRequest

COUNT = 12
TEXT = 20


class Recorder:
    """A model that answers with the number of the batch, and remembers what it was shown."""

    device, max_new_tokens = torch.device("cpu"), None

    def __init__(self, shows: str = "image", *, takes_text: bool = True) -> None:
        self.shows, self.takes_text = shows, takes_text
        self.shown: list[tuple[str, Any]] = []

    def prepare_text(self, questions: Sequence[str]) -> dict[str, Any]:
        if not self.takes_text:
            raise ModelError("Recorder takes no question without an image.")
        return {"shown": [(question, None) for question in questions]}

    def prepare(self, questions: Sequence[str], images: Sequence[Any]) -> dict[str, Any]:
        return {"shown": list(zip(questions, images, strict=True))}

    def generate(
        self, questions: Sequence[str], images: Sequence[Any], *, max_new_tokens: int, inputs: Mapping[str, Any]
    ) -> list[Generation]:
        assert max_new_tokens == 9 and len(images) in (0, len(questions))
        self.shown += inputs["shown"]
        return [Generation(f" {question} STOP and more", 2) for question in questions]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return phantom_dataset()


def ask(
    model: Recorder, data: Dataset, folder: Path, *, rank: int = 0, world_size: int = 1, name: str = "med_probe_demo"
) -> tuple[EvaluationRun, TaskContent]:
    name = f"{name}:anchors={COUNT}" if name == "med_probe_demo" else name
    return ask_about(model, TaskContent(name, task_settings(name), data), folder, rank, world_size)


def ask_about(
    model: Recorder, content: TaskContent, folder: Path, rank: int = 0, world_size: int = 1
) -> tuple[EvaluationRun, TaskContent]:
    name = content.name
    request = TaskRequest(
        task=name,
        split="test",
        index=0,
        repeat=0,
        generation={"max_new_tokens": 9, "until": ["STOP"]},
        rows=content.row_list,
        to_messages=lambda row: [],
        content=content,
    )
    run = EvaluationRun(folder)
    run.rank = rank
    loaded: LoadedModel = model  # type: ignore[assignment]
    options = AnswerOptions("recorder", batch_size=5, rank=rank, world_size=world_size)
    AnchorLoop(loaded, run, options).answer([request], run.open("recorder", {}))
    return run, content


@pytest.mark.parametrize("shows", ["image", "images"])
def test_each_anchor_is_asked_once_and_found_again(shows: str, data: Dataset, tmp_path: Path) -> None:
    model = Recorder(shows)
    run, content = ask(model, data, tmp_path)
    items = content.anchors()
    answers, not_run = run.anchor_answers(content.name)
    assert answers == {item.id: item.question.text for item in items} and not_run == {}
    assert len(model.shown) == len(items) == TEXT + 3 * COUNT
    shown = dict(model.shown)
    assert sum(visual is None for visual in shown.values()) == TEXT
    pictures = [visual if shows == "image" else visual[0] for _, visual in model.shown if visual is not None]
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    expected = [draw_marks(data.image(item.document), item.marks).tobytes() for item in items if item.document]
    assert sorted(picture.tobytes() for picture in pictures) == sorted(expected)
    run.close()
    # The same command again asks nothing.
    again = Recorder(shows)
    resumed, _ = ask(again, data, tmp_path)
    assert again.shown == [] and resumed.anchor_answers(content.name) == (answers, {})
    resumed.close()


def test_processes_share_the_anchors(data: Dataset, tmp_path: Path) -> None:
    models = [Recorder(), Recorder()]
    runs = [ask(model, data, tmp_path, rank=rank, world_size=2) for rank, model in enumerate(models)]
    (first, content), (second, _) = runs
    assert [len(model.shown) for model in models] == [(TEXT + 3 * COUNT) // 2] * 2
    assert set(first.anchor_answers(content.name)[0]) == {item.id for item in content.anchors()}
    for run in (first, second):
        run.close()


def test_a_model_that_takes_no_text_is_asked_about_squares_alone(data: Dataset, tmp_path: Path) -> None:
    model = Recorder(takes_text=False)
    run, content = ask(model, data, tmp_path)
    answers, not_run = run.anchor_answers(content.name)
    assert not_run == {"text": "Recorder takes no question without an image."}
    assert len(answers) == len(model.shown) == 3 * COUNT
    run.close()


def test_only_probing_tasks_have_anchors_and_only_of_what_is_evaluated(data: Dataset, tmp_path: Path) -> None:
    model = Recorder()
    run, content = ask(model, data, tmp_path, name="med_cls_demo")
    assert model.shown == [] and run.anchor_answers(content.name) == ({}, {}) and content.anchors() == []
    run.close()
    name = f"med_probe_demo:anchors={COUNT}"
    probing = TaskContent(name, replace(task_settings(name), image="blank"), data)
    probing.evaluated = range(40)
    tested = {row["document"] for row in probing.row_list[:40] if row["fold"] == "test"}
    used = {item.document.id for item in probing.anchors() if item.document}
    assert used <= tested and 0 < len(used) <= COUNT
    item = next(item for item in probing.anchors() if item.document and item.marks)
    assert item.document is not None
    (image,) = probing.anchor_images(item)  # the document's own image, whatever the task shows
    assert image.tobytes() == draw_marks(data.image(item.document), item.marks).tobytes()


def test_a_model_of_volumes_gets_volumes_with_squares(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(24):
        fold = ("train", "validation", "test")[number % 3]
        voxels = generator.uniform(-900, 900, (4, 40, 40)).astype(np.float32)
        np.save(folder / f"{number}.npy", voxels)
        rows.append(f"{number}.npy,{'ab'[number // 3 % 2]},p{number},{fold}")
    (folder / "labels.csv").write_text("\n".join(["image,label,patient,fold", *rows]))
    columns = {"image": "image", "label": "label", "group": "patient", "fold": "fold"}
    declaration = {
        "name": "own",
        "title": "Own",
        "layout": "table",
        "folder": str(folder),
        "modality": "chest CT volume",
        "dimensions": 3,
        "classes": {"a": [], "b": []},
        "options": {"labels": "labels.csv", "unit": "HU", **{f"{key}_column": value for key, value in columns.items()}},
    }
    settings = read_settings("med_probe_own", {"medmllm": {"dataset": declaration, "anchors": 6}}, purpose="probe")
    content = TaskContent("med_probe_own", settings, load_dataset(settings.dataset))
    model = Recorder("volume")
    run, _ = ask_about(model, content, tmp_path / "run")
    assert run.anchor_answers(content.name)[1] == {"text": NO_WORDINGS}
    assert len(model.shown) == 18 and all(isinstance(shown, Volume) for _, shown in model.shown)
    counted = [(text, shown) for text, shown in model.shown if text.startswith("How many white squares are in each")]
    white = [int((shown.voxels == 1000).sum(axis=(1, 2)).max()) for _, shown in counted]
    assert len(counted) == 6 and set(white) == {side * 6 * 6 for side in (1, 2, 3)}
    run.close()
