"""Records of plugins' interventions: what label scores lose under conditions that a plugin makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.utils.record import Record, VersionedRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionPoint(Record):
    """The effect of one condition.

    Attributes:
        condition: its name, which the plugin chooses.
        accuracy: accuracy of the label that scores highest.
        lost: accuracy of the model as it is minus that, paired.
        log_odds_lost: the same of the mean log-odds of the correct label against all others, in nats.
    """

    condition: str
    accuracy: Estimate
    lost: Estimate
    log_odds_lost: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention(Record):
    """The result of one intervention.

    Attributes:
        name: its name.
        summary: what it does, in one line.
        citation: reference; empty for none.
        accuracy: accuracy of the label that scores highest, with nothing changed.
        points: its conditions, in the plugin's order.
    """

    name: str
    summary: str = ""
    citation: str = ""
    accuracy: Estimate = UNKNOWN
    points: tuple[ConditionPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionResults(VersionedRecord):
    """Plugins' interventions of one task: the content of ``TASK.interventions.json``.

    Attributes:
        task: the task's name.
        n: documents.
        groups: groups that are resampled for intervals.
        results: one for each intervention.
    """

    FORMAT: ClassVar[str] = "medmllm_interventions"

    task: str = ""
    n: int = 0
    groups: int = 0
    results: tuple[Intervention, ...] = ()

    @property
    def headline(self) -> str:
        """The largest loss by each intervention, a sentence each."""
        sentences = []
        for result in self.results:
            worst = max(result.points, key=lambda point: point.lost.value, default=None)
            if worst is not None:
                lost, low, high = (100 * number for number in (worst.lost.value, worst.lost.low, worst.lost.high))
                sentences.append(
                    f"{result.name}: the label scores lose most under {worst.condition!r}, {lost:.1f} points (95% CI "
                    f"{low:.1f} to {high:.1f}) of {result.accuracy.value:.1%}."
                )
        return " ".join(sentences)
