"""The repairs that are tried, from cheap to expensive, and how each is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.repairs.lora_part import LoraPart, LoraStage, lora_targets
from medmllm_plugins.models.repairs.repair_part import LowRankAdapter, RepairPart, SoftPrompt
from medmllm_plugins.models.repairs.score_map import ScoreMap
from medmllm_plugins.models.stages import is_block, layers_of
from medmllm_plugins.probes.output_recalibration import (
    affine_map,
    fit_affine,
    fit_offsets,
    highest_scoring,
    trusted_relabelling,
)
from medmllm_plugins.results.repair_records import RepairStage

Kind: TypeAlias = Literal["recalibration", "setting", "trained"]


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """What is tried, and for how long.

    Attributes:
        candidates: names; empty for all.
        also: tasks on which each repair is tested beside its own.
        rank: rank of adapters and of LoRA.
        vectors: vectors of the soft prompt.
        block: number of the LLM's block with an adapter; ``None`` for the middle one.
        tower_blocks: blocks at the end of the vision tower with LoRA.
        steps: the most updates of a trained repair.
        batch: examples in an update.
        rate: learning rate, see :class:`~medmllm_plugins.interventions.repair_training.TrainingOptions`.
        batch_size: questions that are answered at a time.
        train_limit: the most documents of the train fold that are used; ``None`` for all.
        validation_limit: the same of the validation fold.
        test_limit: the same of the test fold.
        curve: numbers of train documents of the learning curve.
        controls: whether each repair is also fitted on shuffled labels.
        minutes: time for all training together; ``None`` for no limit.
        checkpointing: recompute activations in the backward pass.
        seed: of samples, shuffled labels and training.

    Raises:
        OptionError: a number is out of range, or a candidate unknown.
    """

    candidates: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    rank: int = 32
    vectors: int = 16
    block: int | None = None
    tower_blocks: int = 4
    steps: int = 200
    batch: int = 16
    rate: float = 3e-3
    batch_size: int = 16
    train_limit: int | None = 2000
    validation_limit: int | None = 400
    test_limit: int | None = None
    curve: tuple[int, ...] = (32, 128, 512)
    controls: bool = True
    minutes: float | None = None
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "vectors", "tower_blocks", "steps", "batch", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"Expected `{name}` to be at least 1, got {getattr(self, name)}.")
        for name in ("rate", "minutes", "train_limit", "validation_limit", "test_limit"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(f"Expected `{name}` to be above 0, got {value}.")
        if any(count < 2 for count in self.curve):
            raise OptionError(f"Expected learning curves from at least 2 documents, got {list(self.curve)}.")
        if unknown := [name for name in self.candidates if name not in CANDIDATES]:
            raise OptionError(f"Expected candidates among {', '.join(CANDIDATES)}, got {', '.join(unknown)}.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One repair that can be tried.

    Attributes:
        title: what it is, in words.
        stage: what it changes.
        kind: how it is fitted: ``recalibration`` (of label scores), ``setting`` (chosen on the validation fold) or
            ``trained``.
        part: makes the untrained part of a trained one.
        learns_labels: whether it is fitted on the label of each document. Class bias needs the frequencies of the
            classes alone, which shuffled labels keep, and blank-image calibration no label: shuffled labels are no
            control for them.
    """

    title: str
    stage: RepairStage
    kind: Kind
    part: Callable[[LoadedModel, RepairOptions], RepairPart] | None = None
    learns_labels: bool = True


def _soft_prompt(loaded: LoadedModel, options: RepairOptions) -> RepairPart:
    weight = stage_module(loaded.model, loaded.family.embed).weight
    return SoftPrompt(options.vectors, int(weight.shape[1]), int(weight.shape[0]))  # type: ignore[index]


def _connector_adapter(loaded: LoadedModel, options: RepairOptions) -> RepairPart:
    return LowRankAdapter("connector", _width(loaded), options.rank)


def _block_adapter(loaded: LoadedModel, options: RepairOptions) -> RepairPart:
    blocks = [layer.name for layer in layers_of(loaded) if layer.part == "llm" and is_block(layer)]
    number = len(blocks) // 2 if options.block is None else options.block
    if not 0 <= number < len(blocks):
        raise OptionError(f"Expected `block` to be a block of the LLM, 0 to {len(blocks) - 1}, got {number}.")
    return LowRankAdapter(blocks[number], _width(loaded), options.rank)


def _lora(stage: LoraStage) -> Callable[[LoadedModel, RepairOptions], RepairPart]:
    def make(loaded: LoadedModel, options: RepairOptions) -> RepairPart:
        return LoraPart(lora_targets(loaded, stage, options.tower_blocks), options.rank)

    return make


def _width(loaded: LoadedModel) -> int:
    return int(loaded.model.config.get_text_config().hidden_size)


CANDIDATES: Final[Mapping[str, Candidate]] = {
    "relabelling": Candidate("relabelling", "output", "recalibration"),
    "class_bias": Candidate("class-bias recalibration", "output", "recalibration", learns_labels=False),
    "blank_image": Candidate("blank-image calibration", "output", "recalibration", learns_labels=False),
    "affine": Candidate("affine map of the label scores", "output", "recalibration"),
    "wording": Candidate("another wording", "prompt", "setting"),
    "few_shot": Candidate("few-shot examples", "prompt", "setting"),
    "soft_prompt": Candidate("soft prompt", "prompt", "trained", _soft_prompt),
    "connector_adapter": Candidate("low-rank adapter at the connector", "connector", "trained", _connector_adapter),
    "block_adapter": Candidate("low-rank adapter at an LLM block", "llm", "trained", _block_adapter),
    "connector_lora": Candidate("LoRA of the connector", "connector", "trained", _lora("connector")),
    "attention_lora": Candidate("LoRA of the LLM's attention", "llm", "trained", _lora("attention")),
    "vision_lora": Candidate("LoRA of the vision tower's last blocks", "vision", "trained", _lora("vision")),
}
"""All candidates, from cheap to expensive."""


def fit_score_map(
    name: str,
    outcomes: Sequence[Outcome],
    truth: Ints,
    labels: Sequence[str],
    blank: Floats | None,
    seed: int,
) -> ScoreMap:
    """Fit an output recalibration on the validation fold.

    Args:
        name: of the candidate.
        outcomes: answers with label scores.
        truth: (n,) classes, which may be shuffled ones.
        labels: the labels that are scored.
        blank: (K,) label scores of a blank image; ``None`` where the model has none.
        seed: of cross-validation.

    Raises:
        ModelError: the answers have no label scores, or a blank image none.
    """
    if any(outcome.scores is None for outcome in outcomes):
        raise ModelError("the model gives no label scores")
    scores = np.array([outcome.scores for outcome in outcomes], dtype=np.float64)
    group = np.unique([outcome.group for outcome in outcomes], return_inverse=True)[1].astype(np.intp)
    classes = len(labels)
    matrix, bias = np.eye(classes), np.zeros(classes)
    if name == "relabelling":
        renaming = trusted_relabelling(highest_scoring(scores), truth, group, classes, seed)
        matrix = np.eye(classes)[np.argsort(renaming)]
    elif name == "class_bias":
        bias = fit_offsets(scores, truth)
    elif name == "blank_image":
        if blank is None:
            raise ModelError("the model takes no blank image")
        bias = -blank
    else:
        matrix, bias = affine_map(fit_affine(scores, truth, group, seed), classes)
    return ScoreMap(
        labels=tuple(labels),
        matrix=tuple(tuple(map(float, row)) for row in matrix),
        bias=tuple(map(float, bias)),
    )
