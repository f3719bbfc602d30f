"""Whether enough answers could be read for accuracy to say something about a model.

An answer that cannot be read counts as wrong, so accuracy is at most the share of answers that were read. Where this
share is below the accuracy of a blind answer (always the most common class), or below one half, accuracy measures the
form of the answers rather than their content, and a comparison with the blind answer is no finding about the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from medmllm_plugins.metrics.guessing import constant_guess
from medmllm_plugins.metrics.intervals import UNKNOWN, known
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import VariantsSummary
from medmllm_plugins.metrics.summary import Summary

AnySummary: TypeAlias = Summary | FindingsSummary | VariantsSummary
"""The metrics of a task, whatever its kind."""
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
        """Return what that means for the numbers; ``note`` is a sentence on the cause, if it is known."""
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


def unreadable(summary: AnySummary) -> Unreadable | None:
    """Return what to say where too few answers could be read; ``None`` where enough were, or it is not known."""
    by_sum = summary.label_scores.get("sum", {}) if isinstance(summary, Summary) else {}
    scores = {
        "accuracy of the highest-scoring label": by_sum.get("accuracy", UNKNOWN).value,
        "AUROC": summary.metrics.get("auroc", UNKNOWN).value,
    }
    defined = {name: value for name, value in scores.items() if known(value)}
    return _shortfall(summary.metrics.get("parsed", UNKNOWN).value, summary.n, summary.baselines, defined)


def unreadable_outcomes(outcomes: Sequence[Outcome]) -> Unreadable | None:
    """Return the same of scored rows, for where there are no figures; label scores are left out."""
    if not outcomes:
        return None
    labels = Counter(outcome.label for outcome in outcomes)
    no = any(outcome.finding for outcome in outcomes)
    name, count = ("always_no", labels["no"]) if no else ("majority_class", max(labels.values()))
    read = sum(outcome.predicted is not None for outcome in outcomes)
    return _shortfall(read / len(outcomes), len(outcomes), {name: {"accuracy": count / len(outcomes)}}, {})


def _shortfall(
    share: float, total: int, baselines: Mapping[str, Mapping[str, float]], scores: Mapping[str, float]
) -> Unreadable | None:
    guess, accuracy = constant_guess(baselines)
    if total > 0 and (share < MOSTLY or share < accuracy):  # neither holds of NaN
        return Unreadable(round(share * total), total, _BLIND.get(guess, ""), accuracy, scores)
    return None


def _percent(share: float) -> str:
    """Return a share in percent: without decimals from 1% on, and never rounded to nothing."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"
