"""Figures of the checks of attribution methods: random order, noise, masks and random weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import CHECKS
from medmllm_plugins.report.figures.figure_style import (
    DASHES,
    INK,
    MARKERS,
    MUTED,
    Drawing,
    SeriesMarks,
    error_bar,
    finish,
    series_style,
)
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import AttributionRow, DatasetRuns
from medmllm_plugins.results.attribution_verdicts import survives_randomisation


def checks(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the checks of every method and layer, one panel per check."""
    rows = dataset.attribution_summaries()
    names = [name for name in CHECKS if any(known(row.summary.figure(name)) for row in rows)]
    if not rows or not names:
        return None
    across = min(3, len(names))
    lines = -(-len(names) // across)
    figure = Figure(figsize=(7.6, lines * (0.9 + 0.26 * len(rows)) + 0.3), layout="constrained")
    panels = figure.subplots(lines, across, squeeze=False, sharey=True)
    marks = SeriesMarks()
    for axes, name in zip(panels.flat, names, strict=False):
        for y, row in enumerate(rows):
            estimate, series = row.summary.figure(name), row.result.subject.number
            if not known(estimate):
                continue
            line = series_style(series)
            options = {"fmt": line["marker"], "color": line["color"], "elinewidth": 1.1}
            marks(series, error_bar(axes, estimate, y, scale=1, **options).get_children())
            if name == "inside" and (area := row.summary.area) is not None:
                marks(series, axes.plot([area, area], [y - 0.3, y + 0.3], color=INK, linewidth=1.4))
        if name.endswith("_gain"):
            axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set_title(CHECKS[name].replace(" over ", "\nover ").replace(" under ", "\nunder "), fontsize=8.5)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    panels[0][0].set_yticks(range(len(rows)), row_names(rows))
    for axes in panels[:, 0]:  # names are in the first panel of each line
        marks.row_names(axes, [row.result.subject.number for row in rows])
    return finish(figure, f"{dataset.name}.checks", number=figure_number, data_set=dataset.title, rows=rows)


def randomisation(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw how similar attributions stay while the model's weights are randomised from the head down.

    Lines are black where maps survive, grey elsewhere, and named at their ends; colours are for models.
    """
    rows = [row for row in dataset.attribution_summaries() if row.summary.randomisation]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 2.3 + 0.19 * len(rows)), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    stages = list(dict.fromkeys(level.randomised for row in rows for level in row.summary.randomisation))
    ends = [row.summary.randomisation[-1].similarity for row in rows]
    low = min(-0.05, *(level.similarity for row in rows for level in row.summary.randomisation))
    heights = _spread(ends, 0.055 * (1.1 - low), low, 1.05)
    for index, (row, label) in enumerate(zip(rows, row_names(rows), strict=True)):
        x = [stages.index(level.randomised) for level in row.summary.randomisation]
        y = [level.similarity for level in row.summary.randomisation]
        colour = INK if survives_randomisation(row.summary) else MUTED
        line = {"linestyle": DASHES[index % len(DASHES)], "marker": MARKERS[index % len(MARKERS)], "color": colour}
        name = axes.annotate(
            label,
            xy=(x[-1], y[-1]),
            xytext=(len(stages) - 0.7, heights[index]),
            color=colour,
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkB": 4},
        )
        marks(row.result.subject.number, [*axes.plot(x, y, **line), name])
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set_xticks(range(len(stages)), [cut(name, 18) for name in stages])
    axes.set_xlabel("weights shuffled down to")
    axes.set_ylabel("similarity to the original")
    axes.set_ylim(low - 0.05, 1.05)
    return finish(figure, f"{dataset.name}.randomisation", number=figure_number, data_set=dataset.title, rows=rows)


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return heights near the values that are at least a gap apart, as far as they fit between low and high."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    heights = list(values)
    for lower, upper in itertools.pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + gap)
    excess = max(0.0, heights[order[-1]] - high)
    heights[order[-1]] -= excess
    for upper, lower in itertools.pairwise(reversed(order)):
        heights[lower] = max(low, min(heights[lower], heights[upper] - gap))
    return heights


def row_names(rows: Sequence[AttributionRow]) -> list[str]:
    """Return method, layer and, if there are several models, the model of each row."""
    several = len({row.result.subject.number for row in rows}) > 1
    names = []
    for row in rows:
        model = cut(row.result.subject.label, 18) if several else ""
        names.append(" · ".join(filter(None, (cut(row.summary.method, 22), row.summary.layer, row.settings, model))))
    return names
