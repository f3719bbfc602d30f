"""Records of attention knock-out: what the answers lose if the image is hidden in some layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutPoint(Record):
    """The effect of one cut.

    Attributes:
        first: first block of the window.
        last: last block of the window.
        queries: the tokens that no longer see the image: ``question`` (the text of the prompt before its last token),
            ``answer`` (its last token and the answer), or ``text`` for both.
        accuracy: accuracy of the label that scores highest.
        lost: accuracy of the model as it is minus that, paired.
        log_odds_lost: the same of the mean log-odds of the correct label against all others, in nats.
    """

    first: str
    last: str
    queries: str
    accuracy: Estimate
    lost: Estimate
    log_odds_lost: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Knockout(VersionedRecord):
    """Attention knock-out of one task: the content of ``TASK.knockout.json``.

    Attributes:
        task: the task's name.
        headline: the result in one or two sentences.
        n: documents.
        groups: groups that are resampled for intervals.
        accuracy: accuracy of the label that scores highest, with nothing cut.
        points: windows from the first to the last, question before answer; then all blocks.
    """

    FORMAT: ClassVar[str] = "medmllm_knockout"

    task: str = ""
    headline: str = ""
    n: int = 0
    groups: int = 0
    accuracy: Estimate = UNKNOWN
    points: tuple[KnockoutPoint, ...] = ()
