"""Semantic mapping: what the features know against what the words say."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.answer_figures import ends
from medmllm_plugins.report.figures.count_matrix import Matrix, matrices
from medmllm_plugins.report.figures.figure_style import (
    INK,
    MUTED,
    SERIES,
    Drawing,
    Marks,
    colour,
    dash,
    finish,
    marker,
)
from medmllm_plugins.report.figures.layer_figures import chance_lines
from medmllm_plugins.report.formatting import cut, percent
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.results.probe_records import RECALIBRATIONS, SemanticMapping
from medmllm_plugins.utils.plain_text import listed


def mapped(part: DataPart) -> list[tuple[Cell, SemanticMapping]]:
    """Cells that have a semantic mapping."""
    return [
        (cell, cell.task.probing.mapping)
        for cell in part.probed()
        if cell.task.probing is not None and cell.task.probing.mapping is not None
    ]


def agreement_of(cell: Cell, found: SemanticMapping) -> tuple[list[str], list[str], Floats] | None:
    """Probe against answer: names of rows and columns, and counts; ``None`` without them."""
    counts = np.array(found.pairs(), dtype=np.float64)
    labels = list(cell.task.probing.labels) if cell.task.probing else []
    if counts.ndim != 2 or counts.shape != (len(labels), len(labels) + 1):
        return None
    if counts[:, -1].any():
        return labels, [*labels, "not parsed"], counts
    return labels, labels, counts[:, :-1]


def agreement(part: DataPart, figure_number: int) -> Drawing | None:
    """Probe-against-answer matrices for papers; the page shows them as tables."""
    found = [(cell, *one) for cell, told in mapped(part) if (one := agreement_of(cell, told)) is not None]
    if not found:
        return None
    shown = [Matrix(cell.subject.label, rows, columns, counts) for cell, rows, columns, counts in found]
    figure = matrices(shown, SERIES[2], across="the answer says", down="the probe says")
    told = [
        f"{cell.subject.label}, {percent(float(np.trace(counts[:, : len(rows)]) / max(1.0, counts.sum())))} agree"
        for cell, rows, _, counts in found
    ]
    return finish(
        figure,
        f"{part.name}.agreement",
        f"{part.title}: probe against answer",
        "Rows: what the probe of the last token says; columns: what the answer says.",
        f"Probe against answer on {part.title}: {listed(told)}.",
        on_page=False,
        number=figure_number,
    )


def gains(part: DataPart, figure_number: int) -> Drawing | None:
    """The mapping gap, and what each re-reading of the words gains."""
    found = mapped(part)
    if not found:
        return None
    names = [name for name in RECALIBRATIONS if any(name in told.readings for _, told in found)]
    step = 0.8 / len(found)
    height = 1.3 + (len(names) + 1) * max(0.34, 0.11 * len(found))
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes, marks = figure.subplots(), Marks()
    for turn, (cell, told) in enumerate(found):
        at = cell.subject.number
        for row, name in enumerate(["gap", *names]):
            gain = told.mapping_gap if name == "gap" else told.readings[name].gain if name in told.readings else None
            if gain is None or not known(gain):
                continue
            drawn = axes.errorbar(
                100 * gain.value,
                row + step * (turn - (len(found) - 1) / 2),
                xerr=ends(gain, 100),
                fmt=marker(at),
                color=colour(at),
                capsize=2,
                elinewidth=1.1,
                label=cut(cell.subject.label, 30) if row == 0 else None,
            )
            marks(at, drawn.get_children())
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.axhline(0.5, color=MUTED, linewidth=0.6)
    titles = ["mapping gap: probe less answers", *(RECALIBRATIONS[name] for name in names)]
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlabel("gain in accuracy points")
    axes.grid(visible=False, axis="y")
    if len(found) > 1:
        marks.legend(figure, axes)
    said = [
        f"{cell.subject.label}: {told.kind}, gap {percent(told.mapping_gap.value, signed=True)}" for cell, told in found
    ]
    return finish(
        figure,
        f"{part.name}.mapping",
        f"{part.title}: what re-reading the words gains",
        "First line: what the features know and the answers do not say. The others: re-readings fitted on the "
        "validation fold. Bars: 95 % intervals.",
        f"Semantic mapping on {part.title}. {'; '.join(said)}.",
        number=figure_number,
    )


def lens(part: DataPart, figure_number: int) -> Drawing | None:
    """The logit lens: accuracy of the labels' words read off each layer of the LLM."""
    found = [(cell, told) for cell, told in mapped(part) if told.lens]
    if not found:
        return None
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes, marks = figure.subplots(), Marks()
    alone = len(found) == 1
    for cell, told in found:
        at, count = cell.subject.number, len(told.lens)
        x = [float(place) if alone else place / max(1, count - 1) for place in range(count)]
        values = [100 * one.value for one in told.lens]
        label = "words (logit lens)" if alone else cut(cell.subject.label, 30)
        marks(
            at,
            axes.plot(x, values, color=colour(at), linestyle=dash(at), marker=marker(at), markersize=4, label=label),
        )
        if len(found) <= 4:
            low, high = [100 * one.low for one in told.lens], [100 * one.high for one in told.lens]
            marks(at, axes.fill_between(x, low, high, color=colour(at), alpha=0.14, linewidth=0))
        if alone and cell.task.probing is not None:
            probed = {one.layer: one.accuracy.value for one in cell.task.probing.curve("last")}
            line = [100 * probed.get(name, math.nan) for name in told.lens_layers]
            marks(
                at,
                axes.plot(x, line, color=SERIES[1], linestyle=(0, (5, 2)), marker="s", label="probe of the last token"),
            )
            step = max(1, math.ceil(count / 26))
            axes.set_xticks(
                x[::step],
                [name.partition(".")[2] for name in told.lens_layers][::step],
                rotation=90 if count > 14 else 0,
            )
    if not alone:
        axes.set_xticks([0, 0.5, 1], ["first", "middle", "last"])
    chance_lines(axes, [cell for cell, _ in found], labelled=True)
    axes.set_ylim(0, 103)
    axes.set_xlabel("layer of the LLM")
    axes.set_ylabel("accuracy, percent")
    marks.legend(figure, axes)
    said = [f"{cell.subject.label} ends at {percent(told.lens[-1].value)}" for cell, told in found]
    return finish(
        figure,
        f"{part.name}.lens",
        f"{part.title}: logit lens of the labels",
        "At which layer the words begin to follow the features: the labels' first distinct tokens, read off each layer "
        "through the last norm.",
        f"Accuracy of the labels' words by layer of the LLM on {part.title}: {listed(said)}.",
        number=figure_number,
    )
