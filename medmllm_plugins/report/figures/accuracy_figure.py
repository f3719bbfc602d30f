"""Accuracy of models and reference classifiers, sorted, with the accuracy of guessing."""

from __future__ import annotations

from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.figure_style import Drawing, finish
from medmllm_plugins.report.figures.row_chart import ChartRow, RowChart, RowMark, draw_rows, plot_rows
from medmllm_plugins.report.formatting import percent
from medmllm_plugins.report.model_comparison import ComparedModel, ModelComparison
from medmllm_plugins.report.run_collection import DatasetRuns

GUESS_LABELS: Final = {"majority_class": "most common class", "always_no": "always no"}
"""Short names of constant answers."""


def accuracy_chart(comparison: ModelComparison) -> RowChart:
    """Return one row for each model: accuracy filled, balanced accuracy hollow below it."""
    guesses = {model.guess for model in comparison.models if model.guess[0]}
    common = next(iter(guesses)) if len(guesses) == 1 else ("", 0.0)
    rows = tuple(_row(model, differs=len(guesses) > 1) for model in comparison.models)
    return RowChart(rows, "percent", (GUESS_LABELS.get(common[0], ""), common[1]))


def _row(model: ComparedModel, *, differs: bool) -> ChartRow:
    subject, accuracy = model.result.subject, model.accuracy
    marks = [RowMark(accuracy, subject, "accuracy")]
    if known(model.balanced):
        marks.append(RowMark(model.balanced, subject, "balanced accuracy", filled=False, shift=0.24))
    return ChartRow(
        left=subject.label,
        right=percent(accuracy.value),
        subject=subject,
        marks=tuple(marks),
        guess=model.guess[1] if differs and model.guess[0] else None,
    )


def accuracies(dataset: DatasetRuns, comparison: ModelComparison, figure_number: int) -> Drawing | None:
    """Draw accuracy and balanced accuracy; the page shows the figure if there are several models to rank."""
    if not comparison.models:
        return None
    chart = accuracy_chart(comparison)
    rows = [(model.result.subject.label, model.accuracy.value, model.guess[1]) for model in comparison.models]
    return finish(
        draw_rows(chart),
        f"{dataset.name}.accuracy",
        number=figure_number,
        on_page=comparison.ranked,
        interactive=plot_rows(chart, figure_number) if comparison.ranked else "",
        data_set=dataset.title,
        rows=rows,
        references=any(model.result.subject.reference for model in comparison.models),
        dashed=bool(chart.line[0]) or any(row.guess is not None for row in chart.rows),
    )
