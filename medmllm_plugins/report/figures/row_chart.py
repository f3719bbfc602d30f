"""Charts of rows: dots with intervals on one scale, each row labelled above its dots; for matplotlib and for Bokeh.

Labels stand above the dots and not beside them, so that a phone shows the whole scale. The two renderers draw the same
:class:`RowChart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import Scatter, Segment
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure as BokehFigure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.figure_style import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    SeriesMarks,
    error_bar,
)
from medmllm_plugins.report.figures.interactive import (
    BOKEH_MARKERS,
    add_glyph,
    add_hover,
    add_texts,
    new_plot,
    series_tag,
    to_json,
)
from medmllm_plugins.report.formatting import NOTHING, bounds, cut, percent
from medmllm_plugins.report.subjects import Subject

_ABOVE: Final = 0.36
"""Distance of a row's labels above its dots, in rows."""
_HEADING: Final = 0.8
"""Height of a heading, in rows."""
_LETTERS: Final = 36
"""Letters of a label, as many as a phone shows beside a value."""
_SIDES: Final = (0.27, 0.73)
"""The name of a reference line stands above it between these values, else at the side with room."""
_ROW_PIXELS: Final = 39
_DASHES: Final = (4, 3)


@dataclass(frozen=True, slots=True, eq=False)
class RowMark:
    """A dot with its interval.

    Attributes:
        estimate: a share of 1; its interval may be unknown.
        subject: the model that it is about.
        name: what it is, for the tooltip.
        filled: whether it is filled or hollow.
        small: whether it is one of several small dots.
        shift: distance below the middle of the row, in rows.
    """

    estimate: Estimate
    subject: Subject
    name: str
    filled: bool = True
    small: bool = False
    shift: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ChartRow:
    """A row, or a heading above rows if it has no marks; a heading about a model has its marker.

    Attributes:
        left: label at the left.
        right: label at the right.
        subject: the only model that the row is about; ``None`` for a row of several.
        marks: its dots.
        linked: whether a line joins the first dot to the last.
        guess: accuracy of a constant answer in this row, if the rows differ in it.
    """

    left: str
    right: str = ""
    subject: Subject | None = None
    marks: tuple[RowMark, ...] = ()
    linked: bool = False
    guess: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RowChart:
    """A chart of rows.

    Attributes:
        line: name and value of a reference line through all rows; an empty name for none.
    """

    rows: tuple[ChartRow, ...]
    axis_title: str
    line: tuple[str, float] = ("", 0.0)

    def positions(self) -> list[float]:
        """Return the position of each row from the top, in rows."""
        at, positions = 0.0, []
        for row in self.rows:
            positions.append(at)
            at += 1.0 if row.marks else _HEADING
        return positions

    @property
    def height(self) -> float:
        """Height of all rows, in rows."""
        return sum(1.0 if row.marks else _HEADING for row in self.rows)


def subject_colour(subject: Subject) -> str:
    """Return the colour of a model; reference classifiers are grey, so that colours mean models."""
    return MUTED if subject.reference else SERIES[subject.number % len(SERIES)]


def _side_of(value: float) -> str:
    """Return how the name of a reference line is aligned."""
    return "left" if value < _SIDES[0] else "right" if value > _SIDES[1] else "center"


