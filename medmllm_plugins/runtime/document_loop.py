"""Interventions on documents, in batches, each stored as it comes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from medmllm_plugins.runtime.answer_loop import AnswerOptions
from medmllm_plugins.runtime.batches import Batches, BatchSize
from medmllm_plugins.runtime.journal import Journal, Reply
from medmllm_plugins.utils.progress import Progress

Read = TypeVar("Read")
Key = TypeVar("Key", bound=Hashable)


def answer_documents(
    title: str,
    names: Mapping[str, Mapping[Key, str]],
    journal: Journal,
    options: AnswerOptions,
    *,
    read: Callable[[str], Read],
    weigh: Callable[[Read], float],
    answer: Callable[[list[Read]], list[dict[Key, Reply]]],
) -> None:
    """Answer what the journal does not hold of this process's share of the documents.

    Args:
        title: of the progress.
        names: by document, the names of all its replies in the journal by what they are.
        journal: takes the replies of each batch.
        options: batch size, and which process this is.
        read: reads a document.
        weigh: how much there is to compute, by which documents are sorted.
        answer: returns the replies of a batch, document by document.
    """
    own = list(names)[options.rank :: options.world_size]
    todo = unanswered(names, journal, options)

    def prepare(_: list[Read]) -> None:
        """Leave the model's input to ``answer``, which needs several."""

    def answer_batch(batch: list[Read], _: None) -> list[dict[Key, Reply]]:
        return answer(batch)

    size = BatchSize(options.batch_size, options.max_batch_size)
    batches = Batches(size, read, weigh, prepare, answer_batch, ahead=False)
    with Progress(title, len(own), "documents", done=len(own) - len(todo)) as progress:
        for batch, _, replies in batches.run(todo):
            for document, each in zip(batch, replies, strict=True):
                journal.add({names[document][key]: reply for key, reply in each.items()})
            progress.update(len(batch))


def unanswered(names: Mapping[str, Mapping[Key, str]], journal: Journal, options: AnswerOptions) -> list[str]:
    """Return this process's documents that the journal lacks a reply to."""
    own = list(names)[options.rank :: options.world_size]
    return [document for document in own if not all(name in journal.known for name in names[document].values())]
