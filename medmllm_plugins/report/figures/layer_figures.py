"""Layer curves: vision tower, connector and LLM on one axis with all controls, for one model or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.display_names import PARTS, POOLINGS
from medmllm_plugins.report.figures.figure_style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    SeriesMarks,
    error_bar,
    finish,
    series_style,
)
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.results.probe_records import CONTROL, PIXELS, RANDOM_ENCODER, ProbeAnalysis, ProbePoint
from medmllm_plugins.utils.plain_text import quantity

_DASHED: Final = (0, (5, 2))
_DOTTED: Final = (0, (1, 2))
_CURVES: Final[tuple[tuple[str, str, str, Any], ...]] = (
    ("mean", SERIES[0], "o", "-"),
    ("last", SERIES[1], "s", _DASHED),
)
"""Pooling, colour, marker and dashes of the curves of one model."""
_GAP: Final = 1.0
"""Space between two modules on the axis of one model, in layers."""
_SPANS: Final = {"vision": (0.0, 1.0), "connector": (1.3, 1.3), "llm": (1.6, 2.6)}
"""Start and end of each module on the axis of several models."""
_ANSWERS: Final = 2.9
"""Position of the answers on that axis."""
_SPREAD: Final = 0.2
"""Width over which models are spread at the connector and the answers, so that equal scores do not hide each other."""
_CHANCE_DASHES: Final = ((0, (4, 3)), (0, (4, 2, 1, 2)))


@dataclass(frozen=True, slots=True)
class _Axis:
    """Positions of layers, modules (name, start, end) and answers on the axis of one model."""

    layers: Mapping[str, float]
    modules: tuple[tuple[str, float, float], ...]
    answer: float


def single_model(result: TaskResult, dataset: DatasetRuns, figure_number: int) -> Drawing:
    """Draw all curves of one model with all controls.

    The upper panel shows accuracy and the control task. The lower panel shows balanced accuracy, which chance and label
    permutation are measured in.
    """
    probing = result.task.probing
    assert probing is not None
    axis = _axis(probing.layers())
    # Fixed margins: each model has such a figure, and a layout engine takes longer than the drawing.
    figure = Figure(figsize=(7.6, 5.9))
    margins = {"left": 0.075, "right": 0.985, "top": 0.955, "bottom": 0.245, "hspace": 0.07}
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.9, 1), gridspec_kw=margins)
    for axes in (upper, lower):
        _draw_modules(axes, axis, titled=axes is upper)
        axes.set_ylim(0, 103)
    _draw_accuracy(upper, axis, probing)
    _draw_balanced_accuracy(lower, axis, probing)
    upper.set_yticks(range(0, 101, 20))
    lower.set_yticks((0, 50, 100))
    lower.set_xlim(-0.7, axis.answer + 0.7)
    _draw_ticks(lower, axis)
    figure.legend(loc="lower center", ncols=3)
    return finish(
        figure,
        f"{dataset.name}.layers.{result.subject.number + 1}",
        macro="layers_of_model",
        number=figure_number,
        data_set=dataset.title,
        model=result.subject.label,
        stages=_last_points(probing),
        answer=probing.answer,
        best=probing.best,
    )


def _draw_accuracy(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    for pooling, colour, sign, line in _CURVES:
        _draw_curve(axes, axis, probing.curve(pooling), f"{POOLINGS[pooling]}, accuracy", colour, sign, line)
        _draw_control_task(axes, axis, probing.curve(pooling), f"{POOLINGS[pooling]}, control task", colour)
    if classes := probing.curve("cls"):
        _draw_curve(axes, axis, classes, "class token, accuracy", SERIES[3], "^", (0, (6, 2, 1, 2)))
    _draw_control_features(axes, axis, probing)
    majority = 100 * probing.majority
    axes.axhline(majority, color=INK, linewidth=0.9, linestyle=_DOTTED, label="most common class")
    reference = f"reference classifier: {cut(probing.reference_name, 24)}"
    for estimate, sign, size, colour, shift, label in (
        (probing.answer, "D", 5, INK, 0.0, "generated answers"),
        (probing.reference, "*", 8, SERIES[4], 0.35, reference),
    ):
        if known(estimate):
            options: dict[str, Any] = {"fmt": sign, "markersize": size, "color": colour, "label": label}
            error_bar(axes, estimate, axis.answer + shift, upright=True, **options)
    axes.set_ylabel("accuracy, percent")


def _draw_balanced_accuracy(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    for pooling, colour, _, line in _CURVES:
        for run in _module_runs(axis, probing.curve(pooling)):
            values = [100 * point.balanced.value for _, point in run]
            axes.plot([x for x, _ in run], values, color=colour, linestyle=line)
    _draw_label_permutation(axes, axis, probing)
    chance = 100 * probing.chance
    axes.axhline(chance, color=INK, linewidth=0.9, linestyle=_CHANCE_DASHES[0], label="chance (1 / classes)")
    axes.set_ylabel("balanced, percent")


def several_models(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the accuracy of several models on one axis, each module stretched to the same length."""
    probed = dataset.probed()
    if len(probed) < 2:
        return None
    figure = Figure(figsize=(7.6, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    marks = SeriesMarks()
    for axes, (pooling, title) in zip((upper, lower), POOLINGS.items(), strict=True):
        for index, (name, (start, end)) in enumerate(_SPANS.items()):
            if index:
                axes.axvline(start - 0.15, color=MUTED, linewidth=0.9)
            if axes is upper:
                axes.text((start + end) / 2, 1.02, PARTS[name], transform=axes.get_xaxis_transform(), ha="center")
        axes.axvline(_ANSWERS - 0.15, color=MUTED, linewidth=0.9)
        for index, (result, probing) in enumerate(probed):
            shift = _SPREAD * ((index + 0.5) / len(probed) - 0.5)
            _draw_stretched(axes, result, probing, pooling, marks, shift=shift, band=len(probed) <= 4)
        draw_chance(axes, [probing for _, probing in probed], labelled=False)
        axes.set_ylabel(f"{title}\naccuracy, percent")
        axes.set_ylim(0, 103)
    upper.text(_ANSWERS, 1.02, "answer", transform=upper.get_xaxis_transform(), ha="center")
    lower.set_xticks(
        [0, 0.5, 1, 1.3, 1.6, 2.1, 2.6, _ANSWERS], ["first", "middle", "last", "", "first", "middle", "last", "answer"]
    )
    lower.set_xlim(-0.08, _ANSWERS + 0.15)
    marks.legend(figure, upper)
    models = [(result.subject.label, _last_points(probing), probing.answer) for result, probing in probed]
    return finish(figure, f"{dataset.name}.layers", number=figure_number, data_set=dataset.title, models=models)


def health(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw the Feature Health profile: tower, connector, LLM, answers."""
    probed = dataset.probed()
    if not any(probing.health for _, probing in probed):
        return None
    stops = (("vision", "mean"), ("connector", "mean"), ("llm", "mean"), ("llm", "last"))
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    profiles = []
    for index, (result, probing) in enumerate(probed):
        scores = {(module.module, module.pooling): module.score for module in probing.health}
        profile = [*(scores.get(stop) for stop in stops), probing.answer]
        profiles.append((result.subject.label, profile))
        shift = 0.05 * (index - (len(probed) - 1) / 2)
        series = result.subject.number
        points = [(at + shift, score) for at, score in enumerate(profile) if score is not None and known(score)]
        x, y = [at for at, _ in points], [score.value for _, score in points]
        marks(series, axes.plot(x, y, label=cut(result.subject.label, 30), **series_style(series)))
        for at, score in points:
            if known(score.low):
                colour = series_style(series)["color"]
                marks(series, axes.plot([at, at], [score.low, score.high], color=colour, linewidth=1))
    titles = ("vision tower\n(mean)", "connector\n(mean)", "LLM\n(mean token)", "LLM\n(last token)")
    axes.set_xticks(range(5), [*titles, "answers\n(accuracy)"])
    axes.set_ylabel("Feature Health Score")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    if len(probed) > 1:
        marks.legend(figure, axes)
    return finish(figure, f"{dataset.name}.health", number=figure_number, data_set=dataset.title, profiles=profiles)


def _axis(layers: Sequence[tuple[str, str]]) -> _Axis:
    """Return the positions of layers, given as names and parts."""
    positions: dict[str, float] = {}
    modules: list[tuple[str, float, float]] = []
    x = 0.0
    for part, members in groupby(layers, key=lambda layer: layer[1]):
        names = [name for name, _ in members]
        if modules:
            x += _GAP
        positions |= {name: x + step for step, name in enumerate(names)}
        modules.append((part, x, x + len(names) - 1))
        x += len(names) - 1 + _GAP
    return _Axis(positions, tuple(modules), x + _GAP)


def _draw_modules(axes: Axes, axis: _Axis, *, titled: bool) -> None:
    for index, (name, start, end) in enumerate(axis.modules):
        if index:
            axes.axvline(start - _GAP, color=MUTED, linewidth=0.9)
        if titled:
            axes.text((start + end) / 2, 1.02, PARTS.get(name, name), transform=axes.get_xaxis_transform(), ha="center")
    axes.axvline(axis.answer - _GAP, color=MUTED, linewidth=0.9)
    if titled:
        axes.text(axis.answer, 1.02, "answer", transform=axes.get_xaxis_transform(), ha="center")
    axes.grid(visible=False, axis="x")


def _module_runs(axis: _Axis, points: Iterable[ProbePoint]) -> list[list[tuple[float, ProbePoint]]]:
    """Return points with their positions, one list per module: lines do not cross the borders of modules."""
    return [
        [(axis.layers[point.layer], point) for point in members if point.layer in axis.layers]
        for _, members in groupby(points, key=lambda point: point.part)
    ]


def _draw_curve(
    axes: Axes, axis: _Axis, points: Sequence[ProbePoint], label: str, colour: str, sign: str, line: Any
) -> None:
    for index, run in enumerate(_module_runs(axis, points)):
        x, y = [at for at, _ in run], [100 * point.accuracy.value for _, point in run]
        low, high = ([100 * getattr(point.accuracy, end) for _, point in run] for end in ("low", "high"))
        name = None if index else label
        axes.plot(x, y, color=colour, linestyle=line, marker=sign if len(run) <= 40 else None, label=name)
        if len(run) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        elif run:
            axes.plot(x * 2, [low[0], high[0]], color=colour, linewidth=1)
        unused = [(at, 100 * point.accuracy.value) for at, point in run if not point.read]
        axes.plot(
            [at for at, _ in unused],
            [value for _, value in unused],
            color=colour,
            marker=sign,
            markerfacecolor=PAPER,
            linestyle="none",
        )


def _draw_control_task(axes: Axes, axis: _Axis, points: Sequence[ProbePoint], label: str, colour: str) -> None:
    options: dict[str, Any] = {"linestyle": _DOTTED, "linewidth": 1, "marker": ".", "markersize": 3.5}
    for index, run in enumerate(_module_runs(axis, points)):
        values = [100 * point.control.value for _, point in run]
        axes.plot([x for x, _ in run], values, color=colour, label=None if index else label, **options)


def _draw_control_features(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    controls = {
        point.layer: 100 * point.accuracy.value
        for point in probing.points
        if point.part == CONTROL and point.pooling in ("mean", "last")
    }
    x: list[float] = []
    y: list[float] = []
    for _, start, end in axis.modules:
        for name, at in axis.layers.items():
            if start <= at <= end and f"{RANDOM_ENCODER}{name}" in controls:
                x.append(at)
                y.append(controls[f"{RANDOM_ENCODER}{name}"])
        x.append(math.nan)
        y.append(math.nan)
    options: dict[str, Any] = {"color": SERIES[2], "linestyle": (0, (3, 2)), "linewidth": 1.1, "marker": "x"}
    if any(map(math.isfinite, x)):
        axes.plot(x, y, label="control: random encoder", **options)
    if PIXELS in controls:
        axes.plot(
            [-0.5], [controls[PIXELS]], color=SERIES[2], marker="P", linestyle="none", label="control: raw pixels"
        )


def _draw_label_permutation(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    label: str | None = "label permutation (mean to 95th percentile)"
    for pooling in POOLINGS:
        for run in _module_runs(axis, probing.curve(pooling)):
            x = [at for at, _ in run]
            low = [100 * point.label_permutation for _, point in run]
            high = [100 * point.label_permutation_high for _, point in run]
            if len(run) > 1:
                axes.fill_between(x, low, high, color=MUTED, alpha=0.3, linewidth=0, label=label)
                label = None
            elif run:
                axes.plot(x * 2, [low[0], high[0]], color=MUTED, linewidth=2.5, alpha=0.5)


def _draw_ticks(axes: Axes, axis: _Axis) -> None:
    names = list(axis.layers)
    step = max(1, math.ceil(len(names) / 16))
    shown = [
        name
        for _, members in groupby(names, key=lambda name: name.partition(".")[0])
        for index, name in enumerate(members)
        if index % step == 0 or name.endswith(".norm")
    ]
    axes.set_xticks(
        [*(axis.layers[name] for name in shown), axis.answer],
        [*(name.rpartition(".")[2] if "." in name else "" for name in shown), "answer"],
        rotation=90 if len(shown) > 14 else 45,
        fontsize=7.5,
    )
    axes.tick_params(axis="x", colors=MUTED, length=2)
    axes.grid(color=GRID, axis="y")


def _draw_stretched(
    axes: Axes,
    result: TaskResult,
    probing: ProbeAnalysis,
    pooling: str,
    marks: SeriesMarks,
    *,
    shift: float,
    band: bool,
) -> None:
    """Draw one model's curve, each module stretched to its span; ``shift`` moves single points apart."""
    series = result.subject.number
    line = series_style(series)
    x: list[float] = []
    y: list[float] = []
    edges: list[tuple[float, float]] = []
    marked: list[int] = []
    for part, members in groupby(probing.curve(pooling), key=lambda point: point.part):
        points = [point for point in members if point.read]
        if part not in _SPANS or not points:
            continue
        start, end = _SPANS[part]
        single = len(points) == 1
        # Every module has marks of its own: a single point has no line and would be invisible without.
        marked += range(len(x), len(x) + len(points), max(1, len(points) // 7))
        x += [(start + end) / 2 + shift] if single else map(float, np.linspace(start, end, len(points)))
        y += [100 * point.accuracy.value for point in points]
        edges += [(100 * point.accuracy.low, 100 * point.accuracy.high) for point in points]
        if single:
            marks(series, axes.plot([x[-1]] * 2, edges[-1], color=line["color"], linewidth=1))
        x.append(math.nan)
        y.append(math.nan)
        edges.append((math.nan, math.nan))
    label = cut(result.subject.label, 30)
    marks(series, axes.plot(x, y, markersize=3.5, markevery=marked, label=label, **line))
    if band:
        low, high = ([edge[end] for edge in edges] for end in (0, 1))
        marks(series, axes.fill_between(x, low, high, color=line["color"], alpha=0.12, linewidth=0))
    answer: Estimate = probing.answer
    if known(answer):
        options = {"fmt": line["marker"], "color": line["color"], "elinewidth": 1}
        marks(series, error_bar(axes, answer, _ANSWERS + shift, upright=True, **options).get_children())


def draw_chance(axes: Axes, probings: Iterable[ProbeAnalysis], *, labelled: bool) -> None:
    """Draw the chance of the models in a panel: one line for each number of classes; several always have names."""
    chances = {len(probing.labels): probing.chance for probing in probings if known(probing.chance)}
    for index, (classes, chance) in enumerate(sorted(chances.items())):
        label = "chance (1 / classes)" if labelled else None
        if len(chances) > 1:
            label = f"chance, {quantity(classes, 'class', 'classes')}"
        axes.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=_CHANCE_DASHES[index % 2], label=label)


def _last_points(probing: ProbeAnalysis) -> list[tuple[str, str, float]]:
    """Return name, pooling and accuracy of the last layer of each module."""
    points: list[tuple[str, str, float]] = []
    for part, name in PARTS.items():
        for pooling in POOLINGS:
            used = [point for point in probing.curve(pooling) if point.part == part and point.read]
            if used:
                points.append((name, pooling, used[-1].accuracy.value))
    return points
