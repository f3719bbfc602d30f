"""Interactive layer charts, and the names and positions of labels that they share with the static ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from bokeh.models import ColumnDataSource, FixedTicker, NoOverlap
from bokeh.models.annotations import BoxAnnotation, Label, Span
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.figure_style import GRID, INK, MUTED, PAPER
from medmllm_plugins.report.figures.interactive import add_hover, new_plot, series_colour
from medmllm_plugins.report.formatting import bounds, cut, p_value, percent
from medmllm_plugins.report.layer_charts import ControlCurve, Curve, LayerChart
from medmllm_plugins.report.templating import text

TOP: Final = 124
"""Upper end of the axis: above 100% stand the names of modules and of the best layer."""
_LOOK: Final[dict[str, tuple[str, Any]]] = {
    "mean": ("circle", "solid"),
    "last": ("square", [6, 3]),
    "cls": ("triangle", [9, 3, 2, 3]),
}
"""Marker and dashes of each pooling."""
_CONTROL_DASHES: Final[dict[str, Any]] = {
    "task": [2, 2],
    "permutation": [6, 2],
    "lens": "solid",
    "random": [8, 3, 2, 3],
    "pixels": [1, 3],
    "border": [10, 4],
    "corners": [4, 4],
    "centre": [2, 5],
}
_HIGH: Final = 84
"""Curves that end above this have their names below them."""
_NAME: Final = 22
"""Width of a curve's name, in units of the axis."""
_LABEL: Final = 7.0
"""Height of a label, in percent of the axis."""
_TICKS: Final = 14
_SIDE: Final = 32
"""Labels nearer than this to an end of the axis are aligned with it."""


def module_name(name: str) -> str:
    """Return a module's name as it stands over the chart."""
    return text("signal.txt.jinja", "module", name=name)


