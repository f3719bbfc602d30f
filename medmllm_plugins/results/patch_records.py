"""Records of patching: what the states of one model do in a run of another, site by site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record

Direction: TypeAlias = Literal["restore", "break"]
"""``restore``: the better model's states in the other one; ``break``: the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPoint(Record):
    """The effect of states that are put in at one site.

    Attributes:
        layer: ``vision`` (end of the tower), ``connector``, ``llm.embed``, a block such as ``llm.03``, ``llm.norm``.
        tokens: the tokens whose states are put in: ``all``, ``image`` or ``last``.
        direction: ``restore`` or ``break``.
        accuracy: accuracy of the answers with these states.
        effect: change of the accuracy, as a share of the difference between the two models: 0 is the model's own
            accuracy, 1 that of the other model.
        log_odds_effect: the same of the mean log-odds of the correct label against all others.
        parsed: share of answers out of which a class could be read.
    """

    layer: str
    tokens: str
    direction: Direction
    accuracy: Estimate
    effect: Estimate
    log_odds_effect: Estimate
    parsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinPatching(Record):
    """Twin patching of one task.

    Attributes:
        worse: name of the model that answers worse.
        better: name of the other one.
        n: documents.
        groups: groups that are resampled for intervals.
        worse_accuracy: accuracy of the one.
        better_accuracy: accuracy of the other.
        difference: the latter minus the former, paired.
        points: every site in both directions, in the order in which an image passes them.
        first_restoring: name of the first site whose states restore at least half of the difference; ``""`` for none.
        first_breaking: name of the first site whose states break at least half of it; ``""`` for none.
        stages: the failure modes that follow, in the order of the stages; empty if the models do not differ.
    """

    worse: str
    better: str
    n: int
    groups: int
    worse_accuracy: Estimate
    better_accuracy: Estimate
    difference: Estimate = UNKNOWN
    points: tuple[PatchPoint, ...] = ()
    first_restoring: str = ""
    first_breaking: str = ""
    stages: tuple[str, ...] = ()
