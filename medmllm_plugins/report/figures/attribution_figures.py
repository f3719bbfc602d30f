"""Figures of the checks of attribution methods: random order, noise, masks and random weights."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import CHECKS
from medmllm_plugins.report.figures.figure_style import (
    INK,
    MUTED,
    Drawing,
    SeriesMarks,
    error_bar,
    finish,
    series_style,
)
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.results.attribution_results import MethodSummary


def checks(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the checks of every method and layer, one panel per check."""
    rows = dataset.attribution_summaries()
    names = [name for name in CHECKS if any(known(summary.figures[name]) for _, summary in rows)]
    if not rows or not names:
        return None
    across = min(3, len(names))
    lines = -(-len(names) // across)
    figure = Figure(figsize=(7.6, lines * (0.9 + 0.26 * len(rows)) + 0.3), layout="constrained")
    panels = figure.subplots(lines, across, squeeze=False, sharey=True)
    marks = SeriesMarks()
    for axes, name in zip(panels.flat, names, strict=False):
        for row, (result, summary) in enumerate(rows):
            estimate = summary.figures[name]
            if not known(estimate):
                continue
            series, line = result.subject.number, series_style(result.subject.number)
            options = {"fmt": line["marker"], "color": line["color"], "elinewidth": 1.1}
            marks(series, error_bar(axes, estimate, row, scale=1, **options).get_children())
            if name == "inside" and known(summary.area):
                marks(series, axes.plot([summary.area] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.4))
        if name.endswith("_gain"):
            axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set_title(CHECKS[name].replace(" over ", "\nover ").replace(" under ", "\nunder "), fontsize=8.5)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    panels[0][0].set_yticks(range(len(rows)), row_names(rows))
    for axes in panels[:, 0]:  # names are in the first panel of each line
        marks.row_names(axes, [result.subject.number for result, _ in rows])
    summaries = [summary for _, summary in rows]
    return finish(figure, f"{dataset.name}.checks", number=figure_number, data_set=dataset.title, summaries=summaries)


def randomisation(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw how similar attributions stay while the model's weights are randomised from the head down."""
    rows = [(result, summary) for result, summary in dataset.attribution_summaries() if summary.randomisation]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 2.9 + 0.1 * len(rows)), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    stages = list(dict.fromkeys(name for _, summary in rows for name, _ in summary.randomisation))
    for index, ((result, summary), label) in enumerate(zip(rows, row_names(rows), strict=True)):
        x = [stages.index(name) for name, _ in summary.randomisation]
        y = [value for _, value in summary.randomisation]
        marks(result.subject.number, axes.plot(x, y, label=label, **series_style(index)))
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set_xticks(range(len(stages)), [cut(name, 18) for name in stages], rotation=30, ha="right")
    axes.set_ylabel("similarity to the original")
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.05)
    marks.legend(figure, axes)
    stem, summaries = f"{dataset.name}.randomisation", [summary for _, summary in rows]
    return finish(figure, stem, number=figure_number, data_set=dataset.title, summaries=summaries)


def row_names(rows: Sequence[tuple[TaskResult, MethodSummary]]) -> list[str]:
    """Return method, layer and, if there are several models, the model of each row."""
    several = len({result.subject.number for result, _ in rows}) > 1
    names = []
    for result, summary in rows:
        model = cut(result.subject.label, 18) if several else ""
        names.append(" · ".join(filter(None, (cut(summary.method, 22), summary.layer, summary.apart, model))))
    return names
