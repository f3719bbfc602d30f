"""Few-shot examples: solved documents of the train fold that precede a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import mixed
from medmllm_plugins.errors import DataError


class FewShotExamples:
    """Chooses examples: the classes in turn, from the train fold, the same ones for every question.

    An example is passed over where it is of the group asked about, which a published split may allow.
    """

    def __init__(
        self, documents: Sequence[Document], classes: Sequence[str], answer: Callable[[Document], str]
    ) -> None:
        """Put the documents of the train fold in the order in which they are taken; ``answer`` solves one."""
        fold = (document for document in documents if document.fold == "train")
        train = sorted(fold, key=lambda document: mixed(document.id))
        queues = {name: [document for document in train if answer(document) == name] for name in classes}
        self._ordered: list[Document] = []
        for turn in range(max((len(queue) for queue in queues.values()), default=0)):
            self._ordered += [queue[turn] for queue in queues.values() if turn < len(queue)]

    def before(self, document: Document, count: int) -> list[Document]:
        """Return the ``count`` examples that precede a question about ``document``.

        Raises:
            DataError: the train fold has too few.
        """
        examples = [shot for shot in self._ordered if shot.group != document.group][:count]
        if len(examples) < count:
            raise DataError(
                f"Expected {count} documents in the train fold for few-shot examples, got {len(examples)}. "
                "Lower --num_fewshot."
            )
        return examples
