"""Ask a model the anchors and score its answers.

:mod:`medmllm_plugins.prompts.anchor_prompts` makes the questions; docs/diagnosis.md says what an answer shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import draw_marks
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.errors import ModelError
from medmllm_plugins.metrics.classification import Floats, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, SHARE, Estimate, bootstrap, effective_groups, estimate
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.prompts.anchor_prompts import MARK_KINDS, AnchorItem, AnchorKind, mark_anchors, text_anchors
from medmllm_plugins.prompts.protocols import Question
from medmllm_plugins.results.anchor_records import AnchorResult, Anchors, AnchorVerdict

KINDS: Final[tuple[AnchorKind, ...]] = ("text", *MARK_KINDS)
LEAST_RECALL: Final = 0.5
"""Share of correct answers that every class needs where an anchor counts as answered."""
NO_WORDINGS: Final = "the data set declares no `findings`"
SWITCHED_OFF: Final = "switched off (anchors=0)"


def score_anchors(
    items: Sequence[AnchorItem], answers: Mapping[str, str], not_run: Mapping[str, str] | None = None, *, seed: int = 0
) -> Anchors:
    """Score the answers to anchors.

    Args:
        items: the anchors that were asked.
        answers: text of the answer by the item's id; an item without one was not asked.
        not_run: why there is no ``text`` anchor or no ``positive`` control.
        seed: of the bootstrap resamples.
    """
    results = []
    for kind in KINDS:
        asked = [item for item in items if item.kind == kind and item.id in answers]
        if asked:
            results.append(_score(kind, asked, answers, seed))
    return Anchors(results=tuple(results), not_run=dict(not_run or {}))


def _score(kind: AnchorKind, items: Sequence[AnchorItem], answers: Mapping[str, str], seed: int) -> AnchorResult:
    predicted = [item.question.read(answers[item.id]).label or "" for item in items]
    counts: dict[str, Counter[str]] = {}
    for item, label in zip(items, predicted, strict=True):
        counts.setdefault(item.label, Counter())[label] += 1
    correct = np.array([item.label == label for item, label in zip(items, predicted, strict=True)], dtype=np.float64)
    classes = tuple(items[0].question.classes)
    accuracy, groups = _accuracy(correct, [item.group for item in items], seed)
    recalls = {label: counts[label][label] / counts[label].total() for label in classes if label in counts}
    return AnchorResult(
        kind=kind,
        n=len(items),
        groups=groups,
        accuracy=accuracy,
        chance=1 / len(classes),
        parsed=sum(map(bool, predicted)) / len(items),
        recalls=recalls,
        answered={label: dict(counts[label]) for label in classes if label in counts},
        verdict=verdict(accuracy, 1 / len(classes), min(recalls.values())),
    )


def verdict(accuracy: Estimate, chance: float, least_recall: float) -> AnchorVerdict:
    """Compare an accuracy with the limit half of the way from chance to 1.

    ``answered``: the whole 95% interval lies above it, and no class is recalled less often than :data:`LEAST_RECALL`.
    ``not answered``: the whole interval lies below it. ``cannot tell``: neither, or there is no interval.
    """
    limit = (1 + chance) / 2
    if accuracy.low > limit and least_recall >= LEAST_RECALL:
        return "answered"
    return "not answered" if accuracy.high < limit else "cannot tell"


def _accuracy(correct: Floats, group: Sequence[str], seed: int) -> tuple[Estimate, int]:
    """Return the accuracy with its interval from resampled groups, and the number of groups."""
    names, index = np.unique(np.array(group), return_inverse=True)

    def evaluate(weights: Weights) -> Mapping[str, Floats]:
        return {"accuracy": correct @ weights / weights.sum(axis=0)}

    values, resampled = bootstrap(evaluate, index, resamples=RESAMPLES, seed=seed)
    groups = effective_groups(index)
    return estimate(float(values["accuracy"]), resampled["accuracy"], groups=groups, bounds=SHARE), len(names)


def run_anchors(
    loaded: LoadedModel,
    data: Dataset,
    question: Question,
    documents: Sequence[Document],
    *,
    max_new_tokens: int = 16,
    batch_size: int = 40,
) -> Anchors:
    """Ask a model in memory all anchors of a set of 2D images, and score its answers.

    Args:
        loaded: the model.
        data: the data set; its declaration has the wordings of the text anchor.
        question: the task's question.
        documents: documents from which those for the positive control are sampled.
        max_new_tokens: the most tokens of an answer.
        batch_size: questions at a time.

    Raises:
        ModelError: the model cannot take the images.
    """

    def visual(item: AnchorItem) -> VisualInput:
        assert item.document is not None, "only text anchors have no document"
        image = draw_marks(data.image(item.document), item.marks)
        return [image] if loaded.shows == "images" else image

    text = text_anchors(data.spec, question)
    not_run = {} if text else {"text": NO_WORDINGS}
    items = [*text, *mark_anchors(documents, data.spec, finding=question.finding)]
    answers: dict[str, str] = {}
    for batch in _batches(items, batch_size):
        questions = [item.question.text for item in batch]
        try:
            inputs = (
                loaded.prepare_text(questions)
                if batch[0].document is None
                else loaded.prepare(questions, [visual(item) for item in batch])
            )
        except ModelError as error:
            if batch[0].document is not None:
                raise
            not_run["text"] = str(error)
            continue
        generated = loaded.generate(questions, [], max_new_tokens=max_new_tokens, inputs=inputs)
        answers |= {item.id: answer.text for item, answer in zip(batch, generated, strict=True)}
    return score_anchors(items, answers, not_run)


def _batches(items: Sequence[AnchorItem], size: int) -> Iterator[Sequence[AnchorItem]]:
    """Yield batches of anchors of one kind."""
    for kind in KINDS:
        some = [item for item in items if item.kind == kind]
        for start in range(0, len(some), size):
            yield some[start : start + size]
