"""Tables of the label scores as probabilities: calibration, referral, ROC curves and operating points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from medmllm_plugins.metrics.intervals import UNKNOWN
from medmllm_plugins.metrics.operating_points import TARGETS
from medmllm_plugins.report.probability_checks import ProbabilityCheck
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Row, Table, model_table

SHOWN_REFERRED: Final = (0.0, 0.1, 0.2, 0.5)
"""Shares of the answers that are referred to a reader, for which the table has the accuracy of the rest."""


def calibration_table(dataset: DatasetRuns, checks: Sequence[ProbabilityCheck]) -> Table:
    """Tabulate calibration error, Brier score, and accuracy when the least confident answers are referred."""
    rows: list[Row] = []
    for check in checks:
        result, curve = check.result, check.referral
        accuracy_at = dict(zip(curve.referred, curve.accuracy, strict=True))
        metrics = (result.metrics.get("ece"), result.metrics.get("brier"))
        kept = (accuracy_at[share] for share in SHOWN_REFERRED)
        rows.append((result.subject, (result.task.name, len(result.task.outcomes), *metrics, curve.area, *kept)))
    return model_table(dataset, "calibration", rows)


def roc_table(dataset: DatasetRuns, checks: Sequence[ProbabilityCheck]) -> Table:
    """Tabulate the area under the ROC curve of each class, and what fixed targets leave."""
    rows: list[Row] = []
    unknown = [UNKNOWN] * len(TARGETS)
    for check in checks:
        for curve in check.curves:
            points = check.points.get(curve.name)
            reached = (*points.sensitivity, *points.specificity) if points is not None else (*unknown, *unknown)
            rows.append((check.result.subject, (curve.name, curve.positives, curve.area, *reached)))
    return model_table(dataset, "roc", rows)
