"""Records of patching: what the states of one model do in a run of another, site by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord

Direction: TypeAlias = Literal["restore", "break"]
"""``restore``: the better model's states in the other one; ``break``: the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPoint(Record):
    """The effect of states that are put in at one site.

    Attributes:
        layer: ``vision`` (end of the tower), ``connector alone`` (the other model's connector behind the model's own
            tower), ``connector`` (tower and connector), ``llm.embed``, a block such as ``llm.03``, ``llm.norm``.
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
class ModuleCombination(Record):
    """The answers of a model whose modules come from two models.

    Attributes:
        vision: name of the model whose vision tower is used.
        connector: likewise for the connector.
        llm: likewise for the LLM.
        accuracy: accuracy of the answers.
        log_odds: mean log-odds of the correct label against all others, in nats.
    """

    vision: str
    connector: str
    llm: str
    accuracy: Estimate
    log_odds: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShare(Record):
    """A module's share of the difference between two models: its Shapley value over all eight combinations.

    The shares of the three modules add up to the difference.

    Attributes:
        module: ``vision``, ``connector`` or ``llm``.
        accuracy: share of the difference in accuracy.
        log_odds: share of the difference in mean log-odds of the correct label, in nats.
    """

    module: str
    accuracy: Estimate
    log_odds: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinPatching(VersionedRecord):
    """Twin patching of one task: the content of ``TASK.patching.json``.

    Attributes:
        task: the task's name.
        headline: the result in two or three sentences.
        checkpoints: the checkpoint of ``model`` and that of ``twin``.
        worse: which of the two answers worse.
        better: the other one.
        n: documents.
        groups: groups that are resampled for intervals.
        worse_accuracy: accuracy of the one.
        better_accuracy: accuracy of the other.
        difference: the latter minus the former, paired.
        points: every site in both directions, in the order in which an image passes them.
        first_restoring: name of the first site whose states restore at least half of the difference; ``""`` for none.
        first_breaking: name of the first site whose states break at least half of it; ``""`` for none.
        stages: the failure modes at whose stage at least a fifth of the difference comes in, in either direction, in
            the order of the stages; empty if the models do not differ.
        combinations: the answers of all eight combinations of modules.
        shares: the share of each module in the difference.
        warnings: what limits these results.
    """

    FORMAT: ClassVar[str] = "medmllm_patching"

    task: str = ""
    headline: str = ""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
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
    combinations: tuple[ModuleCombination, ...] = ()
    shares: tuple[ModuleShare, ...] = ()
    warnings: tuple[str, ...] = ()
