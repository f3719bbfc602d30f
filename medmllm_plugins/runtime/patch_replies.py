"""Answers of twin patching as replies, and the names they have in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medmllm_plugins.interventions.twin_patching import Answers, PatchSite
from medmllm_plugins.runtime.answer_loop import PreparedRequest, cut
from medmllm_plugins.runtime.journal import Reply


@dataclass(frozen=True, slots=True)
class PatchKey:
    """One answer of twin patching.

    Attributes:
        document: id of the document.
        recipient: whichever answers, :data:`~medmllm_plugins.interventions.twin_patching.MODEL` or ``TWIN``.
        site: where the states of the other one are put in; ``None`` for nowhere.
    """

    document: str
    recipient: str
    site: PatchSite | None


def patch_replies(recipient: str, answers: Answers, batch: Sequence[PreparedRequest]) -> list[dict[PatchKey, Reply]]:
    """Return the replies to each document of a batch."""
    replies: list[dict[PatchKey, Reply]] = [{} for _ in batch]
    for site, by_document in answers.items():
        for item, answer, known in zip(batch, by_document, replies, strict=True):
            key = PatchKey(item.request.row["document"], recipient, site)
            known[key] = Reply(cut(answer.text, item.until), answer.scores)
    return replies
