"""Records of anchors: how a model answers when the finding is put in words, and about squares drawn on the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.utils.record import Record

AnchorVerdict: TypeAlias = Literal["answered", "not answered", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorResult(Record):
    """The answers to one kind of anchor.

    Attributes:
        kind: ``text``, ``presence``, ``position`` or ``count``.
        n: prompts.
        groups: groups that are resampled for the interval: wordings of the text anchor, groups of the documents.
        accuracy: share of correct answers; an unparsed answer is wrong.
        chance: accuracy of guessing, ``1 / K``.
        parsed: share of answers out of which a class could be read.
        recalls: share of correct answers by correct class.
        answered: for each correct class how often each class was answered; ``""`` for unparsed answers.
        verdict: ``answered``, ``not answered`` or ``cannot tell``.
    """

    kind: str
    n: int
    groups: int
    accuracy: Estimate
    chance: float
    parsed: float
    recalls: Mapping[str, float]
    answered: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    verdict: AnchorVerdict = "cannot tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors(Record):
    """The anchors of one task.

    Attributes:
        results: one for each kind that was asked about.
        not_run: why there is no ``text`` anchor or no ``positive`` control, where there is none.
    """

    results: tuple[AnchorResult, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> AnchorVerdict | Literal["not run"]:
        """The verdict of the text anchor."""
        return _joined(result.verdict for result in self.results if result.kind == "text")

    @property
    def positive(self) -> AnchorVerdict | Literal["not run"]:
        """The verdict of the positive control: one kind that is answered shows that image information arrives."""
        return _joined(result.verdict for result in self.results if result.kind != "text")


def _joined(verdicts: Iterable[AnchorVerdict]) -> AnchorVerdict | Literal["not run"]:
    """Return ``answered`` if one is, ``not answered`` if all are not, ``not run`` without any."""
    distinct = set(verdicts)
    if not distinct:
        return "not run"
    if "answered" in distinct:
        return "answered"
    return "not answered" if distinct == {"not answered"} else "cannot tell"
