"""What an attribution is of: a label's log-odds against the others, or the log-probability of an answer."""

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
    """A number that follows from a question and an image.

    Attributes:
        name: the label, or the answer's text.
        answers: what is scored: all labels, or the answer alone.
        place: which of ``answers`` it is about.
        ids: the tokens of the answer as it was generated, where it is about that; they are scored one and all.
    """

    name: str
    answers: tuple[str, ...]
    place: int
    ids: tuple[int, ...] = ()

    @classmethod
    def of_label(cls, label: str, classes: Sequence[str], answers: Sequence[str]) -> Target:
        """The log-odds of a class against the others.

        Args:
            label: the class.
            classes: all classes.
            answers: the words that stand for them, in that order.

        Raises:
            OptionError: the label is none of the classes.
        """
        if label not in classes:
            raise OptionError(
                f"Expected `target` to be decision, truth, answer or one of {list(classes)}, found {label!r}."
            )
        return cls(label, tuple(answers), list(classes).index(label))

    @classmethod
    def of_answer(cls, text: str) -> Target:
        """The log-probability of a text.

        Raises:
            OptionError: the text is empty, so that there is nothing to explain.
        """
        if not text.strip():
            raise OptionError("Expected an answer to explain, found an empty one; choose target=decision.")
        return cls(text.strip(), (text.strip(),), 0)

    @property
    def is_label(self) -> bool:
        """Whether it is the log-odds of a label."""
        return len(self.answers) > 1

    def value(self, scores: Tensor) -> Tensor:
        """The number itself.

        With log-probabilities s of the labels, each summed over its tokens, the log-odds of label k are
        s_k - log sum_{j != k} exp(s_j).

        Args:
            scores: (R, K), log-probabilities in nats.

        Returns:
            (R,), in nats.
        """
        if not self.is_label:
            return scores[:, self.place]
        others = [place for place in range(len(self.answers)) if place != self.place]
        return scores[:, self.place] - torch.logsumexp(scores[:, others], dim=1)

    def probability(self, scores: Tensor) -> Tensor:
        """Its probability, (R,): among the labels, or of the answer."""
        return torch.softmax(scores, dim=1)[:, self.place] if self.is_label else scores[:, self.place].exp()


@torch.no_grad()
def generated_ids(loaded: LoadedModel, question: Question, shown: VisualInput, text: str) -> tuple[int, ...] | None:
    """The tokens that a model generates for an answer of which the text is known.

    Args:
        loaded: the model.
        question: what was asked.
        shown: the image, images or volume.
        text: the answer, white space around it left out; of a longer one its beginning, where it was cut off.

    Returns:
        The tokens; ``None`` where another text is generated.
    """
    inputs = loaded.prepare([question], [shown])
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
        said = str(loaded.tokenizer.decode(ids[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if said.strip() == text:
            return tuple(ids[:count])
    return None
