"""The layer curves: vision tower, connector and LLM along one axis, with every control; one model, or many overlaid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.answer_figures import ends
from medmllm_plugins.report.figures.figure_style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    Marks,
    colour,
    dash,
    finish,
    marker,
)
from medmllm_plugins.report.formatting import cut, decimal, percent
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.results.probe_records import ProbeAnalysis, ProbePoint
from medmllm_plugins.utils.plain_text import listed, quantity

PARTS = {"vision": "vision tower", "connector": "connector", "llm": "LLM"}
POOLINGS = {"mean": "mean over tokens", "last": "last token"}
_RANDOM = "control.random_encoder."
_PIXELS = "control.pixels"
_MEAN, _LAST, _CLS = SERIES[0], SERIES[1], SERIES[3]
_GAP = 1.0
_STARTS = {"vision": (0.0, 1.0), "connector": (1.3, 1.3), "llm": (1.6, 2.6)}
"""Where each module begins and ends in the figure of several models."""
_SAID = 2.9
"""Where the answers stand there."""
_ASIDE = 0.2
"""How wide models stand beside each other there, at the connector and at the answers."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where each layer stands, where modules begin and end, and where the answers stand."""

    places: Mapping[str, float]
    modules: tuple[tuple[str, float, float], ...]
    answer: float


def single(cell: Cell, part: DataPart, figure_number: int) -> Drawing:
    """All curves of one model with all of their controls.

    Accuracy and the control task stand above; balanced accuracy stands below, since that is what shuffled labels and
    chance are measured in.
    """
    probing = cell.task.probing
    assert probing is not None
    axis = _axis(probing.layers())
    # Fixed margins: there is one such figure a model, and a layout engine takes longer than the drawing.
    figure = Figure(figsize=(7.6, 5.9))
    margins = {"left": 0.075, "right": 0.985, "top": 0.955, "bottom": 0.245, "hspace": 0.07}
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1.9, 1), gridspec_kw=margins)
    for axes in (upper, lower):
        _modules(axes, axis, titled=axes is upper)
    for pooling, tone, sign, line in (("mean", _MEAN, "o", "-"), ("last", _LAST, "s", (0, (5, 2)))):
        _curve(upper, axis, probing.curve(pooling), f"{POOLINGS[pooling]}, accuracy", tone, sign, line)
        _control(upper, axis, probing.curve(pooling), f"{POOLINGS[pooling]}, control task", tone)
    if classes := probing.curve("cls"):
        _curve(upper, axis, classes, "class token, accuracy", _CLS, "^", (0, (6, 2, 1, 2)))
    _floors(upper, axis, probing)
    upper.axhline(100 * probing.majority, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label="commonest class")
    _answer(upper, axis, probing)
    upper.set_ylabel("accuracy, percent")
    for pooling, tone, line in (("mean", _MEAN, "-"), ("last", _LAST, (0, (5, 2)))):
        for run in _runs(axis, probing.curve(pooling)):
            lower.plot([x for x, _ in run], [100 * one.balanced.value for _, one in run], color=tone, linestyle=line)
    _null(lower, axis, probing)
    lower.axhline(100 * probing.chance, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="chance (1 / classes)")
    lower.set_ylabel("balanced, percent")
    for axes in (upper, lower):
        axes.set_ylim(0, 103)
    upper.set_yticks(range(0, 101, 20))
    lower.set_yticks((0, 50, 100))
    lower.set_xlim(-0.7, axis.answer + 0.7)
    _ticks(lower, axis)
    figure.legend(loc="lower center", ncols=3)
    best = probing.best
    peak = "" if not best.layer else f" Best probe: {percent(best.accuracy.value)} at {best.layer} ({best.pooling})."
    return finish(
        figure,
        f"{part.name}.layers.{cell.subject.number + 1}",
        f"{cell.subject.label}: what each layer shows of the class",
        "Bands: 95 % intervals. Open marks: layers that the answer never reads. Thin lines of small dots: the control "
        "task, a probe of random classes given to kinds of pictures. Crosses: the same tower with random weights; "
        "plus: raw pixels. Below, grey: probes of shuffled labels, mean to 95th percentile. A probe shows that a class "
        "can be read off a layer, not that the model uses it.",
        f"Layer curves of {cell.subject.label} on {part.title}. {_told(probing)}{peak}",
        number=figure_number,
    )


