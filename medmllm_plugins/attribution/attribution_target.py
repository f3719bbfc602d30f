"""The target of an attribution: a label's log-odds against the others, or the log-probability of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.models.generation import greedy


@dataclass(frozen=True, slots=True)
class Target:
    """A scalar computed from a question and an image.

    Attributes:
        name: The label, or the answer's text.
        answers: Answers that are scored: all labels, or the answer alone.
        ids: Tokens of the answer as it was generated, where that is the target; all of them are scored.
    """

    name: str
    answers: tuple[str, ...]
    index: int
    ids: tuple[int, ...] = ()

    @classmethod
    def of_label(cls, label: str, classes: Sequence[str], answers: Sequence[str]) -> Target:
        """Return the log-odds of a class against the others; ``answers`` are the words that stand for ``classes``.

        Raises:
            OptionError: The label is not one of the classes.
        """
        if label not in classes:
            raise OptionError(
                f"Expected `target` to be decision, truth, answer or one of {list(classes)}, got {label!r}."
            )
        return cls(label, tuple(answers), list(classes).index(label))

    @classmethod
    def of_answer(cls, text: str) -> Target:
        """Return the log-probability of a text, or raise an OptionError if it is empty."""
        if not text.strip():
            raise OptionError("Expected an answer to explain, got an empty one. Use target=decision.")
        return cls(text.strip(), (text.strip(),), 0)

    @property
    def is_label(self) -> bool:
        """Return whether this is the log-odds of a label."""
        return len(self.answers) > 1

    def value(self, scores: Tensor) -> Tensor:
        """Return the target of each row of log-probabilities (R, K), as (R,) in nats.

        With log-probabilities s of the labels, each summed over its tokens, the log-odds of label k are
        s_k - log sum_{j != k} exp(s_j).
        """
        if not self.is_label:
            return scores[:, self.index]
        others = [index for index in range(len(self.answers)) if index != self.index]
        return scores[:, self.index] - torch.logsumexp(scores[:, others], dim=1)

    def probability(self, scores: Tensor) -> Tensor:
        """Return the target's probability, (R,): among the labels, or of the answer."""
        return torch.softmax(scores, dim=1)[:, self.index] if self.is_label else scores[:, self.index].exp()


@torch.no_grad()
def generated_ids(loaded: LoadedModel, question: Question, visual: VisualInput, text: str) -> tuple[int, ...] | None:
    """Generate an answer again and return its tokens.

    ``text`` is the answer without surrounding white space; where it was cut off, its beginning.

    Returns:
        The tokens, or None where another text is generated.
    """
    inputs = loaded.prepare([question], [visual])
    words = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = loaded.max_length - int(inputs["attention_mask"].sum())
    # Text may be generated in more tokens than a tokeniser makes of it.
    (ids,) = greedy(
        loaded.model,
        loaded.prefill(inputs),
        max_new_tokens=max(0, min(2 * len(words) + 8, room)),
        eos_token_ids=loaded.eos_token_ids,
    )
    for count in (len(ids), *range(1, len(ids))):
        decoded = loaded.tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if str(decoded).strip() == text:
            return tuple(ids[:count])
    return None
