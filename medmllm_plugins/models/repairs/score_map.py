"""An affine map of label scores, which decides the answer in the place of the generated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import Generation
from medmllm_plugins.utils.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMap(Record):
    """Output recalibration: new scores are ``matrix @ scores + bias``, and the answer is the label that scores highest.

    It acts on questions with the labels that it was fitted for, and leaves any other question as it is.

    Attributes:
        labels: the labels, in the order of rows and columns.
        matrix: (K, K).
        bias: (K,) nats.
    """

    labels: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if len(self.bias) != count or len(self.matrix) != count or any(len(row) != count for row in self.matrix):
            raise ModelError(f"Expected a matrix and a bias for {count} labels, got other shapes.")

    def apply(self, scores: Sequence[float]) -> tuple[float, ...]:
        """Return the new scores."""
        return tuple(
            sum(weight * score for weight, score in zip(row, scores, strict=True)) + offset
            for row, offset in zip(self.matrix, self.bias, strict=True)
        )

    def recalibrated(self, generation: Generation, labels: Sequence[str] | None) -> Generation:
        """Return an answer with new scores and the text of the best label, if it is about these labels."""
        if generation.scores is None or tuple(labels or ()) != self.labels:
            return generation
        scores = self.apply(generation.scores)
        best = max(range(len(scores)), key=scores.__getitem__)
        return Generation(self.labels[best], generation.tokens, scores, generation.label_tokens)
