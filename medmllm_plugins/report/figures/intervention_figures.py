"""Curves of interventions beside those of probes: where the class can be read, is used, and is restored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medmllm_plugins.report.figures.figure_style import INK, MUTED, Drawing, finish, series_style
from medmllm_plugins.report.figures.interactive import to_json
from medmllm_plugins.report.figures.intervention_plots import intervention_plots
from medmllm_plugins.report.intervention_curves import (
    CONTROLS,
    TOKENS,
    EffectCurves,
    EffectLine,
    EffectPanel,
    InterventionEvidence,
    effect_curves,
)
from medmllm_plugins.report.run_collection import DatasetRuns

_LOOK: Final[dict[str, tuple[str, Any]]] = {
    "image": ("o", "-"),
    "last": ("s", (0, (5, 2))),
    "all": ("^", (0, (6, 2, 1, 2))),
}
"""Marker and dashes of the tokens whose states are read or put in; the colour is that of the model."""
_CONTROL_LINE: Final[dict[str, Any]] = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (1, 2))}


def interventions(evidence: InterventionEvidence, dataset: DatasetRuns, figure_number: int) -> Drawing:
    """Draw three panels of one model below each other: probes, interchange, and patching with a twin."""
    curves = effect_curves(evidence)
    figure = Figure(figsize=(4.2, 6.6), layout="constrained")
    axes = figure.subplots(len(curves.panels), 1, sharex=True)
    for each, panel in zip(axes, curves.panels, strict=True):
        _draw_panel(each, panel, series_style(evidence.subject.number)["color"])
    _label_layers(axes[-1], curves.layers)
    figure.legend(handles=_samples(curves), loc="outside lower center", ncols=2)
    records = (evidence.exchanged, evidence.patched)
    plots = intervention_plots(curves, evidence.subject.number) if curves.tokens else None
    return finish(
        figure,
        f"{dataset.name}.interventions.{evidence.subject.number + 1}",
        macro="intervention_curves",
        number=figure_number,
        interactive="" if plots is None else to_json(plots, figure_number),
        data_set=dataset.title,
        model=evidence.subject.label,
        results=" ".join(record.headline for record in records if record is not None),
    )


def _draw_panel(axes: Axes, panel: EffectPanel, colour: str) -> None:
    axes.set_title(panel.title)
    axes.set_ylabel(f"{panel.quantity}, percent")
    axes.set_ylim(*panel.limits)
    axes.grid(visible=False, axis="x")
    if panel.note:
        axes.text(0.5, 0.5, panel.note, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    for line in panel.lines:
        _draw_line(axes, line, colour)
    for control in panel.controls:
        axes.plot(control.x, control.values, **_CONTROL_LINE)


def _draw_line(axes: Axes, line: EffectLine, colour: str) -> None:
    """Draw values with their intervals as a band."""
    marker, dashes = _LOOK[line.tokens]
    axes.plot(line.x, line.values, color=colour, marker=marker, markersize=3.5, linestyle=dashes)
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0)


def _samples(curves: EffectCurves) -> list[Line2D]:
    """Return the lines of the legend; black, since the colour of the curves is that of the model."""
    samples = [
        Line2D([], [], color=INK, marker=marker, markersize=3.5, linestyle=dashes, label=TOKENS[name])
        for name, (marker, dashes) in _LOOK.items()
        if name in curves.tokens
    ]
    controls = (
        [Line2D([], [], label=CONTROLS, **_CONTROL_LINE)] if any(panel.controls for panel in curves.panels) else []
    )
    return samples + controls


def _label_layers(axes: Axes, layers: Sequence[str]) -> None:
    step = max(1, -(-len(layers) // 10))
    shown = [index for index in range(len(layers)) if index % step == 0 or index == len(layers) - 1]
    axes.set_xticks(shown, [layers[index].removeprefix("llm.") for index in shown], rotation=90, fontsize=7.5)
    axes.set_xlim(-0.5, len(layers) - 0.5)
