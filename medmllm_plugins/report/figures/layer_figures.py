"""Layer charts: vision tower, connector and LLM on one axis, with what controls reach; static and interactive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import CURVES, PARTS
from medmllm_plugins.report.figures.figure_style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    Drawing,
    error_bar,
    finish,
    series_style,
)
from medmllm_plugins.report.figures.interactive import to_json
from medmllm_plugins.report.figures.layer_plots import TOP, best_label, curve_labels, layer_plot, module_name, ticks
from medmllm_plugins.report.formatting import cut, percent
from medmllm_plugins.report.layer_charts import Curve, LayerChart, layer_chart
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.probe_records import ProbeAnalysis

LOOK: Final[dict[str, tuple[str, Any]]] = {
    "mean": ("o", "-"),
    "last": ("s", (0, (4, 2))),
    "cls": ("^", (0, (6, 2, 1, 2))),
}
"""Marker and dashes of each pooling; the colour is that of the model."""
FEW: Final = 3
"""With more probed models, charts are small."""


def single_model(result: TaskResult, dataset: DatasetRuns, figure_number: int) -> Drawing:
    """Draw the curves of one model."""
    probing = result.task.probing
    assert probing is not None
    chart = layer_chart(result, probing)
    figure = Figure(figsize=(7.2, 3.6))
    axes = figure.subplots(gridspec_kw={"left": 0.05, "right": 0.99, "top": 0.97, "bottom": 0.1})
    _draw_frame(axes, chart)
    for part in chart.band:
        _draw_band(axes, part)
    axes.text(1, 2.5, text("signal.txt.jinja", "band"), color=MUTED, fontsize=7.5)
    colour = series_style(result.subject.number)["color"]
    for curve in chart.curves:
        _draw_curve(axes, curve, colour)
    for x, y, label, upward in curve_labels(chart):
        axes.text(x, y, label, ha="right", va="bottom" if upward else "top", fontsize=8)
    if chart.best is not None:
        x, point = chart.best
        align = best_label(chart)[1]
        axes.plot([x, x], [100 * point.accuracy.value, TOP - 13], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.plot([x], [100 * point.accuracy.value], "o", markersize=8, color=INK, markerfacecolor="none")
        axes.text(x, TOP - 12, best_label(chart)[0], ha=align, fontsize=8)
    if known(probing.answer):
        error_bar(axes, probing.answer, chart.answer, upright=True, fmt="D", color=colour, markersize=6)
        below = probing.answer.low if known(probing.answer.low) else probing.answer.value
        axes.text(chart.answer, 100 * below - 2, percent(probing.answer.value), ha="center", va="top", fontsize=8)
    models = len(dataset.probed())
    return finish(
        figure,
        f"{dataset.name}.layers.{result.subject.number + 1}{_suffix(result, dataset)}",
        macro="layers_of_model",
        number=figure_number,
        interactive=to_json(layer_plot(chart, 330 if models <= FEW else 300), figure_number),
        data_set=dataset.title,
        model=result.subject.label,
        task=cut(result.task.name, 60) if _suffix(result, dataset) else "",
        probing=probing,
        stages=last_points(probing),
        answer=probing.answer,
        best=probing.best,
    )


def _suffix(result: TaskResult, dataset: DatasetRuns) -> str:
    """Return what tells several probed tasks of one model apart in names of files."""
    same = [other for other, _ in dataset.probed() if other.subject is result.subject]
    return f".{same.index(result) + 1}" if len(same) > 1 else ""


def _draw_frame(axes: Axes, chart: LayerChart) -> None:
    axes.set_xlim(0, chart.modules[-1].end)
    axes.set_ylim(0, TOP)
    axes.set_yticks(range(0, 101, 25))
    axes.grid(visible=False, axis="x")
    for module in chart.modules:
        if module.start > 0:
            axes.axvline(module.start, color=MUTED, alpha=0.6, linewidth=0.8)
        axes.text((module.start + module.end) / 2, TOP, module_name(module.name), ha="center", va="top", fontsize=8.5)
    tick_names = ticks(chart)
    axes.set_xticks(list(tick_names), list(tick_names.values()), fontsize=7.5)


def _draw_band(axes: Axes, part: Sequence[tuple[float, float]]) -> None:
    x, top = [at for at, _ in part], [100 * reached for _, reached in part]
    if len(part) == 1:
        x, top = [x[0] - 2, x[0] + 2], top * 2
    axes.fill_between(x, 0, top, color=GRID, linewidth=0, zorder=0.5)


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    sign, line = LOOK[curve.name]
    for part in curve.parts:
        x, y = [at for at, _ in part], [100 * point.accuracy.value for _, point in part]
        low, high = ([100 * getattr(point.accuracy, end) for _, point in part] for end in ("low", "high"))
        axes.plot(x, y, color=colour, linestyle=line, marker=sign if len(part) <= 40 else None, markersize=4)
        if len(part) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.plot(x * 2, [low[0], high[0]], color=colour, linewidth=1)
        unused = [(at, 100 * point.accuracy.value) for at, point in part if not point.read]
        marks: dict[str, Any] = {"marker": sign, "color": colour, "markerfacecolor": PAPER, "linestyle": "none"}
        axes.plot([at for at, _ in unused], [value for _, value in unused], markersize=4.5, **marks)


def last_points(probing: ProbeAnalysis) -> list[tuple[str, str, float]]:
    """Return name, pooling and accuracy of the last layer of each module that the answer depends on."""
    points: list[tuple[str, str, float]] = []
    for part, name in PARTS.items():
        for pooling in CURVES:
            used = [point for point in probing.curve(pooling) if point.part == part and point.read]
            if used:
                points.append((name, CURVES[pooling], used[-1].accuracy.value))
    return points
