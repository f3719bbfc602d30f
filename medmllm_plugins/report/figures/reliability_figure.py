"""Reliability: how often answers of about the same stated probability are correct."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.figure_style import Drawing, finish
from medmllm_plugins.report.figures.line_panel import LinePanel, PanelLine, draw_panel, plot_panel
from medmllm_plugins.report.probability_checks import ProbabilityCheck
from medmllm_plugins.report.run_collection import DatasetRuns


def reliability_panel(checks: Sequence[ProbabilityCheck]) -> LinePanel:
    """Return one line for each model with at least one bin, over a diagonal."""
    lines = tuple(_line(check) for check in checks if check.bins)
    lowest = min((part.low for check in checks for part in check.bins), default=0.0)
    return LinePanel(
        lines=lines,
        x_title="stated probability, percent",
        y_title="correct, percent",
        x_range=(10.0 * math.floor(10 * min(lowest, 0.9)), 101.0),
        y_range=(0.0, 104.0),
        labels="upper left",
        tips=(
            ("correct", "@y{0.0}% of @n"),
            ("95% CI", "@low{0.0}–@high{0.0}"),
            ("stated", "@x{0.0}%"),
        ),
        diagonal=True,
        remark="below the line: overconfident",
    )


def _line(check: ProbabilityCheck) -> PanelLine:
    error = check.result.metrics.get("ece")
    stated = f"{error.value:.2f} " if error is not None and known(error) else ""
    intervals = [(part.accuracy.low, part.accuracy.high) for part in check.bins]
    # An interval is unknown where all answers of a bin are of one group.
    ends = [
        (low, high) if known(low) else (part.accuracy.value, part.accuracy.value)
        for part, (low, high) in zip(check.bins, intervals, strict=True)
    ]
    return PanelLine(
        label=f"{stated}{check.result.subject.label}",
        subject=check.result.subject,
        x=[100 * part.confidence for part in check.bins],
        y=[100 * part.accuracy.value for part in check.bins],
        low=[100 * low for low, _ in ends],
        high=[100 * high for _, high in ends],
        counts=[part.n for part in check.bins],
        name=check.result.subject.label,
    )


def reliability(dataset: DatasetRuns, checks: Sequence[ProbabilityCheck], figure_number: int) -> Drawing | None:
    """Draw the reliability diagram of all models."""
    panel = reliability_panel(checks)
    if not panel.lines:
        return None
    errors = [
        (check.result.subject.label, check.result.metrics["ece"].value)
        for check in checks
        if "ece" in check.result.metrics
    ]
    return finish(
        draw_panel(panel),
        f"{dataset.name}.reliability",
        number=figure_number,
        interactive=plot_panel(panel, figure_number),
        data_set=dataset.title,
        errors=errors,
    )