def overlaid(part: DataPart, figure_number: int) -> Drawing | None:
    """Accuracy of several models along one axis, each module stretched to one length."""
    cells = part.probed()
    if len(cells) < 2:
        return None
    figure = Figure(figsize=(7.6, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    marks = Marks()
    for axes, pooling, title in ((upper, "mean", "mean over tokens"), (lower, "last", "last token")):
        for place, (name, (start, end)) in enumerate(_STARTS.items()):
            if place:
                axes.axvline(start - 0.15, color=MUTED, linewidth=0.9)
            if axes is upper:
                axes.text((start + end) / 2, 1.02, PARTS[name], transform=axes.get_xaxis_transform(), ha="center")
        axes.axvline(_SAID - 0.15, color=MUTED, linewidth=0.9)
        for turn, cell in enumerate(cells):
            probing = cell.task.probing
            assert probing is not None
            aside = _ASIDE * ((turn + 0.5) / len(cells) - 0.5)
            _stretched(axes, cell, probing, pooling, marks, aside=aside, many=len(cells) > 4)
        chance_lines(axes, cells, labelled=False)
        axes.set_ylabel(f"{title}\naccuracy, percent")
        axes.set_ylim(0, 103)
    upper.text(_SAID, 1.02, "answer", transform=upper.get_xaxis_transform(), ha="center")
    lower.set_xticks(
        [0, 0.5, 1, 1.3, 1.6, 2.1, 2.6, _SAID], ["first", "middle", "last", "", "first", "middle", "last", "said"]
    )
    lower.set_xlim(-0.08, _SAID + 0.15)
    marks.legend(figure, upper)
    told = [f"{cell.subject.label}: {_told(cell.task.probing)}" for cell in cells if cell.task.probing is not None]
    return finish(
        figure,
        f"{part.name}.layers",
        f"{part.title}: all models along one axis",
        "Every module is stretched to one length. Marks at the right: accuracy of the generated answers, with 95 % "
        "intervals; dashed: chance. The controls of each model stand in its own figure below.",
        f"Layer curves on {part.title}. {' '.join(told)}",
        number=figure_number,
    )


def health(part: DataPart, figure_number: int) -> Drawing | None:
    """The Feature Health profile: tower, connector, LLM, answers."""
    cells = part.probed()
    stops = (("vision", "mean"), ("connector", "mean"), ("llm", "mean"), ("llm", "last"))
    if not any(cell.task.probing and cell.task.probing.health for cell in cells):
        return None
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes, marks = figure.subplots(), Marks()
    told = []
    for turn, cell in enumerate(cells):
        probing = cell.task.probing
        assert probing is not None
        scores = {(one.module, one.pooling): one.score for one in probing.health}
        row = [*(scores.get(stop) for stop in stops), probing.answer]
        shift = 0.05 * (turn - (len(cells) - 1) / 2)
        at = cell.subject.number
        pairs = [(place + shift, one) for place, one in enumerate(row) if one is not None and known(one)]
        drawn = axes.plot(
            [x for x, _ in pairs],
            [one.value for _, one in pairs],
            color=colour(at),
            linestyle=dash(at),
            marker=marker(at),
            label=cut(cell.subject.label, 30),
        )
        marks(at, drawn)
        for x, one in pairs:
            if not math.isnan(one.low):
                marks(at, axes.plot([x, x], [one.low, one.high], color=colour(at), linewidth=1))
        told.append(f"{cell.subject.label}: {', '.join(decimal(one.value) if one else 'none' for one in row)}")
    titles = [
        "vision tower\n(mean)",
        "connector\n(mean)",
        "LLM\n(mean token)",
        "LLM\n(last token)",
        "answers\n(accuracy)",
    ]
    axes.set_xticks(range(5), titles)
    axes.set_ylabel("Feature Health Score")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    if len(cells) > 1:
        marks.legend(figure, axes)
    return finish(
        figure,
        f"{part.name}.health",
        f"{part.title}: Feature Health profile",
        "The score of arXiv 2604.08333: a flat curve scores its accuracy, a rising one more. Bars: 95 % intervals. It "
        "has no chance line of its own; read it beside the curves.",
        f"Feature Health of tower, connector, LLM by mean token, LLM by last token, and accuracy of the answers. "
        f"{'; '.join(told)}.",
        number=figure_number,
    )


def _axis(layers: Sequence[tuple[str, str]]) -> _Axis:
    places: dict[str, float] = {}
    modules: list[tuple[str, float, float]] = []
    x = 0.0
    for part, members in groupby(layers, key=lambda one: one[1]):
        names = [name for name, _ in members]
        if modules:
            x += _GAP
        places |= {name: x + step for step, name in enumerate(names)}
        modules.append((part, x, x + len(names) - 1))
        x += len(names) - 1 + _GAP
    return _Axis(places, tuple(modules), x + _GAP)


def _modules(axes: Axes, axis: _Axis, *, titled: bool) -> None:
    for place, (name, start, end) in enumerate(axis.modules):
        if place:
            axes.axvline(start - _GAP, color=MUTED, linewidth=0.9)
        if titled:
            axes.text((start + end) / 2, 1.02, PARTS.get(name, name), transform=axes.get_xaxis_transform(), ha="center")
    axes.axvline(axis.answer - _GAP, color=MUTED, linewidth=0.9)
    if titled:
        axes.text(axis.answer, 1.02, "answer", transform=axes.get_xaxis_transform(), ha="center")
    axes.grid(visible=False, axis="x")


def _runs(axis: _Axis, points: Sequence[ProbePoint]) -> list[list[tuple[float, ProbePoint]]]:
    """Points with their places, one stretch a module: lines do not cross the borders."""
    return [
        [(axis.places[one.layer], one) for one in members if one.layer in axis.places]
        for _, members in groupby(points, key=lambda one: one.part)
    ]


def _curve(axes: Axes, axis: _Axis, points: Sequence[ProbePoint], label: str, tone: str, sign: str, line: Any) -> None:
    for turn, run in enumerate(_runs(axis, points)):
        x = [place for place, _ in run]
        axes.plot(
            x,
            [100 * one.accuracy.value for _, one in run],
            color=tone,
            linestyle=line,
            marker=sign if len(run) <= 40 else None,
            label=label if turn == 0 else None,
        )
        low, high = ([100 * getattr(one.accuracy, end) for _, one in run] for end in ("low", "high"))
        if len(run) > 1:
            axes.fill_between(x, low, high, color=tone, alpha=0.16, linewidth=0)
        elif run:
            axes.plot(x * 2, [low[0], high[0]], color=tone, linewidth=1)
        unread = [(place, one) for place, one in run if not one.read]
        axes.plot(
            [place for place, _ in unread],
            [100 * one.accuracy.value for _, one in unread],
            color=tone,
            marker=sign,
            markerfacecolor=PAPER,
            linestyle="none",
        )


def _control(axes: Axes, axis: _Axis, points: Sequence[ProbePoint], label: str, tone: str) -> None:
    for turn, run in enumerate(_runs(axis, points)):
        axes.plot(
            [place for place, _ in run],
            [100 * one.control.value for _, one in run],
            color=tone,
            linestyle=(0, (1, 2)),
            linewidth=1,
            marker=".",
            markersize=3.5,
            label=label if turn == 0 else None,
        )


def _floors(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    floors = {one.layer: one for one in probing.points if one.part == "control" and one.pooling in ("mean", "last")}
    x: list[float] = []
    y: list[float] = []
    for _, start, end in axis.modules:
        names = [name for name, place in axis.places.items() if start <= place <= end and f"{_RANDOM}{name}" in floors]
        x += [*(axis.places[name] for name in names), math.nan]
        y += [*(100 * floors[f"{_RANDOM}{name}"].accuracy.value for name in names), math.nan]
    if any(map(math.isfinite, x)):
        axes.plot(
            x, y, color=SERIES[2], linestyle=(0, (3, 2)), linewidth=1.1, marker="x", label="random encoder (floor)"
        )
    if _PIXELS in floors:
        value = 100 * floors[_PIXELS].accuracy.value
        axes.plot([-0.5], [value], color=SERIES[2], marker="P", linestyle="none", label="raw pixels (floor)")


def _null(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    labelled = False
    for pooling in ("mean", "last"):
        for run in _runs(axis, probing.curve(pooling)):
            x = [place for place, _ in run]
            low, high = (
                [100 * one.label_permutation for _, one in run],
                [100 * one.label_permutation_high for _, one in run],
            )
            name = None if labelled else "shuffled labels (mean to 95th percentile)"
            if len(run) > 1:
                axes.fill_between(x, low, high, color=MUTED, alpha=0.3, linewidth=0, label=name)
                labelled = True
            elif run:
                axes.plot(x * 2, [low[0], high[0]], color=MUTED, linewidth=2.5, alpha=0.5)


def _answer(axes: Axes, axis: _Axis, probing: ProbeAnalysis) -> None:
    for found, sign, tone, shift, label in (
        (probing.answer, "D", INK, 0.0, "generated answers"),
        (probing.reference, "*", SERIES[4], 0.35, f"reference: {cut(probing.reference_name, 24)}"),
    ):
        if known(found):
            axes.errorbar(
                axis.answer + shift,
                100 * found.value,
                yerr=ends(found, 100),
                fmt=sign,
                markersize=8 if sign == "*" else 5,
                color=tone,
                capsize=2,
                label=label,
            )


def _ticks(axes: Axes, axis: _Axis) -> None:
    names = list(axis.places)
    step = max(1, math.ceil(len(names) / 16))
    kept = [
        name
        for part, members in groupby(names, key=lambda name: name.partition(".")[0])
        for place, name in enumerate(members)
        if place % step == 0 or name.endswith(".norm")
    ]
    axes.set_xticks(
        [*(axis.places[name] for name in kept), axis.answer],
        [*(name.rpartition(".")[2] if "." in name else "" for name in kept), "said"],
        rotation=90 if len(kept) > 14 else 45,
        fontsize=7.5,
    )
    axes.tick_params(axis="x", colors=MUTED, length=2)
    axes.grid(color=GRID, axis="y")


def _stretched(
    axes: Axes, cell: Cell, probing: ProbeAnalysis, pooling: str, marks: Marks, *, aside: float, many: bool
) -> None:
    """One model's curve, each module over its own unit of the axis.

    Args:
        axes: where it is drawn.
        cell: the model's task.
        probing: its probes.
        pooling: which curve.
        marks: takes what is drawn.
        aside: how far from their column points that stand alone (connector, answers) move, so that models that score
            alike do not hide each other.
        many: leaves out the bands, of which so many would be one grey.
    """
    at = cell.subject.number
    x: list[float] = []
    y: list[float] = []
    band: list[tuple[float, float]] = []
    marked: list[int] = []
    for part, members in groupby(probing.curve(pooling), key=lambda one: one.part):
        points = [one for one in members if one.read]
        if part not in _STARTS or not points:
            continue
        start, end = _STARTS[part]
        alone = len(points) == 1
        places = [(start + end) / 2 + aside] if alone else np.linspace(start, end, len(points))
        # Every module has its own marks: a line has none of a single point, which only its mark shows.
        marked += range(len(x), len(x) + len(points), max(1, len(points) // 7))
        x += [*map(float, places), math.nan]
        y += [*(100 * one.accuracy.value for one in points), math.nan]
        edges = [(100 * one.accuracy.low, 100 * one.accuracy.high) for one in points]
        band += [*edges, (math.nan, math.nan)]
        if alone:
            marks(at, axes.plot([x[-2]] * 2, edges[0], color=colour(at), linewidth=1))
    drawn = axes.plot(
        x,
        y,
        color=colour(at),
        linestyle=dash(at),
        marker=marker(at),
        markersize=3.5,
        markevery=marked,
        label=cut(cell.subject.label, 30),
    )
    marks(at, drawn)
    if not many:
        low, high = [one for one, _ in band], [one for _, one in band]
        marks(at, axes.fill_between(x, low, high, color=colour(at), alpha=0.12, linewidth=0))
    said: Estimate = probing.answer
    if known(said):
        marks(
            at,
            axes.errorbar(
                _SAID + aside,
                100 * said.value,
                yerr=ends(said, 100),
                fmt=marker(at),
                color=colour(at),
                capsize=2,
                elinewidth=1,
            ).get_children(),
        )


def chance_lines(axes: Axes, cells: Sequence[Cell], *, labelled: bool) -> None:
    """Chance of the models in a panel: one line, or one for each number of classes where they were asked about several.

    Args:
        axes: the panel.
        cells: whose chance.
        labelled: whether a single line needs a name in the legend; several always have one.
    """
    found = {len(one.labels): one.chance for cell in cells if (one := cell.task.probing) and known(one.chance)}
    for turn, (classes, chance) in enumerate(sorted(found.items())):
        several = f"chance, {quantity(classes, 'class', 'classes')}"
        name = several if len(found) > 1 else "chance (1 / classes)" if labelled else None
        line = (0, (4, 3)) if turn % 2 == 0 else (0, (4, 2, 1, 2))
        axes.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=line, label=name)


def _told(probing: ProbeAnalysis) -> str:
    """The curve in words: what each module ends with."""
    told = []
    for part, name in PARTS.items():
        for pooling in ("mean", "last"):
            points = [one for one in probing.curve(pooling) if one.part == part and one.read]
            if points:
                told.append(f"{name} ({pooling}) ends at {percent(points[-1].accuracy.value)}")
    words = listed(told)
    # The first letter alone: capitalize() would make small ones of those in LLM.
    return f"{words[:1].upper()}{words[1:]}; answers {percent(probing.answer.value)}."
