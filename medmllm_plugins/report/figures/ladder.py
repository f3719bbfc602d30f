"""The ladder of one model: stages as rows, accuracies as dots, losses as arrows; static and interactive."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bokeh.models import ColumnDataSource, FixedTicker, LinearAxis, NoOverlap
from bokeh.models.annotations import Arrow, ArrowHead, BoxAnnotation, Label, NormalHead, OpenHead, Span
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure as BokehFigure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
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
from medmllm_plugins.report.figures.interactive import (
    BOKEH_MARKERS,
    add_hover,
    new_plot,
    series_marker,
    to_json,
)
from medmllm_plugins.report.formatting import bounds, cut, percent
from medmllm_plugins.report.ladders import Ladder, Rung, Step
from medmllm_plugins.report.templating import text

_ROW: Final = 54
"""Height of a row on the page, in pixels."""
_LINE: Final = 10
"""Letters of a stage's name on one line."""
_WIDTH: Final = 0.4
"""Width of a value on a narrow screen, as a share of the axis."""
_ALIGN: Final[Mapping[str, Any]] = {"right": "left", "left": "right", "below": "center"}
"""How a text on one side of a mark is aligned."""
_NOTE: Final = 14
"""Letters of a note at the right on one line."""
_FROM: Final = 0.2
_TO: Final = 0.78
"""Where an arrow begins and ends, as shares of the way between two rows."""
_NEAR: Final = 0.6
"""An interval that ends above this leaves no room for its value at the right."""
_DIAMOND: Final = BOKEH_MARKERS[3]
_DOT_ROWS: Final = (
    ("stage", "@stage"),
    ("accuracy", "@accuracy"),
    ("95% CI", "@interval"),
    ("balanced accuracy", "@balanced"),
    ("shown by", "@source"),
    ("probe at the stage's end", "@own"),
)
_ARROW_ROWS: Final = (
    ("step", "@step"),
    ("change", "@change"),
    ("95% CI of the loss", "@interval"),
    ("evidence", "@verdict"),
    ("why", "@why"),
)


@dataclass(frozen=True, slots=True)
class _ArrowStyle:
    """Style of an arrow: how its head is made, and its line."""

    head: Callable[[], ArrowHead]
    line: Mapping[str, Any]


_ARROWS: Final[Mapping[str, tuple[_ArrowStyle, ...]]] = {
    "supported": (
        _ArrowStyle(
            partial(NormalHead, size=13, fill_color=INK, line_color=INK), {"line_color": INK, "line_width": 4.5}
        ),
    ),
    # A shaft of paper over a wider one of ink is hollow.
    "ruled out": tuple(
        _ArrowStyle(
            partial(NormalHead, size=13, fill_color=PAPER, line_color=INK), {"line_color": colour, "line_width": width}
        )
        for colour, width in ((INK, 5.5), (PAPER, 3))
    ),
}
_UNCLEAR: Final = (
    _ArrowStyle(
        partial(OpenHead, size=9, line_color=MUTED, line_width=1.6),
        {"line_color": MUTED, "line_dash": [5, 4], "line_width": 1.8},
    ),
)


def ladder(content: Ladder, stem: str, figure_number: int) -> Drawing:
    """Draw a ladder.

    Args:
        content: the ladder.
        stem: name of the figure's files.
        figure_number: number of the figure on the page.
    """
    rows = len(content.rungs)
    figure = Figure(figsize=(6.4, 0.52 * rows + 0.75), layout="constrained")
    axes = figure.subplots()
    _draw_frame(axes, content)
    for step in content.steps:
        _draw_arrow(axes, content, step)
    for row, rung in enumerate(content.rungs):
        if known(rung.accuracy):
            _draw_rung(axes, content, rung, row)
    return finish(
        figure,
        stem,
        macro="ladder",
        number=figure_number,
        interactive=to_json(_plot(content), figure_number),
        ladder=content,
    )


def _names(content: Ladder) -> list[str]:
    return [textwrap.fill(rung.title, _LINE) for rung in content.rungs]


def _notes(content: Ladder) -> list[tuple[float, str]]:
    """Return the texts at the right with their rows: losses between rungs, and why a rung has no arrow."""
    losses = [
        ((step.start + step.end) / 2, f"{step.label.replace(' (', chr(10) + '(')}\n{step.verdict}")
        for step in content.steps
    ]
    reasons = [(float(row), textwrap.fill(rung.note, _NOTE)) for row, rung in enumerate(content.rungs) if rung.note]
    return [*losses, *reasons]


