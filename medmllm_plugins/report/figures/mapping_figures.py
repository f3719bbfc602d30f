"""Figures of semantic mapping: the probe of the last token compared with the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.count_matrix import agreement_matrices, draw_matrices
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
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.results.probe_records import RECALIBRATIONS, ProbeAnalysis
from medmllm_plugins.utils.plain_text import quantity

_CHANCE_DASHES: Final = ((0, (4, 3)), (0, (4, 2, 1, 2)))


def agreement(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw matrices of the probe's class by the answered class for papers; the page shows them as tables."""
    matrices = agreement_matrices(dataset)
    if not matrices:
        return None
    figure = draw_matrices(matrices, MUTED, column_axis="answered class", row_axis="class of the probe")
    stem = f"{dataset.name}.agreement"
    return finish(figure, stem, number=figure_number, on_page=False, data_set=dataset.title, matrices=matrices)


def gains(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the mapping gap, and the accuracy that each output recalibration gains."""
    mapped = dataset.mapped()
    if not mapped:
        return None
    names = [name for name in RECALIBRATIONS if any(name in record.readings for _, record in mapped)]
    step = 0.8 / len(mapped)
    height = 1.3 + (len(names) + 1) * max(0.34, 0.11 * len(mapped))
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    for index, (result, record) in enumerate(mapped):
        series, shift = result.subject.number, step * (index - (len(mapped) - 1) / 2)
        line = series_style(series)
        for row, name in enumerate(["gap", *names]):
            gain = (
                record.mapping_gap if name == "gap" else record.readings[name].gain if name in record.readings else None
            )
            if gain is not None and known(gain):
                label = None if row else cut(result.subject.label, 30)
                options = {"fmt": line["marker"], "color": line["color"], "elinewidth": 1.1, "label": label}
                marks(series, error_bar(axes, gain, row + shift, **options).get_children())
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.axhline(0.5, color=MUTED, linewidth=0.6)
    titles = ["mapping gap: probe minus answers", *(RECALIBRATIONS[name] for name in names)]
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlabel("gain in accuracy points")
    axes.grid(visible=False, axis="y")
    if len(mapped) > 1:
        marks.legend(figure, axes)
    models = [(result.subject.label, record.kind, record.mapping_gap.value) for result, record in mapped]
    return finish(figure, f"{dataset.name}.mapping", number=figure_number, data_set=dataset.title, models=models)


def lens(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the logit lens: accuracy of the labels' words, read from each layer of the LLM."""
    mapped = [(result, record) for result, record in dataset.mapped() if record.lens]
    if not mapped:
        return None
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    single = len(mapped) == 1
    for result, record in mapped:
        series, count = result.subject.number, len(record.lens)
        x = [float(index) if single else index / max(1, count - 1) for index in range(count)]
        values, low, high = ([100 * getattr(point, end) for point in record.lens] for end in ("value", "low", "high"))
        label = "words (logit lens)" if single else cut(result.subject.label, 30)
        line = series_style(series)
        marks(series, axes.plot(x, values, markersize=4, label=label, **line))
        if len(mapped) <= 4:
            marks(series, axes.fill_between(x, low, high, color=line["color"], alpha=0.14, linewidth=0))
        if single and result.task.probing is not None:
            probed = {point.layer: 100 * point.accuracy.value for point in result.task.probing.curve("last")}
            accuracies = [probed.get(name, math.nan) for name in record.lens_layers]
            probe: dict[str, Any] = {
                "color": INK,
                "linestyle": (0, (5, 2)),
                "marker": "s",
                "label": "probe of the last token",
            }
            marks(series, axes.plot(x, accuracies, **probe))
            step = max(1, math.ceil(count / 26))
            names = [name.partition(".")[2] for name in record.lens_layers]
            axes.set_xticks(x[::step], names[::step], rotation=90 if count > 14 else 0)
    if not single:
        axes.set_xticks([0, 0.5, 1], ["first", "middle", "last"])
    _draw_chance(
        axes,
        [result.task.probing for result, _ in mapped if result.task.probing],
    )
    axes.set_ylim(0, 103)
    axes.set_xlabel("layer of the LLM")
    axes.set_ylabel("accuracy, percent")
    marks.legend(figure, axes)
    models = [(result.subject.label, record.lens[-1].value) for result, record in mapped]
    return finish(figure, f"{dataset.name}.lens", number=figure_number, data_set=dataset.title, models=models)


def _draw_chance(axes: Axes, probings: Iterable[ProbeAnalysis]) -> None:
    """Draw the chance of the models in a panel: one line for each number of classes; several always have names."""
    chances = {len(probing.labels): probing.chance for probing in probings if known(probing.chance)}
    for index, (classes, chance) in enumerate(sorted(chances.items())):
        label = "chance (1 / classes)"
        if len(chances) > 1:
            label = f"chance, {quantity(classes, 'class', 'classes')}"
        axes.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=_CHANCE_DASHES[index % 2], label=label)
