"""What a model answers about the same document under other orders, wordings and protocols, and without its image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report.error_browser.document_rows import document_name
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.templating import text
from medmllm_plugins.utils.json_values import clean

_TEXT: Final = 200
"""Characters of a related answer that could not be read."""
_LISTED: Final = 60
"""Characters of the classes in an order that is written out."""


@dataclass(frozen=True, slots=True)
class RelatedAnswer:
    """An answer to another form of a question.

    Attributes:
        name: index of what differs, among the names of the browser.
        predicted: index of the answered class; ``None`` where the answer could not be read.
        text: the beginning of an answer that could not be read; else empty.
    """

    name: int
    predicted: int | None
    text: str


class RelatedAnswers:
    """Answers of one model to other forms of the questions of its main result, on the same data.

    Attributes:
        names: what differs from the main result, such as ``"blank image"``, and whether the model was shown the
            document's own image.
    """

    def __init__(self, dataset: DatasetRuns, main: TaskResult, classes: Sequence[str]) -> None:
        self._classes = classes
        self.names: list[tuple[str, bool]] = []
        self._answers: dict[tuple[str, str], list[RelatedAnswer]] = defaultdict(list)
        asked: set[tuple[str, ...]] = set()
        for result in dataset.of(main.subject):
            question = result.question("folds", "finding")
            if _asks_otherwise(result, main) and question not in asked:  # another task may ask the same again
                asked.add(question)
                for outcome in result.task.outcomes:
                    self._add(result, main, outcome)

    def of(self, outcome: Outcome, indices: Sequence[int]) -> tuple[RelatedAnswer, ...]:
        """Return the related answers to a question; ``indices`` replace those into :attr:`names`."""
        answers = self._answers.get((document_name(outcome), outcome.finding or ""), ())
        return tuple(RelatedAnswer(indices[answer.name], answer.predicted, answer.text) for answer in answers)

    def _add(self, result: TaskResult, main: TaskResult, outcome: Outcome) -> None:
        if outcome.predicted is not None and outcome.predicted not in self._classes:
            return
        name = (_name(result, main, outcome.variant), result.task.image == "shown")
        if name not in self.names:
            self.names.append(name)
        predicted = None if outcome.predicted is None else self._classes.index(outcome.predicted)
        words = cut(result.task.answers.get(outcome.id, ""), _TEXT) if predicted is None else ""
        answer = RelatedAnswer(self.names.index(name), predicted, words)
        self._answers[document_name(outcome), outcome.finding or ""].append(answer)


def _asks_otherwise(result: TaskResult, main: TaskResult) -> bool:
    """Return whether a result is about the same data, and asks something else than the main result."""
    return (
        bool(result.task.outcomes)
        and result.fingerprint == main.fingerprint
        and result.multilabel == main.multilabel
        and result.task.settings.dataset_options == main.task.settings.dataset_options
        and result.question("folds", "finding") != main.question("folds", "finding")
    )


def _name(result: TaskResult, main: TaskResult, variant: str) -> str:
    """Return in words how a question differs from that of the main result."""
    order = ", ".join(map(clean, result.task.entry.orders.get(variant, ())))
    settings, usual = result.task.settings, main.task.settings
    return text(
        "errors.txt.jinja",
        "related",
        protocol="" if settings.protocol == usual.protocol else settings.protocol,
        image="" if settings.image == usual.image else settings.image,
        order=order if 0 < len(order) <= _LISTED else "",
        variant=cut(variant, 40),
        wording="" if settings.varied or settings.paraphrase == usual.paraphrase else str(settings.paraphrase),
    )