def _value_at(content: Ladder, row: int) -> tuple[float, str]:
    """Return where the value of a rung is printed, and on which side: ``right``, ``left`` or ``below``.

    It stands at the right if there is room, and not on an arrow that passes the rung.
    """
    rung = content.rungs[row]
    ends = [
        rung.accuracy.value,
        *(end for end in (rung.accuracy.low, rung.accuracy.high, rung.own.value) if known(end)),
    ]
    for step in content.steps:
        before, after = content.rungs[step.start].accuracy, content.rungs[step.end].accuracy
        if step.start < row < step.end and known(before) and known(after):
            way = (row - step.start) / (step.end - step.start)
            passes = before.value + way * (after.value - before.value)
            if rung.accuracy.value < passes < max(ends) + _WIDTH:
                return (min(ends), "left") if min(ends) > _WIDTH else (rung.accuracy.value, "below")
    return (max(ends), "right") if max(ends) < _NEAR else (min(ends), "left")


def _arrow_ends(content: Ladder, step: Step) -> tuple[float, float, float, float] | None:
    """Return x and y of an arrow's start and end, in percent and rows; ``None`` if a rung has no accuracy."""
    before, after = content.rungs[step.start].accuracy, content.rungs[step.end].accuracy
    if not (known(before) and known(after)):
        return None
    # The ends keep clear of the dots by a fixed part of a row.
    rows = step.end - step.start
    begin, stop = _FROM / rows, 1 - (1 - _TO) / rows
    x, y = 100 * before.value, float(step.start)
    width = 100 * (after.value - before.value)
    return x + begin * width, y + begin * rows, x + stop * width, y + stop * rows


def _guess_text(content: Ladder, *, short: bool) -> str:
    return text("signal.txt.jinja", "guess", guess=content.guess, short=short)


def _readable_text() -> str:
    return text("signal.txt.jinja", "readable")


def _look(content: Ladder, rung: Rung) -> tuple[str, str, str]:
    """Return colour, and marker of matplotlib and Bokeh: a reference classifier has its own, all else the model's."""
    subject = content.subject
    if rung.stage in ("reference", "control"):
        if content.reference is None:
            return INK, "D", _DIAMOND
        subject = content.reference
    style = series_style(subject.number)
    return style["color"], style["marker"], series_marker(subject.number)


# -- matplotlib