def draw_rows(chart: RowChart) -> Figure:
    """Draw a chart by matplotlib, for print and papers."""
    figure = Figure(figsize=(4.6, 0.75 + 0.42 * chart.height), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    for row, at in zip(chart.rows, chart.positions(), strict=True):
        _draw_row(axes, marks, row, at)
    name, value = chart.line
    if name:
        axes.axvline(100 * value, color=INK, linewidth=0.9, linestyle=(0, _DASHES), zorder=0)
        where: dict[str, Any] = {"ha": _side_of(value), "va": "bottom", "fontsize": 7.5, "color": INK}
        label = f" {name} {percent(value)} "
        axes.text(100 * value, 1.0, label, transform=axes.get_xaxis_transform(), **where)
    axes.set_yticks([])
    axes.set_ylim(chart.height - 0.5, -0.75)
    axes.set_xlim(-1, 101)
    axes.set_xlabel(chart.axis_title)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


def _draw_row(axes: Axes, marks: SeriesMarks, row: ChartRow, at: float) -> None:
    base = at - (_ABOVE if row.marks else 0.1)
    named = not row.marks and row.subject is not None
    if named:
        assert row.subject is not None
        colour, sign = subject_colour(row.subject), MARKERS[row.subject.number % len(MARKERS)]
        marker = axes.plot([0.015], [base], transform=axes.get_yaxis_transform(), color=colour, marker=sign)
        marks(row.subject.number, marker)
    for x, words, side in ((0.035 if named else 0.0, row.left, "left"), (1.0, row.right, "right")):
        label = axes.text(
            x,
            base,
            cut(words, _LETTERS),
            transform=axes.get_yaxis_transform(),
            va="center",
            ha=side,
            fontsize=8,
            fontweight="normal" if row.marks else "bold",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )
        if row.subject is not None:
            marks(row.subject.number, label)
    if row.linked and len(row.marks) > 1:
        ends = [100 * mark.estimate.value for mark in (row.marks[0], row.marks[-1])]
        link = axes.plot(ends, [at, at], color=subject_colour(row.marks[0].subject), linewidth=2, alpha=0.45)
        marks(row.marks[0].subject.number, link)
    if row.guess is not None:
        stroke = axes.plot(
            [100 * row.guess] * 2, [at - 0.2, at + 0.4], color=INK, linewidth=0.9, linestyle=(0, _DASHES)
        )
        if row.subject is not None:
            marks(row.subject.number, stroke)
    for mark in row.marks:
        colour, number = subject_colour(mark.subject), mark.subject.number
        options: dict[str, Any] = {"fmt": MARKERS[number % len(MARKERS)], "color": colour, "elinewidth": 1.1}
        options |= {"markerfacecolor": colour if mark.filled else PAPER, "markersize": 2.8 if mark.small else 5}
        marks(number, error_bar(axes, mark.estimate, at + mark.shift, **options).get_children())


def plot_rows(chart: RowChart, number: int) -> str:
    """Return a chart as Bokeh's JSON, for the page."""
    plot = new_plot(
        round(34 + _ROW_PIXELS * (chart.height + 0.1) + (14 if chart.line[0] else 0)),
        x_range=(-1, 101),
        y_range=(-chart.height + 0.5, 0.75 + (0.4 if chart.line[0] else 0)),
        x_axis_label=chart.axis_title,
        min_border_left=8,
    )
    plot.yaxis.visible = False
    plot.ygrid.grid_line_color = None
    bottom = -chart.height + 0.5
    name, value = chart.line
    if name:
        stroke = {"x0": [100 * value], "y0": [bottom], "x1": [100 * value], "y1": [0.75]}
        add_glyph(plot, stroke, _segment(line_color=INK, line_dash=list(_DASHES)))
        add_texts(plot, [(100 * value, 0.93, f"{name} {percent(value)}")], align=_side_of(value), size=11)
    placed = [(row, -at) for row, at in zip(chart.rows, chart.positions(), strict=True)]
    _plot_labels(plot, placed)
    _plot_lines(plot, placed)
    rows = [("", "@model"), ("", "@what"), ("value", "@shown"), ("95% CI", "@interval")]
    add_hover(plot, _plot_dots(plot, placed), rows)
    return to_json(plot, number)


def _segment(**options: Any) -> Segment:
    return Segment(x0="x0", y0="y0", x1="x1", y1="y1", **options)


def _plot_labels(plot: BokehFigure, placed: Sequence[tuple[ChartRow, float]]) -> None:
    """Write the labels of all rows, those about one model together."""
    labels: dict[tuple[int | None, str, bool, int], list[tuple[float, float, str]]] = {}
    for row, at in placed:
        owner = None if row.subject is None else row.subject.number
        heading = not row.marks
        base = at + (0.1 if heading else _ABOVE)
        offset = 14 if heading and row.subject is not None else 0
        labels.setdefault((owner, "left", heading, offset), []).append((0, base, cut(row.left, _LETTERS)))
        if row.right:
            labels.setdefault((owner, "right", False, 0), []).append((100, base, cut(row.right, _LETTERS)))
        if heading and row.subject is not None:
            sign, colour = BOKEH_MARKERS[row.subject.number % len(BOKEH_MARKERS)], subject_colour(row.subject)
            glyph = Scatter(size=9, marker=sign, line_color=colour, fill_color=colour)
            add_glyph(plot, {"x": [1], "y": [base]}, glyph, series_tag(row.subject.number))
    for (owner, align, bold, offset), points in labels.items():
        tags = [] if owner is None else series_tag(owner)
        add_texts(plot, points, tags=tags, align=align, bold=bold, offset=offset)


def _plot_lines(plot: BokehFigure, placed: Sequence[tuple[ChartRow, float]]) -> None:
    """Draw intervals, links of dumbbells and strokes of guesses, those of one model together."""
    lines: dict[tuple[int | None, str, str], list[tuple[float, float, float, float]]] = {}
    for row, at in placed:
        owner = None if row.subject is None else row.subject.number
        if row.guess is not None:
            x = 100 * row.guess
            lines.setdefault((owner, INK, "guess"), []).append((x, at - 0.4, x, at + 0.2))
        if row.linked and len(row.marks) > 1:
            first, last = row.marks[0], row.marks[-1]
            link = (100 * first.estimate.value, at, 100 * last.estimate.value, at)
            lines.setdefault((first.subject.number, subject_colour(first.subject), "link"), []).append(link)
        for mark in row.marks:
            if known(mark.estimate.low) and known(mark.estimate.high):
                y = at - mark.shift
                bar = (100 * mark.estimate.low, y, 100 * mark.estimate.high, y)
                lines.setdefault((mark.subject.number, subject_colour(mark.subject), "bar"), []).append(bar)
    styles: dict[str, dict[str, Any]] = {
        "guess": {"line_dash": list(_DASHES)},
        "link": {"line_width": 4, "line_alpha": 0.35},
        "bar": {"line_width": 1.6},
    }
    for (owner, colour, kind), segments in lines.items():
        columns = dict(zip(("x0", "y0", "x1", "y1"), zip(*segments, strict=True), strict=True))
        glyph = _segment(line_color=colour, **styles[kind])
        add_glyph(plot, columns, glyph, [] if owner is None else series_tag(owner))


def _plot_dots(plot: BokehFigure, placed: Sequence[tuple[ChartRow, float]]) -> list[GlyphRenderer[Any]]:
    """Draw the dots, those of one model and one look together."""
    dots: dict[tuple[int, str, bool, bool], dict[str, list[Any]]] = {}
    for row, at in placed:
        for mark in row.marks:
            estimate = mark.estimate
            has_interval = known(estimate.low) and known(estimate.high)
            values = {
                "x": 100 * estimate.value,
                "y": at - mark.shift,
                "model": mark.subject.label,
                "what": mark.name,
                "shown": percent(estimate.value),
                "interval": bounds(100 * estimate.low, 100 * estimate.high) if has_interval else NOTHING,
            }
            key = (mark.subject.number, subject_colour(mark.subject), mark.filled, mark.small)
            columns = dots.setdefault(key, {name: [] for name in values})
            for name, value in values.items():
                columns[name].append(value)
    renderers = []
    for (number, colour, filled, small), columns in dots.items():
        alpha = 0.6 if small else 1.0
        glyph = Scatter(
            size=6 if small else 11,
            marker=BOKEH_MARKERS[number % len(BOKEH_MARKERS)],
            line_color=colour,
            line_width=1.8,
            line_alpha=alpha,
            fill_color=colour if filled else PAPER,
            fill_alpha=alpha,
        )
        renderers.append(add_glyph(plot, columns, glyph, series_tag(number)))
    return renderers
