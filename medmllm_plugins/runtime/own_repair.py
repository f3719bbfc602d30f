"""Fit a repair on questions, images and answers of one's own, without a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.interventions.repair_training import (
    TrainingExample,
    TrainingLog,
    TrainingOptions,
    seeded,
    train_part,
)
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.repairs.repair_folder import write_repair
from medmllm_plugins.models.repairs.repair_part import RepairPart
from medmllm_plugins.models.repairs.repaired_model import RepairedModel, repaired
from medmllm_plugins.models.repairs.score_map import ScoreMap
from medmllm_plugins.runtime.repair_answers import blank_scores
from medmllm_plugins.runtime.repair_candidates import CANDIDATES, RepairOptions, fit_score_map


@dataclass(frozen=True, slots=True, eq=False)
class RepairExample:
    """A question about an image with its correct answer.

    Attributes:
        question: what the model is asked.
        image: an image; a list of them or a volume for models that take these.
        answer: the answer as the model is to give it.
        group: patient, lesion or source; an example of its own if empty.
    """

    question: str
    image: VisualInput
    answer: str
    group: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class FittedRepair:
    """A fitted repair of a model.

    Attributes:
        name: its name, such as ``connector_adapter``.
        model: the model that it was fitted on, which is unchanged.
        repair: the trained part, or the map of the label scores.
        log: the course of training; ``None`` for a map of the label scores.
    """

    name: str
    model: LoadedModel
    repair: RepairPart | ScoreMap
    log: TrainingLog | None

    def applied(self) -> AbstractContextManager[RepairedModel]:
        """Return a context in which the model has the repair: ``with fitted.applied() as model: …``."""
        return repaired(self.model, self.repair)

    def save(self, folder: str | Path) -> None:
        """Write the repair to a folder, which ``--model_args …,repair=FOLDER`` and ``open_model`` load.

        It belongs to the model's fingerprint, so fit repairs for evaluations on a model of ``open_model``.
        """
        write_repair(Path(folder), self.repair, self.model, name=self.name, task="", model="")


def fit_repair(
    model: LoadedModel,
    name: str,
    train: Sequence[RepairExample],
    validation: Sequence[RepairExample],
    *,
    labels: Sequence[str] | None = None,
    options: RepairOptions | None = None,
) -> FittedRepair:
    """Fit one repair of a model; its own weights stay as they are.

    Test it on examples of other patients than those it was fitted and chosen on.

    Args:
        model: the model.
        name: a repair that is fitted: one of ``relabelling``, ``class_bias``, ``blank_image`` and ``affine``, which
            map the label scores, or of ``soft_prompt``, ``connector_adapter``, ``block_adapter``, ``connector_lora``,
            ``attention_lora`` and ``vision_lora``, which are trained.
        train: examples that a trained repair learns from; maps of the label scores need none.
        validation: examples that decide when training stops, or that a map of the label scores is fitted on.
        labels: the possible answers, in the order of the label scores; by default those of the examples, sorted.
        options: numbers of updates and examples, rank, seed and more.

    Raises:
        OptionError: there is no such repair, or it is a setting that is chosen and not fitted.
        DataError: there are no examples, or a loss is not finite.
        ModelError: the model gives no label scores, or nothing in it reads what the repair changes.

    Example:
        >>> from PIL import Image
        >>> from medmllm_plugins import RepairExample, fit_repair, open_model
        >>> model = open_model("medm_vl", "demo", device="cpu")
        >>> image = Image.new("RGB", (64, 64), (90, 90, 90))
        >>> question, answers = "Is there a mass, yes or no?", ["yes", "no", "no", "no"]
        >>> examples = [RepairExample(question, image, answer) for answer in answers]
        >>> fitted = fit_repair(model, "class_bias", [], examples)
        >>> with fitted.applied() as repaired_model:
        ...     (answer,) = repaired_model.generate([question], [image], max_new_tokens=1, labels=["no", "yes"])
        >>> answer.text
        'no'
    """
    options = options or RepairOptions()
    fitted = [key for key, candidate in CANDIDATES.items() if candidate.kind != "setting"]
    if name not in fitted:
        raise OptionError(f"Expected a repair that is fitted, {', '.join(fitted)}, got {name!r}.")
    if not validation:
        raise DataError(f"{name}: expected validation examples, got none.")
    make = CANDIDATES[name].part
    if make is None:
        names = tuple(labels or sorted({example.answer for example in (*train, *validation)}))
        return FittedRepair(name, model, _fit_map(model, name, validation, names, options), None)
    with seeded(options.seed):
        part = make(model, options)
    log = train_part(
        model,
        part,
        [_training_example(example) for example in train],
        [_training_example(example) for example in validation],
        TrainingOptions(
            steps=options.steps,
            batch=options.batch,
            rate=options.rate,
            seconds=None if options.minutes is None else 60 * options.minutes,
            seed=options.seed,
            checkpointing=options.checkpointing,
        ),
        title=name,
    )
    return FittedRepair(name, model, part, log)


def _training_example(example: RepairExample) -> TrainingExample:
    return TrainingExample(example.question, lambda: example.image, example.answer)


def _fit_map(
    model: LoadedModel,
    name: str,
    examples: Sequence[RepairExample],
    labels: tuple[str, ...],
    options: RepairOptions,
) -> ScoreMap:
    """Answer the examples, and fit a map of the label scores."""
    if unknown := sorted({example.answer for example in examples} - set(labels)):
        raise DataError(f"{name}: expected answers among the labels {list(labels)}, got {unknown}.")
    outcomes = []
    for start in range(0, len(examples), options.batch_size):
        part = examples[start : start + options.batch_size]
        questions, images = [example.question for example in part], [example.image for example in part]
        answers = model.generate(questions, images, max_new_tokens=0, labels=labels)
        for number, (example, answer) in enumerate(zip(part, answers, strict=True), start):
            key = f"example {number}"  # only the scores are read, so that there is no need to parse an answer
            outcomes.append(Outcome(key, example.group or key, example.answer, None, "out_of_list", answer.scores))
    truth: Ints = np.array([labels.index(example.answer) for example in examples], dtype=np.intp)
    blank = blank_scores(model, examples[0].question, labels) if name == "blank_image" else None
    return fit_score_map(name, outcomes, truth, labels, blank, options.seed)
