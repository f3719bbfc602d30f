"""Panels of lines that are labelled directly: reliability, ROC curves, referral; for matplotlib and for Bokeh.

The two renderers draw the same :class:`LinePanel`. Axes are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from bokeh.models import BasicTicker, Line, Scatter, Segment, VArea
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure as BokehFigure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.report.figures.figure_style import MARKERS, MUTED, PAPER, SeriesMarks
from medmllm_plugins.report.figures.interactive import (
    BOKEH_MARKERS,
    add_glyph,
    add_hover,
    add_texts,
    new_plot,
    series_tag,
    to_json,
)
from medmllm_plugins.report.figures.row_chart import subject_colour
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.subjects import Subject

Labels: TypeAlias = Literal["upper left", "lower right"]
"""Corner with the labels of the lines."""
MAX_LABELS: Final = 6
"""Lines that are labelled; a tooltip names each."""
_DASHES: Final[tuple[tuple[int, ...], ...]] = ((), (6, 2), (2, 2), (8, 2, 2, 2), (4, 1), (1, 3), (10, 3), (6, 2, 2, 2))
_HEIGHT: Final = 262
_STEP: Final = 0.072
"""Distance of labels, as a share of the height."""
_LARGEST: Final = 11.0
"""Diameter of the largest dot in pixels."""
_LETTERS: Final = 25


@dataclass(frozen=True, slots=True, eq=False)
class PanelLine:
    """A line of a panel.

    Attributes:
        label: its label; short.
        subject: the model that it is about.
        x: positions, in percent.
        y: values, in percent.
        low: lower ends of the intervals; empty for none.
        high: upper ends.
        counts: answers behind each point, for dots whose area shows it; empty for a line without dots.
        dashes: index of its dashes, which distinguish lines of one model.
        name: the name in its tooltip.
    """

    label: str
    subject: Subject
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    counts: Sequence[int] = ()
    dashes: int = 0
    name: str = ""

    def diameters(self, largest: int) -> list[float]:
        """Return the diameters of the dots in pixels, with areas that are proportional to the counts."""
        return [max(4.0, _LARGEST * float(np.sqrt(count / largest))) for count in self.counts]


@dataclass(frozen=True, slots=True, eq=False)
class LinePanel:
    """A panel of lines.

    Attributes:
        x_range: lowest and highest position, in percent.
        y_range: lowest and highest value, in percent.
        diagonal: whether the diagonal is drawn.
        labels: where lines are labelled.
        tips: rows of the tooltips below the name, such as ``("sensitivity", "@y{0.0}%")``; ``x``, ``y``, ``low``,
            ``high`` and ``n`` are the columns.
        remark: grey words in the lower right corner.
    """

    lines: tuple[PanelLine, ...]
    x_title: str
    y_title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    labels: Labels
    tips: tuple[tuple[str, str], ...]
    diagonal: bool = False
    remark: str = ""

    def label_positions(self) -> list[tuple[PanelLine, float, float]]:
        """Return the lines to label with the positions of the labels."""
        lines = self.lines[:MAX_LABELS]
        (left, right), (bottom, top) = self.x_range, self.y_range
        step = _STEP * (top - bottom)
        indent = left + (0.03 if self.labels == "upper left" else 0.25) * (right - left)
        first = top - 0.7 * step if self.labels == "upper left" else bottom + step * (len(lines) - 0.3)
        return [(line, indent, first - index * step) for index, line in enumerate(lines)]


def draw_panel(panel: LinePanel) -> Figure:
    """Draw a panel by matplotlib, for print and papers."""
    figure = Figure(figsize=(3.3, 3.1), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    if panel.diagonal:
        ends = [panel.x_range[0], 100]
        axes.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    largest = max((count for line in panel.lines for count in line.counts), default=1)
    for line in panel.lines:
        marks(line.subject.number, _draw_line(axes, line, largest))
    for line, x, y in panel.label_positions():
        marks(line.subject.number, _draw_label(axes, panel, line, x, y))
    if panel.remark:
        where: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom"}
        axes.text(0.98, 0.02, panel.remark, color=MUTED, fontsize=7.5, **where)
    axes.set_xlim(panel.x_range)
    axes.set_ylim(panel.y_range)
    axes.set_xlabel(panel.x_title)
    axes.set_ylabel(panel.y_title)
    return figure


def _draw_line(axes: Axes, line: PanelLine, largest: int) -> list[Any]:
    colour = subject_colour(line.subject)
    dashes = _DASHES[line.dashes % len(_DASHES)]
    style: Any = (0, dashes) if dashes else "-"
    artists: list[Any] = axes.plot(
        line.x, line.y, color=colour, linewidth=1 if line.counts else 1.5, linestyle=style, alpha=0.9
    )
    if line.low and line.counts:
        artists.append(axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1))
    elif line.low:
        artists.append(axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0))
    if line.counts:
        areas = [(0.62 * diameter) ** 2 for diameter in line.diameters(largest)]
        sign = MARKERS[line.subject.number % len(MARKERS)]
        artists.append(axes.scatter(line.x, line.y, s=areas, color=colour, marker=sign, zorder=3))
    return artists


def _draw_label(axes: Axes, panel: LinePanel, line: PanelLine, x: float, y: float) -> list[Any]:
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.75}
    width = panel.x_range[1] - panel.x_range[0]
    sample = _draw_sample(axes, line, [x, x + 0.07 * width], y)
    return [*sample, axes.text(x + 0.09 * width, y, cut(line.label, _LETTERS), va="center", fontsize=7.5, bbox=box)]


def _draw_sample(axes: Axes, line: PanelLine, ends: list[float], y: float) -> list[Any]:
    dashes = _DASHES[line.dashes % len(_DASHES)]
    colour, style = subject_colour(line.subject), (0, dashes) if dashes else "-"
    sample: list[Any] = axes.plot(ends, [y, y], color=colour, linewidth=1.5, linestyle=style)
    if line.counts:
        sign = MARKERS[line.subject.number % len(MARKERS)]
        sample += axes.plot([sum(ends) / 2], [y], color=colour, marker=sign, markersize=4.5)
    return sample


def plot_panel(panel: LinePanel, number: int) -> str:
    """Return a panel as Bokeh's JSON, for the page."""
    plot = new_plot(
        _HEIGHT,
        x_range=panel.x_range,
        y_range=panel.y_range,
        x_axis_label=panel.x_title,
        y_axis_label=panel.y_title,
        min_border_right=10,
    )
    for axis in plot.axis:
        axis.ticker = BasicTicker(desired_num_ticks=5)
    if panel.diagonal:
        ends = [panel.x_range[0], 100]
        add_glyph(plot, {"x": ends, "y": ends}, Line(line_color=MUTED, line_dash=[4, 3]))
    largest = max((count for line in panel.lines for count in line.counts), default=1)
    hovered = [_plot_line(plot, line, largest) for line in panel.lines]
    for line, x, y in panel.label_positions():
        _plot_label(plot, panel, line, x, y)
    if panel.remark:
        left, right = panel.x_range
        bottom, top = panel.y_range
        point = (right - 0.02 * (right - left), bottom + 0.05 * (top - bottom), panel.remark)
        add_texts(plot, [point], colour=MUTED, align="right", size=11)
    add_hover(plot, hovered, [("", "$name"), *panel.tips])
    return to_json(plot, number)


