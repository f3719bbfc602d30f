"""Answers read from label scores instead of the text, in three forms, side by side.

The raw sum of log-probabilities favours short labels and those that the model likes to say; the mean per token makes up
for length, and subtracting the scores on an image that holds nothing makes up for what the words alone suggest. Source
of the last: Zhao et al., "Calibrate Before Use", ICML 2021 (contextual calibration), with a blank image as the
content-free input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints, Weights, accuracy, balanced_accuracy, macro_f1
from medmllm_plugins.metrics.outcome_arrays import Tables
from medmllm_plugins.metrics.outcomes import Outcome

FORMS: Final = ("sum", "mean", "calibrated")
"""Sum over a label's tokens; mean over them; sum less that on a blank image."""


def forms(outcomes: Sequence[Outcome]) -> dict[str, Floats]:
    """Return the scores in each form that all outcomes allow, ``[n, K]`` each; none where an outcome has no scores."""
    if not outcomes or any(outcome.scores is None for outcome in outcomes):
        return {}
    raw = np.array([outcome.scores for outcome in outcomes], dtype=np.float64)
    scores_by_form = {"sum": raw}
    if all(outcome.tokens is not None for outcome in outcomes):
        scores_by_form["mean"] = raw / np.array([outcome.tokens for outcome in outcomes], dtype=np.float64)
    if all(outcome.blank is not None for outcome in outcomes):
        scores_by_form["calibrated"] = raw - np.array([outcome.blank for outcome in outcomes], dtype=np.float64)
    return scores_by_form


class LabelScores:
    """Accuracy, balanced accuracy and macro-F1 of the label that scores highest, in each form.

    AUROC is reported for the sums alone: calibration takes the same from every document, which moves the border between
    classes and not their ranking.

    Args:
        answers: by form, (m,) index of the class that scores highest.
        truth: (m,) index of the true class; at least two classes occur.
        classes: K.
    """

    def __init__(self, answers: Mapping[str, Ints], truth: Ints, classes: int) -> None:
        self._tables = {name: Tables(truth, answer, classes) for name, answer in answers.items()}

    def __call__(self, weights: Weights, auroc: Floats) -> dict[str, Floats]:
        """Compute every figure under document weights.

        Args:
            weights: (m, B).
            auroc: (B,) that of the sums, which the summary has already.

        Returns:
            ``"form:metric"`` to (B,).
        """
        figures: dict[str, Floats] = {}
        for name, tables in self._tables.items():
            counts = tables(weights)
            figures |= {
                f"{name}:accuracy": accuracy(counts),
                f"{name}:balanced": balanced_accuracy(counts),
                f"{name}:macro_f1": macro_f1(counts),
            }
        if "sum" in self._tables:
            figures["sum:auroc"] = auroc
        return figures
