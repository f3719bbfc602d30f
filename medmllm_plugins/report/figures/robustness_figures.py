"""Robustness: the usual question beside changed ones, and accuracy by subgroup."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.report.changed_questions import ChangedQuestion
from medmllm_plugins.report.figures.accuracy_figure import GUESS_LABELS
from medmllm_plugins.report.figures.figure_style import Drawing, finish
from medmllm_plugins.report.figures.row_chart import ChartRow, RowChart, RowMark, draw_rows, plot_rows
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subgroups import Subgroups
from medmllm_plugins.report.templating import text


def question_chart(changes: Sequence[ChangedQuestion]) -> RowChart:
    """Return a dumbbell for each changed question, from the usual one to the changed one, under its model's name."""
    rows: list[ChartRow] = []
    several = len({change.subject.number for change in changes}) > 1
    for _, members in groupby(changes, key=lambda change: change.subject.number):
        own = list(members)
        if several:
            rows.append(ChartRow(own[0].subject.label, subject=own[0].subject))
        rows += [_dumbbell(change) for change in own]
    guesses = {change.result.guess for change in changes if change.result.guess[0]}
    name, value = next(iter(guesses)) if len(guesses) == 1 else ("", 0.0)
    return RowChart(tuple(rows), "accuracy, percent", (GUESS_LABELS.get(name, ""), value))


def _dumbbell(change: ChangedQuestion) -> ChartRow:
    subject = change.subject
    marks = []
    if known(change.usual_accuracy):
        usual = Estimate(change.usual_accuracy, UNKNOWN.low, UNKNOWN.high)
        marks.append(RowMark(usual, subject, "usual question"))
    marks += [
        RowMark(Estimate(value, UNKNOWN.low, UNKNOWN.high), subject, "one of them", small=True)
        for value in change.variants
    ]
    marks.append(RowMark(change.accuracy, subject, change.change, filled=False))
    effect = text("figures.txt.jinja", "effect", difference=change.difference, changed=change.changed_answers)
    return ChartRow(change.change, effect, subject, tuple(marks), linked=known(change.usual_accuracy))


def changed_question_figure(
    dataset: DatasetRuns, changes: Sequence[ChangedQuestion], figure_number: int
) -> Drawing | None:
    """Draw the changed questions of all models."""
    if not changes:
        return None
    chart = question_chart(changes)
    return finish(
        draw_rows(chart),
        f"{dataset.name}.sensitivity",
        number=figure_number,
        interactive=plot_rows(chart, figure_number),
        data_set=dataset.title,
        changes=changes,
    )


def subgroup_chart(subgroups: Subgroups) -> RowChart:
    """Return a row for each subgroup with a dot for each model, under the name of its column.

    Several models are named first.
    """
    subjects = {row.subject.number: row.subject for row in subgroups.rows}
    rows = [ChartRow(subject.label, subject=subject) for subject in subjects.values()] if len(subjects) > 1 else []
    for column, of_column in groupby(subgroups.rows, key=lambda row: row.column):
        rows.append(ChartRow(column))
        for value, members in groupby(of_column, key=lambda row: row.value):
            own = list(members)
            spread = min(0.16, 0.36 / len(own))
            shifts = [spread * (index - (len(own) - 1) / 2) + 0.04 for index in range(len(own))]
            marks = [
                RowMark(row.accuracy, row.subject, f"{column}: {value or 'no value'}", shift=shift)
                for row, shift in zip(own, shifts, strict=True)
            ]
            counts = sorted({row.documents for row in own})
            label = text("figures.txt.jinja", "documents", lowest=counts[0], highest=counts[-1])
            rows.append(ChartRow(cut(value, 30) or "no value", label, marks=tuple(marks)))
    return RowChart(tuple(rows), "accuracy, percent")


def subgroup_figure(dataset: DatasetRuns, subgroups: Subgroups, figure_number: int) -> Drawing | None:
    """Draw accuracy by subgroup."""
    if not subgroups.rows:
        return None
    chart = subgroup_chart(subgroups)
    return finish(
        draw_rows(chart),
        f"{dataset.name}.subgroups",
        number=figure_number,
        interactive=plot_rows(chart, figure_number),
        data_set=dataset.title,
        rows=subgroups.rows,
        left_out=len(subgroups.left_out),
    )