def ticks(chart: LayerChart) -> dict[float, str]:
    """Return the positions of some layers with their names inside the module."""
    names = [name for name in chart.positions if "." in name]
    step = max(1, -(-len(names) // _TICKS))
    tick_names: dict[float, str] = {}
    for module in chart.modules:
        members = [name for name in names if name.partition(".")[0] == module.name]
        for index, name in enumerate(members):
            label = name.partition(".")[2]
            beside_norm = members[-1].endswith(".norm") and len(members) - 1 - index < max(1, step * 0.6)
            if label == "norm" or (index % step == 0 and not beside_norm):
                tick_names[chart.positions[name]] = str(int(label)) if label.isascii() and label.isdigit() else label
    return tick_names


def best_label(chart: LayerChart) -> tuple[str, str]:
    """Return the name and accuracy of the best layer, and how they are aligned with its position."""
    assert chart.best is not None
    x, point = chart.best
    align = "left" if x < _SIDE else "right" if x > 100 - _SIDE else "center"
    return text("signal.txt.jinja", "best", point=point), align


def curve_labels(chart: LayerChart) -> list[tuple[float, float, str, bool]]:
    """Return x, y and text of the names of curves at their ends, and whether they stand above that y.

    Where the curves end high, all names stand below them, since the best layer's name is above.
    """
    ends = []
    for curve in chart.curves:
        x, point = curve.parts[-1][-1]
        near = [100 * point.accuracy.value for at, point in curve.parts[-1] if at > x - _NAME]
        ends.append((100 * point.accuracy.value, x, max(near), min(near), curve.title, point.part))
    ends.sort(reverse=True)
    labels: list[tuple[float, float, str, bool]] = []
    in_llm = [end for end in ends if end[5] == "llm"]
    if in_llm and len(in_llm) > 1 and in_llm[0][2] <= _HIGH:
        upper, lower = in_llm[0], in_llm[-1]
        labels += [(upper[1], upper[2] + 3, upper[4], True), (lower[1], lower[3] - 3, lower[4], False)]
    else:
        lowest = min((end[3] for end in in_llm), default=0.0)
        labels += [(end[1], lowest - 4 - _LABEL * index, end[4], False) for index, end in enumerate(in_llm)]
    labels += [(end[1], end[3] - 4, end[4], False) for end in ends if end[5] != "llm"]
    return labels


def layer_plot(chart: LayerChart, height: int) -> figure:
    """Return the interactive chart; each control and the mark of each stage is hidden and has a tag to show it by."""
    plot = new_plot(height, x_range=(0, chart.modules[-1].end), y_range=(0, TOP))
    plot.yaxis.ticker = plot.ygrid.ticker = FixedTicker(ticks=[0, 25, 50, 75, 100])
    plot.xgrid.grid_line_color = None
    tick_names = ticks(chart)
    plot.xaxis.ticker = FixedTicker(ticks=list(tick_names))
    plot.xaxis.major_label_overrides = {at: name for at, name in tick_names.items()}
    plot.xaxis.major_label_policy = NoOverlap(min_distance=3)
    plot.xaxis.major_label_text_font_size = "11px"
    _add_modules(plot, chart)
    for part in chart.band:
        x, reached = [at for at, _ in part], [100 * value for _, value in part]
        if len(part) == 1:
            x, reached = [x[0] - 2, x[0] + 2], reached * 2
        plot.varea(x, [0] * len(x), reached, fill_color=GRID, fill_alpha=0.9, level="underlay")
    note: dict[str, Any] = {"text_color": MUTED, "text_font_size": "12px"}
    plot.add_layout(Label(x=0, y=0, x_offset=4, y_offset=3, text=text("signal.txt.jinja", "band"), **note))
    for control in chart.controls:
        _add_control(plot, control)
    colour = series_colour(chart.result.subject.number)
    marks = [_add_curve(plot, curve, colour) for curve in chart.curves]
    rows = [
        ("layer", "@layer"),
        ("pooling", "@pooling"),
        ("accuracy", "@accuracy"),
        ("95% CI", "@interval"),
        ("p, permutation", "@p"),
    ]
    add_hover(plot, marks, rows)
    _add_answer(plot, chart, colour)
    for end, level, label, upward in curve_labels(chart):
        baseline = "bottom" if upward else "top"
        options: dict[str, Any] = {
            "text_font_size": "12px",
            "text_color": INK,
            "text_align": "right",
            "text_baseline": baseline,
        }
        plot.add_layout(Label(x=end, y=level, text=label, **options))
    _add_best(plot, chart)
    return plot


def _add_modules(plot: figure, chart: LayerChart) -> None:
    for module in chart.modules:
        mark: dict[str, Any] = {
            "fill_color": INK,
            "fill_alpha": 0.09,
            "line_color": INK,
            "line_width": 1.5,
            "level": "underlay",
        }
        box = BoxAnnotation(left=module.start, right=module.end, tags=[f"stage-{module.name}"], visible=False, **mark)
        plot.add_layout(box)
        label: dict[str, Any] = {
            "text_align": "center",
            "text_baseline": "top",
            "text_color": INK,
            "text_font_size": "11px",
        }
        plot.add_layout(
            Label(x=(module.start + module.end) / 2, y=TOP, y_offset=-1, text=module_name(module.name), **label)
        )
    for before, _ in pairwise(chart.modules):
        plot.add_layout(Span(location=before.end, dimension="height", line_color=MUTED, line_alpha=0.6, line_width=1))


def _add_control(plot: figure, control: ControlCurve) -> None:
    """Add a control's curve with its name; both stay hidden until the page shows them."""
    colour = INK if control.name == "lens" else MUTED
    xs = [[at for at, _ in part] for part in control.parts]
    ys = [[100 * reached for _, reached in part] for part in control.parts]
    line = plot.multi_line(xs, ys, line_color=colour, line_dash=_CONTROL_DASHES[control.name], line_width=1.6)
    flat = [(at, 100 * reached) for part in control.parts for at, reached in part]
    source = ColumnDataSource(
        {
            "x": [at for at, _ in flat],
            "y": [reached for _, reached in flat],
            "control": [control.title] * len(flat),
            "accuracy": [percent(reached / 100) for _, reached in flat],
        }
    )
    dots = plot.scatter("x", "y", source=source, size=4, color=colour)
    add_hover(plot, [dots], [("control", "@control"), ("reaches", "@accuracy")])
    style: dict[str, Any] = {
        "text_baseline": "bottom",
        "text_color": colour,
        "text_font_size": "11px",
        "y_offset": -3,
        "background_fill_color": PAPER,
        "background_fill_alpha": 0.75,
    }
    # Names of several controls stand at different layers, so that those that reach alike do not hide each other.
    longest = max(control.parts, key=len)
    share = list(_CONTROL_DASHES).index(control.name) / (len(_CONTROL_DASHES) + 2)
    x, y = longest[int(share * len(longest))][0], 100 * longest[int(share * len(longest))][1]
    name = plot.text([x], [y], text=[control.title], **style)
    for renderer in (line, dots, name):
        # As arguments of the methods above, tags would go to the glyph, which the page cannot hide.
        renderer.tags = [f"control-{control.name}"]
        renderer.visible = False


def _add_curve(plot: figure, curve: Curve, colour: str) -> GlyphRenderer[Any]:
    marker, dashes = _LOOK[curve.name]
    points = [pair for part in curve.parts for pair in part]
    for part in curve.parts:
        x, y = [at for at, _ in part], [100 * point.accuracy.value for _, point in part]
        ends = [(100 * point.accuracy.low, 100 * point.accuracy.high) for _, point in part]
        if all(known(end) for pair in ends for end in pair):
            low, high = [pair[0] for pair in ends], [pair[1] for pair in ends]
            if len(part) > 1:
                plot.varea(x, low, high, fill_color=colour, fill_alpha=0.14)
            else:
                plot.segment(x, low, x, high, line_color=colour, line_width=1.5)
        plot.line(x, y, line_color=colour, line_dash=dashes, line_width=2)
    source = ColumnDataSource(
        {
            "x": [at for at, _ in points],
            "y": [100 * point.accuracy.value for _, point in points],
            "fill": [colour if point.read else PAPER for _, point in points],
            "layer": [point.layer if point.read else f"{point.layer} (not used)" for _, point in points],
            "pooling": [curve.title] * len(points),
            "accuracy": [percent(point.accuracy.value) for _, point in points],
            "interval": [
                bounds(100 * point.accuracy.low, 100 * point.accuracy.high) if known(point.accuracy.low) else "–"
                for _, point in points
            ],
            "p": [
                text("signal.txt.jinja", "p", holm=p_value(point.p_holm), plain=p_value(point.p)) for _, point in points
            ],
        }
    )
    size = 6 if len(points) <= 60 else 4
    return plot.scatter("x", "y", source=source, marker=marker, size=size, fill_color="fill", line_color=colour)


def _add_answer(plot: figure, chart: LayerChart, colour: str) -> None:
    answer = chart.probing.answer
    if not known(answer):
        return
    x, y = chart.answer, 100 * answer.value
    plot.line([0, x], [y, y], line_color=INK, line_width=1, line_alpha=0.35)
    if known(answer.low):
        plot.segment([x], [100 * answer.low], [x], [100 * answer.high], line_color=colour, line_width=2)
    interval = bounds(100 * answer.low, 100 * answer.high) if known(answer.low) else "–"
    source = ColumnDataSource({"x": [x], "y": [y], "accuracy": [percent(answer.value)], "interval": [interval]})
    dot = plot.scatter("x", "y", source=source, marker="diamond", size=13, color=colour)
    add_hover(plot, [dot], [("answers", "@accuracy"), ("95% CI", "@interval")])
    below = 100 * (answer.low if known(answer.low) else answer.value)
    style: dict[str, Any] = {
        "text_align": "center",
        "text_baseline": "top",
        "text_font_size": "12px",
        "text_color": INK,
    }
    plot.add_layout(Label(x=x, y=below, y_offset=-4, text=cut(percent(answer.value)), **style))


def _add_best(plot: figure, chart: LayerChart) -> None:
    if chart.best is None:
        return
    x, point = chart.best
    y = 100 * point.accuracy.value
    label, align = best_label(chart)
    plot.line([x, x], [y, TOP - 13], line_color=INK, line_width=1, line_dash=[2, 2])
    plot.scatter([x], [y], size=12, fill_alpha=0, line_color=INK, line_width=1.5)
    style: dict[str, Any] = {
        "text_align": align,
        "text_baseline": "bottom",
        "text_font_size": "12px",
        "text_color": INK,
    }
    plot.add_layout(Label(x=x, y=TOP - 13, text=label, **style))
