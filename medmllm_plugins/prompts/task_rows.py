"""The rows of a task: documents times the ways in which each is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import mixed
from medmllm_plugins.prompts.protocols import YES_NO, Question, ask, ask_finding, orders
from medmllm_plugins.prompts.task_settings import ALL, TaskSettings
from medmllm_plugins.prompts.wording import PARAPHRASES


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of asking: an order of the options and a wording.

    Attributes:
        name: ``""`` where there is only one; ``"order 2"`` or ``"wording 3"`` where several are compared.
        order: positions of the classes in the order they are listed; ``None`` for their own.
        paraphrase: which wording.
    """

    name: str = ""
    order: tuple[int, ...] | None = None
    paraphrase: int = 0


def variants(settings: TaskSettings) -> tuple[Variant, ...]:
    """Return all ways in which each document is asked."""
    if settings.paraphrase == ALL:
        return tuple(Variant(f"wording {number}", None, number) for number in range(PARAPHRASES + 1))
    wording = int(settings.paraphrase)
    if settings.order == "given":
        return (Variant("", None, wording),)
    permutations = orders(len(settings.dataset.classes))
    return tuple(Variant(f"order {number}", order, wording) for number, order in enumerate(permutations))


class TaskRows:
    """What the host iterates over, and the question behind each row.

    The order of rows is fixed and mixes classes, so that the host's ``--limit`` takes a sample of all classes. All rows
    of a document follow each other, so that a sample holds whole documents.
    """

    def __init__(self, settings: TaskSettings, documents: Sequence[Document]) -> None:
        """Lay out the rows of ``documents``."""
        self._settings = settings
        self.variants = variants(settings)
        self.documents = tuple(sorted(documents, key=lambda document: mixed(document.id)))
        spec = settings.dataset
        self._questions: dict[tuple[str, str], Question] = {}
        for variant in self.variants:
            for finding in self.findings:
                self._questions[variant.name, finding or ""] = self._ask(spec, variant, finding)

    @property
    def findings(self) -> tuple[str | None, ...]:
        """What of a multi-label set is asked about, each in a row of its own; ``None`` for other sets."""
        spec = self._settings.dataset
        if spec.kind != "multilabel":
            return (None,)
        return spec.labels if self._settings.finding is None else (self._settings.finding,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The right answers there can be: the classes, or yes and no."""
        return tuple(YES_NO) if self._settings.dataset.kind == "multilabel" else self._settings.dataset.labels

    def _ask(self, spec: DatasetSpec, variant: Variant, finding: str | None) -> Question:
        if finding is not None:
            return ask_finding(spec.modality, finding, spec.classes[finding], paraphrase=variant.paraphrase)
        return ask(
            self._settings.protocol, spec.modality, spec.classes, order=variant.order, paraphrase=variant.paraphrase
        )

    def question(self, row: dict[str, Any] | Any) -> Question:
        """Return the question of a row."""
        return self._questions[row["variant"], row["finding"]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows as the host holds them: without images or paths, so that none reaches a log.

        ``id`` is unique; ``document`` is the document's id; ``finding`` and ``variant`` are empty where there is
        only one; ``answers`` are the answers that are scored, in class order.
        """
        for document in self.documents:
            for finding in self.findings:
                for variant in self.variants:
                    parts = [part for part in (finding, variant.name) if part]
                    yield {
                        "id": " | ".join([document.id, *parts]),
                        "document": document.id,
                        "label": correct_answer(document, finding),
                        "group": document.group,
                        "fold": document.fold,
                        "finding": finding or "",
                        "variant": variant.name,
                        "answers": list(self._questions[variant.name, finding or ""].labels),
                    }


def correct_answer(document: Document, finding: str | None) -> str:
    """Return the class of a document; for a finding, whether it is present: yes or no."""
    if finding is not None:
        return YES_NO[0] if finding in document.labels else YES_NO[1]
    (label,) = document.labels
    return label
