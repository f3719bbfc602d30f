"""Records of interchange: what states of another document do to a model's answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class InterchangePoint(Record):
    """The effect of the states of one kind of donor at one site.

    Attributes:
        layer: ``connector`` or a block such as ``llm.03``.
        tokens: the tokens whose states are put in: ``all`` at the connector, else ``image`` or ``last``.
        donor: ``other class``, or as a control ``same class``, ``permuted tokens`` or ``noise``.
        flips: share of documents for which the label of the other class scores higher than the document's own, and did
            not before.
        effect: shift of the log-odds between these two labels, as a share of the distance between document and donor
            of another class: 0 is the document's own, 1 that of the donor.
    """

    layer: str
    tokens: str
    donor: str
    flips: Estimate
    effect: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Interchange(VersionedRecord):
    """Interchange within one model: the content of ``TASK.interchange.json``.

    Attributes:
        task: the task's name.
        headline: the result in one or two sentences.
        n: documents.
        groups: groups that are resampled for intervals.
        left_out: documents without donors of another and of the same class with as many image tokens.
        points: every site and kind of donor, in the order in which an image passes the sites.
        image_until: last layer at which image tokens of another class move the answer more than any control does;
            empty for none.
        last_from: first layer at which the last token does; empty for none.
        warnings: what limits these results.
    """

    FORMAT: ClassVar[str] = "medmllm_interchange"

    task: str = ""
    headline: str = ""
    n: int = 0
    groups: int = 0
    left_out: int = 0
    points: tuple[InterchangePoint, ...] = ()
    image_until: str = ""
    last_from: str = ""
    warnings: tuple[str, ...] = ()
