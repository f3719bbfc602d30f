"""The interface of a model in memory, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import fingerprint
from medmllm_plugins.models.families.family import Family, ImageStage
from medmllm_plugins.models.families.family import VisualInput as VisualInput
from medmllm_plugins.models.generation import Prefill, first_token, greedy, prefill, score_labels


@dataclass(frozen=True, slots=True)
class FewShotExample:
    """A solved example before a question: its text, the number of its images, and the correct answer."""

    question: str
    images: int
    answer: str


@dataclass(frozen=True, slots=True)
class FewShotPrompt:
    """A question after solved examples, whose images come first."""

    examples: tuple[FewShotExample, ...]
    question: str


Question: TypeAlias = str | FewShotPrompt
"""A question's text, alone or after solved examples; examples need a model that takes several images."""


def single(question: Question) -> str:
    """Return the text of a question without examples.

    Raises:
        ModelError: it has some, and the model answers single turns.
    """
    if isinstance(question, FewShotPrompt):
        raise ModelError("Expected a question without few-shot examples, since the model answers single turns.")
    return question


@dataclass(frozen=True, slots=True)
class Generation:
    """A model's answer.

    Attributes:
        text: the generated text as decoded, special tokens left out and whitespace kept.
        tokens: number of generated tokens, the end-of-sequence token not counted.
        scores: log p(label | prompt, image) in nats for each label that was to be scored, see
            :func:`medmllm_plugins.models.generation.score_labels`; ``None`` without labels.
        label_tokens: number of tokens that each of these scores is a sum over.
    """

    text: str
    tokens: int
    scores: tuple[float, ...] | None = None
    label_tokens: tuple[int, ...] | None = None


class Watch(Protocol):
    """An observer of the outputs of a model's stages while it answers."""

    @property
    def needs_answers(self) -> bool:
        """Whether the first token of each answer is run through the model for it."""

    def prompt(self, inputs: Mapping[str, Tensor]) -> AbstractContextManager[object]:
        """Observe while the prompts of a batch, with their images, go through the model."""

    def answer(self) -> AbstractContextManager[object]:
        """Observe while the first token of each answer goes through the model."""


