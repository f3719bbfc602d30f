"""Referral: accuracy of the other answers when the least confident ones go to a reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.figure_style import Drawing, finish
from medmllm_plugins.report.figures.line_panel import MAX_LABELS, LinePanel, PanelLine, draw_panel, plot_panel
from medmllm_plugins.report.probability_checks import ProbabilityCheck
from medmllm_plugins.report.run_collection import DatasetRuns


def referral_panel(checks: Sequence[ProbabilityCheck]) -> LinePanel:
    """Return one line with its band for each model, the most accurate one first."""
    lowest = min((_ends(accuracy)[0] for check in checks for accuracy in check.referral.accuracy), default=0.0)
    ranked = sorted(checks, key=lambda check: -check.referral.accuracy[-1].value)
    # Room for the labels below the lines.
    room = 0.075 * min(len(ranked), MAX_LABELS)
    bottom = max(0.0, (lowest - room) / (1 - room))
    return LinePanel(
        lines=tuple(_line(check) for check in ranked),
        x_title="referred to a reader, percent",
        y_title="accuracy of the rest, percent",
        x_range=(0.0, 51.0),
        y_range=(5.0 * math.floor(20 * bottom), 101.0),
        labels="lower right",
        tips=(
            ("referred", "@x{0.0}%"),
            ("accuracy of the rest", "@y{0.0}%"),
            ("95% CI", "@low{0.0}–@high{0.0}"),
        ),
    )


def _ends(accuracy: Estimate) -> tuple[float, float]:
    return (accuracy.low, accuracy.high) if known(accuracy.low) else (accuracy.value, accuracy.value)


def _line(check: ProbabilityCheck) -> PanelLine:
    curve = check.referral
    subject = check.result.subject
    return PanelLine(
        label=subject.label,
        subject=subject,
        x=[100 * share for share in curve.referred],
        y=[100 * accuracy.value for accuracy in curve.accuracy],
        low=[100 * _ends(accuracy)[0] for accuracy in curve.accuracy],
        high=[100 * _ends(accuracy)[1] for accuracy in curve.accuracy],
        name=subject.label,
    )


def referrals(dataset: DatasetRuns, checks: Sequence[ProbabilityCheck], figure_number: int) -> Drawing | None:
    """Draw accuracy against the share of answers that are referred."""
    if not checks:
        return None
    panel = referral_panel(checks)
    rows = [
        (check.result.subject.label, check.referral.accuracy[0].value, check.referral.accuracy[-1].value)
        for check in checks
    ]
    return finish(
        draw_panel(panel),
        f"{dataset.name}.referral",
        number=figure_number,
        interactive=plot_panel(panel, figure_number),
        data_set=dataset.title,
        rows=rows,
    )
