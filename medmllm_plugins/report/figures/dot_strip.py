"""The dot strip of the first screen: guessing, controls and models on one scale from 0 to 100%."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from bokeh.models import ColumnDataSource
from bokeh.plotting import figure as BokehFigure
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.answer.strip_rows import StripRow
from medmllm_plugins.report.figures.figure_style import (
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    SeriesMarks,
    error_bar,
    finish,
)
from medmllm_plugins.report.figures.interactive import add_hover, new_plot, series_marker, series_tag, to_json
from medmllm_plugins.report.formatting import NOTHING, bounds, cut, percent

ROW_PIXELS: Final = 44
AXIS_PIXELS: Final = 30
_ROW_INCHES: Final = 0.40
_NAME_ABOVE: Final = 0.30
"""Distance of a row's name from its dot, in rows: names above the dots leave the whole width to the scale."""
_TICKS: Final = (0, 25, 50, 75, 100)
_PLAIN_MARKERS: Final = {"guess": ("|", "dash"), "blank": ("o", "circle"), "reference": ("D", "diamond")}
"""Markers of rows that are not models, for matplotlib and Bokeh."""


def dot_strip(dataset: str, title: str, rows: Sequence[StripRow], number: int) -> Drawing | None:
    """Draw the strip.

    Args:
        dataset: name of the data set, for the names of files.
        title: its title.
        rows: the rows, from the top.
        number: number of the figure on the page.
    """
    if not rows:
        return None
    figure = _static(rows)
    return finish(
        figure,
        f"{dataset}.strip",
        number=number,
        interactive=to_json(_interactive(rows), number),
        data_set=title,
        rows=rows,
    )


def _style(row: StripRow) -> tuple[str, str, str]:
    """Return colour and the markers of matplotlib and Bokeh; model colours are for models alone."""
    if row.kind == "model" and row.number is not None:
        index = row.number
        return SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)], series_marker(index)
    marker, shape = _PLAIN_MARKERS.get(row.kind, ("o", "circle"))
    return INK if row.kind == "reference" else MUTED, marker, shape


def _guess_value(rows: Sequence[StripRow]) -> float | None:
    return next((100 * row.accuracy.value for row in rows if row.kind == "guess"), None)


def _static(rows: Sequence[StripRow]) -> Figure:
    figure = Figure(figsize=(5.6, 0.35 + _ROW_INCHES * len(rows)), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    guess = _guess_value(rows)
    if guess is not None:
        axes.axvline(guess, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for position, row in enumerate(rows):
        colour, marker, _ = _style(row)
        track = axes.plot([0, 100], [position] * 2, color=GRID, linewidth=1, zorder=0.5)
        hollow: dict[str, Any] = {} if row.used else {"markerfacecolor": PAPER}
        bar = error_bar(
            axes,
            row.accuracy,
            position,
            fmt=marker,
            color=colour,
            markersize=8 if row.kind != "guess" else 11,
            markeredgewidth=2.2 if row.kind == "guess" else 1.3,
            elinewidth=2.4,
            capsize=0,
            zorder=3,
            **hollow,
        )
        above = position - _NAME_ABOVE
        bold = "bold" if row.kind == "model" else "normal"
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}
        name = axes.text(0, above, row.name, va="center", fontsize=8.5, fontweight=bold, bbox=box)
        value = axes.text(100, above, _value(row), va="center", ha="right", fontsize=8.5, fontweight=bold, bbox=box)
        if row.number is not None:
            marks(row.number, [*track, *bar.get_children(), name, value])
    axes.set_ylim(len(rows) - 0.55, -0.62)
    axes.set_xlim(-1.5, 101.5)
    axes.set_yticks([])
    axes.set_xticks(_TICKS, [f"{tick}%" for tick in _TICKS])
    axes.grid(visible=False, axis="y")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _interactive(rows: Sequence[StripRow]) -> BokehFigure:
    plot = new_plot(
        AXIS_PIXELS + ROW_PIXELS * len(rows),
        x_range=(-1.5, 101.5),
        y_range=(len(rows) - 0.6, -0.75),
        min_border_left=0,
        min_border_right=0,
    )
    plot.yaxis.visible = False
    plot.ygrid.visible = False
    plot.xaxis.ticker = list(_TICKS)
    plot.xaxis.major_label_overrides = {tick: f"{tick}%" for tick in _TICKS}
    guess = _guess_value(rows)
    if guess is not None:
        top, bottom = -0.75, len(rows) - 0.6
        plot.segment(guess, top, guess, bottom, line_color=MUTED, line_dash=[4, 3], level="underlay")
    for position, row in enumerate(rows):  # below the dots, which a name's background would cut off
        tags = _tags(row)
        plot.segment(0, position, 100, position, line_color=GRID, **tags)
        words = {
            "y": position,
            "y_offset": -15,
            "text_baseline": "middle",
            "text_font_size": "13px",
            "text_color": INK,
            "text_font_style": "bold" if row.kind == "model" else "normal",
            "background_fill_color": PAPER,
            **tags,
        }
        plot.text(0, text=[row.name], text_align="left", **words)
        plot.text(100, text=[_value(row)], text_align="right", **words)
    dots = []
    for position, row in enumerate(rows):
        colour, _, shape = _style(row)
        tags = _tags(row)
        low, high = (100 * end for end in (row.accuracy.low, row.accuracy.high))
        value = 100 * row.accuracy.value
        source = ColumnDataSource(
            {
                "x": [value],
                "y": [position],
                "name": [row.full_name or row.name],
                "accuracy": [percent(row.accuracy.value)],
                "interval": [_interval(row) or NOTHING],
                "questions": [f"{row.questions:,}" if row.questions else NOTHING],
                "note": [row.note or NOTHING],
            }
        )
        if known(row.accuracy.low):
            plot.segment(low, position, high, position, line_color=colour, line_width=3, line_cap="round", **tags)
        dots.append(
            plot.scatter(
                "x",
                "y",
                source=source,
                marker=shape,
                size=14 if row.kind == "reference" else 12,
                angle=math.pi / 2 if row.kind == "guess" else 0,
                line_color=colour,
                line_width=4 if row.kind == "guess" else 2,
                fill_color=colour if row.used else PAPER,
                **tags,
            )
        )
    rows_of_hover = ("accuracy", "interval", "questions", "note")
    add_hover(plot, dots, [("", "@name"), *((name, f"@{name}") for name in rows_of_hover)])
    return plot


def _tags(row: StripRow) -> dict[str, Any]:
    return {} if row.number is None else {"tags": series_tag(row.number)}


def _value(row: StripRow) -> str:
    """Return the accuracy with its interval, without it where the name needs the room on a phone."""
    interval = _interval(row)
    accuracy = percent(row.accuracy.value)
    return f"{accuracy} ({interval})" if interval and len(row.name) + len(interval) <= _MAX_LETTERS else accuracy


_MAX_LETTERS: Final = 30
"""Letters of name and interval that fit beside each other on a phone."""


def _interval(row: StripRow) -> str:
    if not known(row.accuracy.low) or not known(row.accuracy.high):
        return ""
    return cut(bounds(100 * row.accuracy.low, 100 * row.accuracy.high), 20)
