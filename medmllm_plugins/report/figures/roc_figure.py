"""ROC curves: the positive class, the mean over the classes, or the classes of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from medmllm_plugins.report.figures.figure_style import Drawing, finish
from medmllm_plugins.report.figures.line_panel import MAX_LABELS, LinePanel, PanelLine, draw_panel, plot_panel
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.probability_checks import ProbabilityCheck
from medmllm_plugins.report.roc_curves import RocCurve
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subjects import Subject

View: TypeAlias = Literal["positive", "mean", "classes"]
"""What a panel shows of each model: the curve of its positive class, the mean of all, or all."""


def view_of(checks: Sequence[ProbabilityCheck]) -> View:
    """Return what the first panel shows.

    This is the positive class, if all models have the same one; else the classes of a single model, if they are few;
    else the mean over the classes.
    """
    names = {check.positive for check in checks}
    if len(names) == 1 and "" not in names and all(check.curve_of(check.positive) for check in checks):
        return "positive"
    return "classes" if len(checks) == 1 and len(checks[0].curves) <= MAX_LABELS else "mean"


def roc_panel(checks: Sequence[ProbabilityCheck], view: View) -> LinePanel:
    """Return the ROC curves, labelled with their areas; the largest area first."""
    lines: list[tuple[float, PanelLine]] = []
    for check in checks:
        subject = check.result.subject
        if view == "classes":
            lines += [
                (curve.area, _line(curve, subject, cut(curve.name, 18), index))
                for index, curve in enumerate(check.curves)
            ]
        elif (shown := check.curve_of(check.positive) if view == "positive" else check.mean_curve) is not None:
            lines.append((shown.area, _line(shown, subject, subject.label, 0)))
    lines.sort(key=lambda pair: -pair[0])
    return LinePanel(
        lines=tuple(line for _, line in lines),
        x_title="1 − specificity, percent",
        y_title="sensitivity, percent",
        x_range=(-1.0, 101.0),
        y_range=(-1.0, 103.0),
        labels="lower right",
        tips=(("sensitivity", "@y{0.0}%"), ("1 − specificity", "@x{0.0}%")),
        diagonal=True,
    )


def _line(curve: RocCurve, subject: Subject, name: str, dashes: int) -> PanelLine:
    return PanelLine(
        label=f"{curve.area:.2f} {name}",
        subject=subject,
        x=[100 * float(x) for x in curve.x],
        y=[100 * float(y) for y in curve.y],
        dashes=dashes,
        name=f"{subject.label}: {cut(curve.name, 60)}" if curve.name else subject.label,
    )


def roc(dataset: DatasetRuns, checks: Sequence[ProbabilityCheck], figure_number: int) -> Drawing | None:
    """Draw one ROC curve for each model, or the classes of a single model."""
    with_curves = [check for check in checks if check.curves]
    if not with_curves:
        return None
    return _drawing(dataset, with_curves, view_of(with_curves), "", figure_number)


def roc_of_classes(dataset: DatasetRuns, check: ProbabilityCheck, figure_number: int) -> Drawing | None:
    """Draw the ROC curves of all classes of one model, which the first panel leaves out."""
    if len(check.curves) < 2:
        return None
    return _drawing(dataset, [check], "classes", f".{check.result.subject.number + 1}", figure_number)


def _drawing(
    dataset: DatasetRuns, checks: Sequence[ProbabilityCheck], view: View, suffix: str, figure_number: int
) -> Drawing:
    panel = roc_panel(checks, view)
    models = [
        (
            check.result.subject.label,
            [curve for curve in check.curves if view != "positive" or curve.name == check.positive],
        )
        for check in checks
    ]
    return finish(
        draw_panel(panel),
        f"{dataset.name}.roc{suffix}",
        macro="roc",
        number=figure_number,
        interactive=plot_panel(panel, figure_number),
        data_set=dataset.title,
        view=view,
        positive=checks[0].positive,
        model=checks[0].result.subject.label if suffix else "",
        models=models,
        findings=any(check.result.multilabel for check in checks),
        varied=any(check.result.task.varied for check in checks),
        unlabelled=max(0, len(panel.lines) - MAX_LABELS),
    )