def _draw_frame(axes: Axes, content: Ladder) -> None:
    rows = len(content.rungs)
    axes.set_xlim(-2, 102)
    axes.set_ylim(rows - 0.5, -0.75)
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(rows), _names(content))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("accuracy, percent")
    if content.readable is not None:
        axes.axhspan(0.5, content.readable + 0.48, color=GRID, alpha=0.6, linewidth=0, zorder=0)
        axes.text(0, content.readable + 0.42, _readable_text(), color=MUTED, fontsize=7.5, va="bottom")
    if known(content.guess):
        x = 100 * content.guess
        side = "left" if content.guess < 0.5 else "right"
        axes.axvline(x, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.text(x, -0.72, f" {_guess_text(content, short=False)} ", color=MUTED, fontsize=7.5, ha=side, va="top")
    for row, label in _notes(content):
        axes.text(1.02, row, label, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _draw_arrow(axes: Axes, content: Ladder, step: Step) -> None:
    ends = _arrow_ends(content, step)
    if ends is None:
        return
    options: dict[str, Any] = {
        "supported": {"arrowstyle": "simple,tail_width=0.35,head_width=1,head_length=0.8", "facecolor": INK},
        "ruled out": {"arrowstyle": "simple,tail_width=0.35,head_width=1,head_length=0.8", "facecolor": PAPER},
    }.get(step.verdict, {"arrowstyle": "->", "linestyle": (0, (3, 2))})
    colour = INK if step.verdict in ("supported", "ruled out") else MUTED
    options |= {"edgecolor": colour, "linewidth": 1, "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=ends[2:], xytext=ends[:2], arrowprops=options)


def _draw_rung(axes: Axes, content: Ladder, rung: Rung, row: int) -> None:
    colour, marker, _ = _look(content, rung)
    face = colour if rung.used else PAPER
    error_bar(axes, rung.accuracy, row, fmt=marker, color=colour, markersize=6, markerfacecolor=face, elinewidth=1.4)
    if known(rung.own):
        ring: dict[str, Any] = {"markersize": 5, "color": MUTED, "markerfacecolor": PAPER, "linestyle": "none"}
        axes.plot([100 * rung.own.value], [row], "o", **ring)
    x, side = _value_at(content, row)
    down = 0.22 if side == "below" else 0.0
    shown = f"  {percent(rung.accuracy.value)}  "
    align = _ALIGN[side]
    axes.text(100 * x, row + down, shown, ha=align, va="top" if down else "center", fontsize=8)


# -- Bokeh


def _plot(content: Ladder) -> BokehFigure:
    rows = len(content.rungs)
    plot = new_plot(_ROW * rows + 60, x_range=(-3, 103), y_range=(rows - 0.5, -0.75), x_axis_label="accuracy, percent")
    plot.xaxis.major_label_policy = NoOverlap(min_distance=8)
    plot.xaxis.ticker = plot.xgrid.ticker = FixedTicker(ticks=[0, 25, 50, 75, 100])
    plot.yaxis.ticker = FixedTicker(ticks=list(range(rows)))
    plot.yaxis.major_label_overrides = dict(enumerate(_names(content)))
    plot.yaxis.major_label_text_color = INK
    plot.ygrid.grid_line_color = None
    notes = _notes(content)
    right: Any = LinearAxis(  # typed as any: its declared ticker leaves out fixed ones
        major_label_overrides=dict(notes),
        axis_line_color=None,
        major_tick_line_color=None,
        minor_tick_line_color=None,
        major_label_text_color=INK,
        major_label_text_font_size="12px",
    )
    right.ticker = FixedTicker(ticks=[row for row, _ in notes])
    if notes:
        plot.add_layout(right, "right")
    if content.readable is not None:
        band: dict[str, Any] = {"fill_color": GRID, "fill_alpha": 0.55, "line_color": None, "level": "underlay"}
        plot.add_layout(BoxAnnotation(top=content.readable + 0.48, bottom=0.5, **band))
        label: dict[str, Any] = {"text_color": MUTED, "text_font_size": "11px", "y_offset": 2}
        plot.add_layout(Label(x=0, y=content.readable + 0.48, text=_readable_text(), **label))
    if known(content.guess):
        _add_guess(plot, content)
    arrows = [_add_arrow(plot, content, step) for step in content.steps]
    dots = [_add_rung(plot, content, rung, row) for row, rung in enumerate(content.rungs) if known(rung.accuracy)]
    add_hover(plot, dots, _DOT_ROWS)
    add_hover(plot, [arrow for arrow in arrows if arrow is not None], _ARROW_ROWS)
    return plot


def _add_guess(plot: BokehFigure, content: Ladder) -> None:
    x = 100 * content.guess
    left = content.guess < 0.5
    plot.add_layout(Span(location=x, dimension="height", line_color=INK, line_dash=[2, 3], line_width=1))
    plot.add_layout(
        Label(
            x=x,
            y=-0.72,
            x_offset=5 if left else -5,
            text=_guess_text(content, short=True),
            text_align="left" if left else "right",
            text_baseline="top",
            text_color=MUTED,
            text_font_size="11px",
        )
    )


def _add_arrow(plot: BokehFigure, content: Ladder, step: Step) -> GlyphRenderer[Any] | None:
    """Draw an arrow; return an invisible mark on it that shows its tooltip."""
    ends = _arrow_ends(content, step)
    if ends is None:
        return None
    line: dict[str, Any] = dict(zip(("x_start", "y_start", "x_end", "y_end"), ends, strict=True))
    for style in _ARROWS.get(step.verdict, _UNCLEAR):
        plot.add_layout(Arrow(end=style.head(), level="underlay", **line, **style.line))
    before, after = content.rungs[step.start], content.rungs[step.end]
    source = ColumnDataSource(
        {
            "x": [(ends[0] + ends[2]) / 2],
            "y": [(ends[1] + ends[3]) / 2],
            "step": [f"{before.title} to {after.title}"],
            "change": [step.label],
            "interval": [_interval(step.loss, signed=step.loss.low < 0)],
            "verdict": [step.verdict],
            "why": [cut(step.why, 140)],
        }
    )
    return plot.scatter("x", "y", source=source, size=26, alpha=0)


def _add_rung(plot: BokehFigure, content: Ladder, rung: Rung, row: int) -> GlyphRenderer[Any]:
    colour, _, marker = _look(content, rung)
    if known(rung.accuracy.low):
        low, high = 100 * rung.accuracy.low, 100 * rung.accuracy.high
        plot.segment([low], [row], [high], [row], line_color=colour, line_width=2)
    if known(rung.own):
        plot.scatter([100 * rung.own.value], [row], size=8, fill_color=PAPER, line_color=MUTED, line_width=1.5)
    source = ColumnDataSource(
        {
            "x": [100 * rung.accuracy.value],
            "y": [row],
            "stage": [rung.title],
            "accuracy": [percent(rung.accuracy.value)],
            "interval": [_interval(rung.accuracy)],
            "balanced": [percent(rung.balanced.value)],
            "source": [cut(rung.source, 60) or "–"],
            "own": [percent(rung.own.value)],
        }
    )
    fill = colour if rung.used else PAPER
    style: dict[str, Any] = {"marker": marker, "size": 12, "fill_color": fill, "line_color": colour, "line_width": 2}
    dot = plot.scatter("x", "y", source=source, **style)
    x, side = _value_at(content, row)
    plot.text(
        [100 * x],
        [row],
        text=[percent(rung.accuracy.value)],
        x_offset={"right": 9, "left": -9}.get(side, 0),
        y_offset=9 if side == "below" else 0,
        text_align=_ALIGN[side],
        text_baseline="top" if side == "below" else "middle",
        text_font_size="13px",
        text_color=INK,
    )
    return dot


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    return bounds(100 * estimate.low, 100 * estimate.high, signed=signed) if known(estimate.low) else "–"
