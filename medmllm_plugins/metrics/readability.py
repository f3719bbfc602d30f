"""Whether enough answers could be read for accuracy to say something about a model.

An answer that cannot be read counts as wrong, so accuracy is at most the share of answers that were read. Where this
share is below the accuracy of a blind answer (always the most common class), or below one half, accuracy measures the
form of the answers rather than their content, and a comparison with the blind answer is no finding about the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.metrics.outcomes import Outcome

MOSTLY: Final = 0.5
"""From this share on, most answers were read."""
DEMO_NOTE: Final = "The demo model only knows phantoms."
"""Why the embedded checkpoint cannot answer questions about real images."""
_BLIND: Final[Mapping[str, str]] = {
    "majority_class": "always answering the most common class",
    "always_no": "always answering no",
}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Answers of which too few could be read.

    Attributes:
        read: answers that were read.
        total: answers in all.
        blind: the blind answer's name for people; empty where it is not known.
        blind_accuracy: its accuracy; NaN likewise.
        scores: figures of the label scores, by name for people; empty where the answers have none.
    """

    read: int
    total: int
    blind: str
    blind_accuracy: float
    scores: Mapping[str, float]

    @property
    def count(self) -> str:
        """How many could be read, without a full stop: ``No answer could be read (0 of 621)``."""
        if self.read == 0:
            return f"No answer could be read (0 of {self.total:,})"
        return f"Only {_percent(self.read / self.total)} of the answers could be read ({self.read:,} of {self.total:,})"

    def sentences(self, note: str = "") -> str:
        """Return what that means for the numbers.

        Args:
            note: what is known of the cause, a sentence.
        """
        if self.read == 0:
            meaning = "Accuracy is 0% for that reason alone and says nothing about what the model knows."
        elif self.read / self.total < MOSTLY:
            meaning = (
                "The others count as wrong, so accuracy says more about the form of the answers than their content."
            )
        else:
            meaning = f"Accuracy cannot exceed that, and {self.blind} would score {self.blind_accuracy:.1%}."
        scores = ""
        if self.scores:
            listed = ", ".join(f"{name} {value:.1%}" for name, value in self.scores.items())
            scores = f"The label scores do not depend on the text and still count: {listed}."
        return " ".join(filter(None, (f"{self.count}.", note, meaning, scores)))


def unreadable(figures: Mapping[str, Any]) -> Unreadable | None:
    """Return what to say where too few answers could be read; ``None`` where enough were, or it is not known.

    Args:
        figures: a task's figures as ``TASK.metrics.json`` has them, whatever its kind.
    """
    metrics = _mapping(figures.get("metrics"))
    share, total = _value(metrics.get("parsed")), figures.get("n")
    if math.isnan(share) or isinstance(total, bool) or not isinstance(total, int) or total < 1:
        return None
    name, blind = _blind(figures)
    if share < MOSTLY or share < blind:  # neither holds of NaN
        return Unreadable(round(share * total), total, name, blind, _scores(figures))
    return None


def unreadable_outcomes(outcomes: Sequence[Outcome]) -> Unreadable | None:
    """Return the same of scored rows, for where there are no figures; label scores are left out."""
    if not outcomes:
        return None
    labels = Counter(outcome.label for outcome in outcomes)
    no = any(outcome.finding for outcome in outcomes)
    blind = {"always_no": labels["no"]} if no else {"majority_class": max(labels.values())}
    read = sum(outcome.predicted is not None for outcome in outcomes)
    return unreadable(
        {
            "n": len(outcomes),
            "metrics": {"parsed": {"value": read / len(outcomes)}},
            "baselines": {name: {"accuracy": count / len(outcomes)} for name, count in blind.items()},
        }
    )


def _blind(figures: Mapping[str, Any]) -> tuple[str, float]:
    baselines = _mapping(figures.get("baselines"))
    if not baselines:  # of a task that asks in several ways each way has its own, and they are alike
        baselines = _mapping(_mapping(next(iter(_mapping(figures.get("variants")).values()), None)).get("baselines"))
    for key, name in _BLIND.items():
        value = _number(_mapping(baselines.get(key)).get("accuracy"))
        if not math.isnan(value):
            return name, value
    return "", math.nan


def _scores(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return accuracy of the label that scores highest, and AUROC, where every answer has label scores."""
    by_sum = _mapping(_mapping(figures.get("label_scores")).get("sum"))
    values = {
        "accuracy of the highest-scoring label": _value(by_sum.get("accuracy")),
        "AUROC": _value(_mapping(figures.get("metrics")).get("auroc")),
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _percent(share: float) -> str:
    """Return a share in percent: without decimals from 1% on, and never rounded to nothing."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(estimate: object) -> float:
    return _number(_mapping(estimate).get("value"))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