def _plot_line(plot: BokehFigure, line: PanelLine, largest: int) -> GlyphRenderer[Any]:
    colour, tags = subject_colour(line.subject), series_tag(line.subject.number)
    columns: dict[str, Sequence[Any]] = {"x": line.x, "y": line.y}
    if line.low:
        columns |= {"low": line.low, "high": line.high}
    if line.low and line.counts:
        glyph = Segment(x0="x", y0="low", x1="x", y1="high", line_color=colour, line_width=1.4)
        add_glyph(plot, columns, glyph, tags)
    elif line.low:
        band = VArea(x="x", y1="low", y2="high", fill_color=colour, fill_alpha=0.14)
        add_glyph(plot, columns, band, tags)
    dashes = list(_DASHES[line.dashes % len(_DASHES)])
    stroke = Line(line_color=colour, line_width=1.2 if line.counts else 2, line_dash=dashes)
    shown = add_glyph(plot, columns, stroke, tags)
    if line.counts:
        sign = BOKEH_MARKERS[line.subject.number % len(BOKEH_MARKERS)]
        dots = Scatter(size="size", marker=sign, line_color=colour, fill_color=colour)
        sized = {**columns, "n": line.counts, "size": line.diameters(largest)}
        shown = add_glyph(plot, sized, dots, tags)
    shown.name = line.name
    return shown


def _plot_label(plot: BokehFigure, panel: LinePanel, line: PanelLine, x: float, y: float) -> None:
    tags = series_tag(line.subject.number)
    width = panel.x_range[1] - panel.x_range[0]
    colour, dashes = subject_colour(line.subject), list(_DASHES[line.dashes % len(_DASHES)])
    ends = [x, x + 0.07 * width]
    add_glyph(plot, {"x": ends, "y": [y, y]}, Line(line_color=colour, line_width=2, line_dash=dashes), tags)
    if line.counts:
        sign = BOKEH_MARKERS[line.subject.number % len(BOKEH_MARKERS)]
        dot = Scatter(size=8, marker=sign, line_color=colour, fill_color=colour)
        add_glyph(plot, {"x": [sum(ends) / 2], "y": [y]}, dot, tags)
    add_texts(plot, [(ends[1], y, cut(line.label, _LETTERS))], tags=tags, offset=4, size=11)
