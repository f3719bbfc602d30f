"""Repairs fitted on examples of one's own: those of ``medmllm repair``, applied, saved and opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medmllm_plugins import DataError, LoadedModel, OptionError, RepairExample, RepairOptions, fit_repair, open_model
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.models.repairs.repair_folder import read_repair
from medmllm_plugins.models.repairs.repair_part import RepairPart
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.runtime.repair_answers import QuestionSet
from medmllm_plugins.runtime.repair_study import RepairRunner

TASK = "med_cls_demo"
SETTINGS = task_settings(TASK)
OPTIONS = RepairOptions(
    candidates=("affine", "connector_adapter"), steps=2, batch=4, train_limit=16, validation_limit=24, test_limit=4,
    curve=(), controls=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    torch.set_num_threads(1)
    return open_model("medm_vl", "demo", device="cpu", dtype="float32")


def examples(model: LoadedModel, fold: str, count: int) -> list[RepairExample]:
    """Those that a study of the task is fitted on."""
    questions = QuestionSet(TASK, SETTINGS, load_dataset(SETTINGS.dataset), fold, count)  # type: ignore[arg-type]
    return [
        RepairExample(questions.content.question(row).text, questions.visual(model, row), row["label"], row["group"])
        for row in questions.rows
    ]


@pytest.mark.slow
def test_repairs_are_those_of_a_study(model: LoadedModel, tmp_path: Path) -> None:
    data = load_dataset(SETTINGS.dataset)
    RepairRunner(model, TASK, SETTINGS, data, OPTIONS, tmp_path, model="demo").run()
    train, validation = examples(model, "train", 16), examples(model, "validation", 24)
    labels = SETTINGS.dataset.labels
    affine = fit_repair(model, "affine", [], validation, labels=labels, options=OPTIONS)
    expected = read_repair(tmp_path / "affine")
    np.testing.assert_allclose(affine.repair.matrix, expected.matrix, atol=1e-5)  # type: ignore[union-attr]
    np.testing.assert_allclose(affine.repair.bias, expected.bias, atol=1e-4)  # type: ignore[union-attr]
    trained = fit_repair(model, "connector_adapter", train, validation, options=OPTIONS)
    part = read_repair(tmp_path / "connector_adapter")
    assert isinstance(part, RepairPart) and isinstance(trained.repair, RepairPart)
    for name, value in part.state().items():
        torch.testing.assert_close(trained.repair.state()[name], value, atol=1e-4, rtol=1e-3)


def test_a_repair_acts_while_it_is_applied_and_is_saved(model: LoadedModel, tmp_path: Path) -> None:
    validation = examples(model, "validation", 12)
    shifted = [RepairExample(item.question, item.image, "no finding", item.group) for item in validation]
    labels = SETTINGS.dataset.labels
    fitted = fit_repair(model, "class_bias", [], shifted, labels=labels)
    question, image = validation[0].question, validation[0].image

    def ask(each: LoadedModel) -> str:
        return each.generate([question], [image], max_new_tokens=8, labels=labels)[0].text

    before = ask(model)
    with fitted.applied() as repaired:
        assert ask(repaired) == "no finding" != before
    assert ask(model) == before
    fitted.save(tmp_path / "repair")
    again = open_model("medm_vl", "demo", device="cpu", dtype="float32", repair=str(tmp_path / "repair"))
    assert ask(again) == "no finding"


@pytest.mark.parametrize(
    ("name", "validation", "labels", "error", "message"),
    [
        ("wording", [1], None, OptionError, "a repair that is fitted, relabelling, class_bias"),
        ("affine", [], None, DataError, "affine: expected validation examples, got none"),
        ("affine", [1], ["x", "y"], DataError, r"answers among the labels \['x', 'y'\], got \["),
        ("soft_prompt", [1], None, DataError, "examples to train and to stop on, got 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(
    model: LoadedModel,
    name: str,
    validation: list[int],
    labels: list[str] | None,
    error: type[Exception],
    message: str,
) -> None:
    held_out = examples(model, "validation", 4)[: len(validation)]
    with pytest.raises(error, match=message):
        fit_repair(model, name, [], held_out, labels=labels)
