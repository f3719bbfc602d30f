"""Training of repairs: the loss, what stops it, and that it undoes a fault that keeps the class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.errors import DataError, ModelError
from medmllm_plugins.interventions import repair_training
from medmllm_plugins.interventions.repair_training import (
    TrainingExample,
    TrainingOptions,
    score_answers,
    train_part,
)
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.repairs.lora_part import LoraPart, lora_targets
from medmllm_plugins.models.repairs.repair_part import LowRankAdapter, SoftPrompt
from medmllm_plugins.models.repairs.repaired_model import repaired
from medmllm_plugins.probes.validation.fault_kinds import Fault
from medmllm_plugins.probes.validation.planted_faults import plant_faults
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.prompts.task_rows import TaskRows

torch.set_num_threads(1)
LABELS = ("round mass", "spiculated mass", "textured patch", "no finding")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


def question() -> str:
    rows = TaskRows(task_settings("med_cls_demo"), ())
    return rows.question({"variant": "", "finding": ""}).text


def examples(first: int, count: int) -> list[TrainingExample]:
    """Return examples of patients who are in no fold."""
    made = []
    for number in range(first, first + count):
        image, _ = phantoms.draw(LABELS[number % 4], 2_000_000 + number, 0)
        made.append(
            TrainingExample(question(), lambda image=image: Image.fromarray(image).convert("RGB"), LABELS[number % 4])
        )  # type: ignore[misc]
    return made


def test_a_part_that_nothing_reads_is_an_error(loaded: LoadedModel) -> None:
    """The tower's last blocks are skipped, so that LoRA there cannot learn."""
    part = LoraPart(lora_targets(loaded, "vision", 1), 4)
    fault = Fault("tower_blocks_skipped", 3)
    with (
        plant_faults(loaded, fault),
        pytest.raises(ModelError, match="nothing in this model reads what the part changes"),
    ):
        train_part(loaded, part, examples(0, 4), examples(4, 4), TrainingOptions(steps=2, batch=2))


def test_the_loss_is_that_of_plain_calls_of_the_model(loaded: LoadedModel) -> None:
    """The reference runs each prompt with its answer alone and sums log-probabilities token by token."""
    some = [*examples(0, 3), TrainingExample("Why?", examples(0, 1)[0].visual, "no finding")]
    with torch.no_grad():
        got = score_answers(loaded, some)
    for example, loss, correct in zip(some, got.losses, got.correct, strict=True):
        inputs = loaded.prepare([example.question], [example.visual()])
        target = [*loaded.label_ids(example.question, [example.answer])[0], int(loaded.tokenizer.eos_token_id)]
        ids = torch.cat([inputs["input_ids"], torch.tensor([target[:-1]])], dim=1)
        with torch.no_grad():
            logits = loaded.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"]
            ).logits[0, -len(target) :]
        log_p = logits.log_softmax(-1)[range(len(target)), target]
        assert float(loss) == pytest.approx(-float(log_p.mean()), abs=1e-4)
        assert bool(correct) == (logits.argmax(-1).tolist() == target)


@pytest.mark.slow
def test_training_undoes_a_fault_that_keeps_the_class(loaded: LoadedModel) -> None:
    part = LowRankAdapter("connector", 128, 32)
    train, validation, test = examples(0, 240), examples(1000, 48), examples(2000, 80)
    with plant_faults(loaded, Fault("connector_signs", 3, 0)):
        with torch.no_grad():
            before = score_answers(loaded, test).correct.float().mean()
        log = train_part(loaded, part, train, validation, TrainingOptions(steps=70, every=10))
        with torch.no_grad(), repaired(loaded, part) as model:
            after = score_answers(model, test).correct.float().mean()
    assert before < 0.3 and after > 0.7
    assert log.steps <= 70 and 0 < log.best_step <= log.steps
    assert min(log.validation_losses) < log.validation_losses[0] / 4
    assert len(log.validation_losses) == len(log.losses) + 1


def test_training_stops_early_and_keeps_the_best_state(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([5.0, 4.0, 4.5, 4.6, 1.0])
    monkeypatch.setattr(repair_training._Fit, "measure", lambda self, examples: (next(measured), 0.0))
    part, states = SoftPrompt(2, 128, 960), []
    usual = SoftPrompt.state
    monkeypatch.setattr(SoftPrompt, "state", lambda self: states.append(usual(self)) or states[-1])
    log = train_part(
        loaded, part, examples(0, 4), examples(4, 4), TrainingOptions(steps=9, batch=2, every=1, patience=2)
    )
    assert (log.steps, log.best_step, log.stopped) == (3, 1, "patience")
    assert torch.equal(part.module.weight.detach(), states[1]["weight"])


def test_training_stops_in_time(loaded: LoadedModel) -> None:
    log = train_part(
        loaded,
        SoftPrompt(2, 128, 960),
        examples(0, 4),
        examples(4, 2),
        TrainingOptions(steps=500, batch=2, seconds=0.2),
    )
    assert log.stopped == "time" and log.steps < 100


def test_a_batch_that_does_not_fit_is_divided(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The updates are those of the whole batch."""

    def trained() -> Tensor:
        torch.manual_seed(0)
        part = SoftPrompt(2, 128, 960)
        train_part(loaded, part, examples(0, 4), examples(4, 2), TrainingOptions(steps=3, batch=4, every=3, rate=1e-4))
        return part.module.weight.detach()

    whole, usual, sizes = trained(), repair_training.score_answers, []

    def limited(model: LoadedModel, some: list[TrainingExample]) -> object:
        if len(some) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(some))
        return usual(model, some)

    monkeypatch.setattr(repair_training, "score_answers", limited)
    assert torch.allclose(trained(), whole, atol=1e-5) and set(sizes) == {2}


def test_checkpointing_trains_the_same(loaded: LoadedModel) -> None:
    def trained(checkpointing: bool) -> Tensor:
        torch.manual_seed(0)
        part = LowRankAdapter("connector", 128, 4)
        options = TrainingOptions(steps=2, batch=2, every=2, checkpointing=checkpointing)
        train_part(loaded, part, examples(0, 4), examples(4, 2), options)
        return part.module.up.weight.detach()

    assert torch.allclose(trained(True), trained(False), atol=1e-5)
    assert not loaded.model.training


def test_what_cannot_be_trained_is_refused(loaded: LoadedModel) -> None:
    part = SoftPrompt(2, 128, 960)
    with pytest.raises(DataError, match="Expected examples to train and to stop on, got 0 and 2"):
        train_part(loaded, part, [], examples(0, 2), TrainingOptions())
    part.load_state({"weight": torch.full((2, 128), torch.nan)})
    with pytest.raises(DataError, match="Expected a finite training loss, got nan at step 0"):
        train_part(loaded, part, examples(0, 2), examples(2, 2), TrainingOptions(steps=4, batch=2))


def test_every_example_comes_once_before_any_comes_again() -> None:
    options = TrainingOptions(steps=6, batch=2)
    batches = list(repair_training._batches(list(range(4)), options))  # type: ignore[arg-type]
    assert sorted([*batches[0], *batches[1]]) == sorted([*batches[2], *batches[3]]) == [0, 1, 2, 3]  # type: ignore[type-var]
    assert np.unique([len(batch) for batch in batches]).tolist() == [2]
