"""Names that the report prints for metrics, readings of label scores, stages and poolings."""

from __future__ import annotations

from typing import Final

METRICS: Final = {
    "accuracy": "Accuracy",
    "balanced": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "Average precision",
    "kappa": "Quadratic kappa",
    "ece": "Calibration error",
    "brier": "Brier score",
    "parsed": "Parsed",
}
"""Metrics of a task in the order of columns; shares of 1, apart from those in :data:`DECIMALS`."""
FINDING_METRICS: Final = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "balanced": METRICS["balanced"],
    "f1": "F1",
    "mcc": METRICS["mcc"],
    "auroc": METRICS["auroc"],
    "auprc": METRICS["auprc"],
    "parsed": METRICS["parsed"],
}
"""Metrics of one finding in the order of columns."""
DECIMALS: Final = frozenset({"macro_f1", "f1", "mcc", "auroc", "auprc", "kappa", "ece", "brier"})
"""Metrics that are shown as numbers, not in percent."""
SCORE_FORMS: Final = {
    "sum": "sum of log-probabilities",
    "mean": "mean over a label's tokens",
    "calibrated": "sum minus that of a blank image",
}
"""Forms of the label scores; see :mod:`medmllm_plugins.metrics.label_scores`."""
STATUSES: Final = {
    "parsed": "Parsed",
    "ambiguous": "Ambiguous",
    "out_of_list": "Not in the list",
    "refusal": "Refusal",
}
"""Results of parsing an answer."""
PARTS: Final = {"vision": "vision tower", "connector": "connector", "llm": "LLM"}
POOLINGS: Final = {"mean": "mean over tokens", "last": "last token"}
CHECKS: Final = {
    "deletion_gain": "deletion over random order",
    "insertion_gain": "insertion over random order",
    "stability": "stability under noise",
    "inside": "mass inside the mask",
    "pointing": "pointing game",
    "completeness_gap": "completeness gap",
}
"""Checks of an attribution method."""
ENTRY_CHECKS: Final = {
    "completeness_gap": "completeness gap",
    "deletion": "deletion",
    "deletion_random": "deletion, random order",
    "insertion": "insertion",
    "insertion_random": "insertion, random order",
    "stability": "stability",
    "inside": "inside the mask",
    "area": "mask's share of the area",
}
"""Checks of one attribution map."""
