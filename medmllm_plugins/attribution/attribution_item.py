"""One answered document whose answer is to be explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import Question, VisualInput
from medmllm_plugins.prompts.attribution_options import ANSWER, DECISION, TRUTH
from medmllm_plugins.prompts.protocols import Question as ProtocolQuestion


@dataclass(frozen=True, slots=True, eq=False)
class AttributionItem:
    """A document that was answered and is to be explained.

    Attributes:
        scores: Log-probabilities of the answers, in class order; empty where none were computed.
        answers: Words of the answers that stand for the classes, in the same order.
        mask: (h, w) bool, the lesion in its single image, or None where it is not known.
    """

    id: str
    document: str
    group: str
    label: str
    predicted: str | None
    answer: str
    scores: tuple[float, ...]
    question: Question
    visual: VisualInput
    classes: tuple[str, ...]
    answers: tuple[str, ...]
    mask: Any = None

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], question: ProtocolQuestion, visual: VisualInput, text: str, scores: Any, mask: Any
    ) -> AttributionItem:
        """Return the item of an answered row of a task."""
        return cls(
            id=str(row["id"]),
            document=str(row["document"]),
            group=str(row["group"]),
            label=str(row["label"]),
            predicted=question.read(text).label,
            answer=text,
            scores=tuple(scores or ()),
            question=question.text,
            visual=visual,
            classes=tuple(question.classes),
            answers=tuple(question.labels),
            mask=mask,
        )

    def target(self, mode: str) -> Target:
        """Return what is explained; see :class:`medmllm_plugins.prompts.attribution_options.AttributionOptions`.

        Raises:
            OptionError: ``mode`` is not a class, the answer is empty, or no label was scored.
        """
        if mode == ANSWER:
            return Target.of_answer(self.answer)
        if mode == DECISION:
            if not self.scores:
                raise OptionError("Expected scores of the labels to explain the decision, got none. Use target=truth.")
            return Target.of_label(self.classes[int(np.argmax(self.scores))], self.classes, self.answers)
        return Target.of_label(self.label if mode == TRUTH else mode, self.classes, self.answers)