class LoadedModel(ABC):
    """A model in memory.

    Attributes:
        model: the transformers model, in evaluation mode, its parameters frozen.
        max_length: the most tokens that prompt (image tokens included) and answer may have together.
        eos_token_ids: tokens that end an answer.
        pad_token_id: the token prompts are padded with on the left.
        shows: what a question is about: ``"image"`` (one), ``"images"`` (one or several) or ``"volume"``.
        max_new_tokens: the longest answer, where the model needs more than a task allows; ``None`` otherwise.
        weight_warnings: what looks wrong with the weights, a sentence each.
    """

    shows: Literal["image", "images", "volume"] = "image"

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    device: torch.device
    dtype: torch.dtype
    max_length: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int | None = None
    weight_warnings: tuple[str, ...] = ()
    _files: tuple[Path, ...]

    @property
    def prefix_length(self) -> int:
        """Number of tokens at the beginning of each of :meth:`label_ids` that precede the label and are not scored."""
        return 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all files the model was made from, see :func:`medmllm_plugins.models.checkpoint.fingerprint`."""
        return fingerprint(self._files)

    @abstractmethod
    def render(self, question: Question) -> str:
        """Return the whole prompt as text, image placeholder included."""

    @abstractmethod
    def prepare(self, questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        """Make the model's input from B questions about one visual input each.

        Returns:
            ``input_ids`` and ``attention_mask``, (B, L), int64, padded on the left; ``pixel_values``, (B, 3, H, W) or
            in the processor's layout, of the model's dtype. All on the model's device.

        Raises:
            ModelError: a question or an image cannot be taken.
        """

    def prepare_text(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Make the model's input from B questions without an image: ``input_ids`` and ``attention_mask``, see above.

        Raises:
            ModelError: the model takes no question without an image.
        """
        raise ModelError(f"{type(self).__name__} takes no question without an image.")

    @abstractmethod
    def label_ids(self, question: Question, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label as the answer to ``question``.

        Raises:
            ModelError: a label is empty, or merges with the prompt's last token so that it has no tokens of its own.
        """

    def rows_per_document(self, stage: ImageStage, inputs: Mapping[str, Tensor]) -> list[int]:
        """Return how many entries of a stage's first output axis belong to each of B prepared documents."""
        return self.family.rows_per_document(self.model, stage, inputs)

    def image_positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return which tokens of the prompts are replaced by image features, (B, L), bool."""
        return self.family.image_positions(self.model, inputs)

    def prefill(self, inputs: Mapping[str, Tensor]) -> Prefill:
        """Run prompts and images through the model once, see :func:`medmllm_plugins.models.generation.prefill`."""
        return prefill(self.model, self.family, inputs)

    def check_length(self, prompt: int, new: int) -> None:
        """Refuse a prompt of ``prompt`` tokens with ``new`` tokens to come if both exceed ``max_length``."""
        if prompt + new > self.max_length:
            raise ModelError(
                f"The prompt has {prompt} tokens (image tokens included) and {new} may follow: {prompt + new} in all, "
                f"but the model takes {self.max_length}. Shorten the question or lower max_new_tokens."
            )

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[Question],
        images: Sequence[VisualInput],
        *,
        max_new_tokens: int,
        labels: Sequence[str] | None = None,
        inputs: dict[str, Tensor] | None = None,
        watch: Watch | None = None,
    ) -> list[Generation]:
        """Answer B questions about one visual input each, greedily, and score labels from the same prefill.

        Args:
            questions: one for each visual input.
            images: 8-bit images, or what else the model takes; not read where ``inputs`` are given.
            max_new_tokens: the most tokens of an answer; 0 gives empty texts, where only scores are wanted.
            labels: answers to score for each question; ``None`` or empty for none.
            inputs: what :meth:`prepare` or :meth:`prepare_text` returned for these questions.
            watch: observes the outputs of the stages.

        Raises:
            ModelError: the input cannot be taken, or is too long with what is to follow.
        """
        if max_new_tokens < 0:
            raise ModelError(f"Expected `max_new_tokens` to be 0 or more, got {max_new_tokens}.")
        if not questions and not images:
            return []
        if inputs is None:
            inputs = self.prepare(questions, images)
        ids = self._cached_label_ids(questions, labels) if labels else []
        longest = max((len(label) for row in ids for label in row), default=0)
        self.check_length(int(inputs["attention_mask"].sum(-1).max()), max(max_new_tokens, longest))

        with nullcontext() if watch is None else watch.prompt(inputs):
            start = self.prefill(inputs)
        if watch is not None and watch.needs_answers:
            with watch.answer():
                first_token(self.model, start)
        # Scores come first: greedy decoding extends the cache in place.
        prefix = self.prefix_length if ids else 0
        scores = (
            [tuple(row) for row in score_labels(self.model, start, ids, prefix_length=prefix).tolist()]
            if ids
            else [None] * len(questions)
        )
        rows = greedy(self.model, start, max_new_tokens=max_new_tokens, eos_token_ids=self.eos_token_ids)
        texts = [
            str(self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for row in rows
        ]
        counts = [tuple(len(label) - prefix for label in labels) for labels in ids] if ids else [None] * len(questions)
        return [
            Generation(text, len(row), score, count)
            for text, row, score, count in zip(texts, rows, scores, counts, strict=True)
        ]

    def _cached_label_ids(self, questions: Sequence[Question], labels: Sequence[str]) -> list[list[list[int]]]:
        """Return the token ids of the labels for each question; a question that comes often is tokenised once."""
        rows = []
        for question in questions:
            key = (question, tuple(labels))
            if key not in self._label_cache:
                ids = self.label_ids(question, labels)
                if len({tuple(row) for row in ids}) < len(ids):
                    raise ModelError(f"Expected labels that differ as tokens, got two of {list(labels)} that do not.")
                self._label_cache[key] = ids
            rows.append(self._label_cache[key])
        return rows

    @cached_property
    def _label_cache(self) -> dict[tuple[Question, tuple[str, ...]], list[list[int]]]:
        return {}
