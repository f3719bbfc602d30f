"""Interactive figures of the page, by Bokeh: style, tags by which the page hides models, and conversion to JSON.

A figure of matplotlib takes their place in print and without JavaScript. Colours are those of ``THEME``; the page
replaces them by its own, so that figures follow light and dark mode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import CategoricalAxis, ColumnDataSource, HoverTool, LayoutDOM, Text
from bokeh.models.glyph import Glyph
from bokeh.models.renderers import GlyphRenderer
from bokeh.plotting import figure

from medmllm_plugins.report.figures.figure_style import GRID, INK, MUTED, SERIES, paper_width

BOKEH_MARKERS: Final = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x", "star")
"""Markers of models, in the order of ``MARKERS``."""
_ID: Final = re.compile(r'"p(\d+)"')
_SIZE: Final = "13px"


def new_plot(height: int, **options: Any) -> figure:
    """Return an empty plot that fills the width of its card.

    Args:
        height: height in CSS pixels.
        options: what :func:`bokeh.plotting.figure` takes, such as ``x_range``.
    """
    plot = figure(
        **{
            "height": height,
            "sizing_mode": "stretch_width",
            "toolbar_location": None,
            "tools": "",
            "output_backend": "svg",
            "background_fill_color": None,
            "border_fill_color": None,
            "outline_line_color": None,
            "min_border_right": 16,
            **options,
        }
    )
    for axis in plot.axis:
        axis.axis_line_color = None
        axis.major_tick_line_color = None
        axis.minor_tick_line_color = None
        axis.major_label_text_color = INK if isinstance(axis, CategoricalAxis) else MUTED
        axis.major_label_text_font_size = _SIZE
        axis.axis_label_text_color = MUTED
        axis.axis_label_text_font_size = _SIZE
        axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = GRID
    return plot


def series_tag(number: int) -> list[str]:
    """Return the ``tags`` of everything that is about one model, so that the page hides it with the model."""
    return [f"series-{number}"]


def series_colour(number: int) -> str:
    """Return the colour of a model."""
    return SERIES[number % len(SERIES)]


def series_marker(number: int) -> str:
    """Return the marker of a model."""
    return BOKEH_MARKERS[number % len(BOKEH_MARKERS)]


def add_texts(
    plot: figure,
    points: Sequence[tuple[float, float, str]],
    *,
    tags: Sequence[str] = (),
    colour: str = INK,
    align: str = "left",
    offset: float = 0,
    size: int = 13,
    bold: bool = False,
) -> None:
    """Write words at points of a plot, vertically centred.

    Args:
        plot: the plot.
        points: horizontal and vertical position, and words.
        tags: :func:`series_tag` of the model that they are about.
        colour: their colour.
        align: ``left``, ``center`` or ``right``: which part of them stands at the position.
        offset: pixels to the right.
        size: height of the letters in pixels.
        bold: whether they are bold.
    """
    columns = {name: list(values) for name, values in zip(("x", "y", "text"), zip(*points, strict=True), strict=True)}
    glyph = Text(
        text_color=colour,
        text_align=align,
        text_baseline="middle",
        x_offset=offset,
        text_font_size=f"{size}px",
        text_font_style="bold" if bold else "normal",
    )
    add_glyph(plot, columns, glyph, tags)


def add_glyph(
    plot: figure, columns: Mapping[str, Sequence[Any]], glyph: Glyph, tags: Sequence[str] = ()
) -> GlyphRenderer[Any]:
    """Add marks to a plot; unlike the plot's own methods, without glyphs for selections, which take most of the JSON.

    Numbers are rounded to a hundredth.

    Args:
        plot: the plot, whose axes are in percent or in rows.
        columns: values by the names that the glyph refers to.
        glyph: what is drawn for them.
        tags: :func:`series_tag` of the model that they are about.
    """
    rounded: dict[str, Any] = {
        name: [round(value, 2) if isinstance(value, float) else value for value in values]
        for name, values in columns.items()
    }
    renderer: GlyphRenderer[Any] = plot.add_glyph(ColumnDataSource(rounded), glyph)
    renderer.tags = list(tags)
    return renderer


def add_hover(plot: figure, renderers: Sequence[GlyphRenderer[Any]], rows: Sequence[tuple[str, str]]) -> None:
    """Show a tooltip over some marks; ``rows`` are names and values, such as ``("accuracy", "@accuracy")``."""
    plot.add_tools(HoverTool(renderers=list(renderers), tooltips=list(rows), attachment="vertical"))


def to_json(plot: LayoutDOM, number: int) -> str:
    """Return a plot as JSON that the page embeds; the same plot gives the same text, whatever was drawn before it.

    It is empty while the figure is drawn for a paper.

    Args:
        plot: the plot, or plots in a layout.
        number: number of the figure on the page.
    """
    if paper_width() is not None:
        return ""
    item = json_item(plot, ID(f"plot-{number}"))
    body = json.dumps(item, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    ids: dict[str, str] = {}
    body = _ID.sub(lambda match: f'"{ids.setdefault(match[1], f"p{number}-{len(ids)}")}"', body)
    return body.replace("<", "\\u003c")
