"""Interactive panels of interventions; see :mod:`medmllm_plugins.report.figures.intervention_figures`."""

from __future__ import annotations

from typing import Any, Final

from bokeh.layouts import column
from bokeh.models import Column, ColumnDataSource, FixedTicker, NoOverlap
from bokeh.models.annotations import Label, Title
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.figure_style import INK, MUTED, PAPER
from medmllm_plugins.report.figures.interactive import add_hover, new_plot, series_colour
from medmllm_plugins.report.formatting import bounds, percent
from medmllm_plugins.report.intervention_curves import CONTROLS, TOKENS, EffectCurves, EffectLine, EffectPanel

_LOOK: Final[dict[str, tuple[str, Any]]] = {
    "image": ("circle", "solid"),
    "last": ("square", [6, 3]),
    "all": ("triangle", [9, 3, 2, 3]),
}
"""Marker and dashes of tokens, as in layer charts."""
_HEIGHT: Final = 190
_FOOT: Final = 22
"""Further height of the last panel, for names of layers."""
_HIGH: Final = 80
"""Curves above this have their names below them."""
_NAMED_AT: Final = {"image": 0.0, "all": 0.5, "last": 1.0, "": 0.75}
"""Where along a curve its name stands, so that names of curves that meet do not hide each other."""
_TICKS: Final = 16


def intervention_plots(curves: EffectCurves, number: int) -> Column:
    """Return panels of one model below each other, over one axis of layers; hovering gives layer, value and interval.

    Args:
        curves: the values. Panels without a curve are left out.
        number: number of the model on the page, which decides its colour.
    """
    panels = [panel for panel in curves.panels if panel.lines]
    last = len(panels) - 1
    plots: list[figure] = []
    for index, panel in enumerate(panels):
        x_range: Any = plots[0].x_range if plots else (-0.5, len(curves.layers) - 0.5)
        plot = new_plot(_HEIGHT + (_FOOT if index == last else 0), x_range=x_range, y_range=panel.limits)
        plot.min_border_left = 56
        plot.xgrid.grid_line_color = None
        plot.yaxis.ticker = plot.ygrid.ticker = FixedTicker(ticks=[0, 25, 50, 75, 100])
        plot.yaxis.axis_label = f"{panel.quantity}, percent"
        plot.yaxis.axis_label_text_font_size = "12px"
        plot.add_layout(Title(text=panel.title, text_color=INK, text_font_size="13px"), "above")
        plot.xaxis.visible = index == last
        _add_panel(plot, panel, curves, series_colour(number))
        plots.append(plot)
    _name_layers(plots[-1], curves)
    return column(*plots, sizing_mode="stretch_width", height=sum(plot.height or 0 for plot in plots))


def _add_panel(plot: figure, panel: EffectPanel, curves: EffectCurves, colour: str) -> None:
    for control in panel.controls:
        dots = _add_line(plot, control, curves, MUTED, "dot", [1, 3])
        add_hover(plot, [dots], [("control", "@tokens"), ("layer", "@layer"), (panel.quantity, "@value")])
    if panel.controls:
        _add_name(plot, max(panel.controls, key=lambda line: max(line.values)), len(curves.layers), CONTROLS, MUTED)
    marks = []
    for line in panel.lines:
        marker, dashes = _LOOK[line.tokens]
        ends = [known(value) for value in (*line.low, *line.high)]
        if all(ends):
            plot.varea(line.x, line.low, line.high, fill_color=colour, fill_alpha=0.14)
        marks.append(_add_line(plot, line, curves, colour, marker, dashes))
        _add_name(plot, line, len(curves.layers), TOKENS[line.tokens], INK)
    rows = [("layer", "@layer"), ("tokens", "@tokens"), (panel.quantity, "@value"), ("95% CI", "@interval")]
    add_hover(plot, marks, rows)


def _add_line(
    plot: figure, line: EffectLine, curves: EffectCurves, colour: str, marker: str, dashes: Any
) -> GlyphRenderer[Any]:
    plot.line(line.x, line.values, line_color=colour, line_dash=dashes, line_width=2 if line.tokens else 1.3)
    ends = zip(line.low, line.high, strict=True)
    source = ColumnDataSource(
        {
            "x": list(line.x),
            "y": [round(value, 2) for value in line.values],
            "layer": [curves.layers[x] for x in line.x],
            "tokens": [TOKENS.get(line.tokens, CONTROLS)] * len(line.x),
            "value": [percent(value / 100) for value in line.values],
            "interval": [bounds(low, high) if known(low) and known(high) else "–" for low, high in ends],
        }
    )
    return plot.scatter("x", "y", source=source, marker=marker, size=6, color=colour)


def _add_name(plot: figure, line: EffectLine, layers: int, name: str, colour: str) -> None:
    index = round(_NAMED_AT[line.tokens] * (len(line.x) - 1))
    share = line.x[index] / max(1, layers - 1)
    align = "left" if share < 0.35 else "right" if share > 0.65 else "center"
    high = line.values[index] > _HIGH
    style: dict[str, Any] = {
        "text_align": align,
        "text_baseline": "top" if high else "bottom",
        "y_offset": -7 if high else 7,
        "text_color": colour,
        "text_font_size": "12px",
        "background_fill_color": PAPER,
        "background_fill_alpha": 0.75,
    }
    plot.add_layout(Label(x=line.x[index], y=line.values[index], text=name, **style))


def _name_layers(plot: figure, curves: EffectCurves) -> None:
    """Write the names of layers below the last panel."""
    count = len(curves.layers)
    step = max(1, -(-count // _TICKS))
    shown = [index for index in range(count) if index % step == 0 or index == count - 1]
    plot.xaxis.ticker = FixedTicker(ticks=shown)
    plot.xaxis.major_label_overrides = {index: curves.layers[index].removeprefix("llm.") for index in shown}
    plot.xaxis.major_label_policy = NoOverlap(min_distance=3)
    plot.xaxis.major_label_text_font_size = "11px"
