"""Figures for papers: a figure of the page set to the width of a journal's column, as PDF, SVG and PNG."""

from __future__ import annotations

import io
import textwrap
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from medmllm_plugins.report.formatting import cut

PAPER_WIDTHS: Final = (88, 180)
"""Millimetres of one column, and of two columns, of most journals."""
TYPE_POINTS: Final = 7.0
"""Size of all type; journals ask for 5 to 7 points."""
SCALE: Final = TYPE_POINTS / 9
"""Size of type and lines on paper, relative to the page."""
RESOLUTION: Final = 300
"""Dots per inch of the PNG files."""
SETTINGS: Final[dict[str, Any]] = {
    **dict.fromkeys(
        ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"),
        TYPE_POINTS,
    ),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth", "xtick.major.width", "ytick.major.width"), 0.5),
    "axes.titlepad": 4.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.handlelength": 2.2,
}
"""Settings of matplotlib that differ from those of the page."""
_MAX_ACROSS: Final = 2
"""Panels side by side in one column."""
_MAX_NAMES: Final = 0.42
"""Share of the width that the names of rows may take; longer ones are broken into lines."""
_MAX_NAMES_OF_PANEL: Final = 0.25
"""The same if there are several panels side by side."""
_GAP: Final = 0.02
"""Inches between labels of ticks."""
_MARGIN: Final = 0.03
"""Inches between the edge and what is next to it, in figures with fixed margins."""
_LINE: Final = 1.25 * TYPE_POINTS / 72
"""Inches of a line of text."""


def inches(width_mm: float) -> float:
    """Return millimetres in inches."""
    return width_mm / 25.4


def suits(figure: Figure, width_mm: float) -> bool:
    """Return whether a figure is drawn at a width: three or more panels side by side have no room in one column."""
    across = max((_panels_across(axes) for axes in figure.axes), default=1)
    return suits_width(figure.get_figwidth(), width_mm) and (width_mm > PAPER_WIDTHS[0] or across <= _MAX_ACROSS)


def suits_width(page_inches: float, width_mm: float) -> bool:
    """Return whether a figure that is so wide on the page fills a width; one column takes all."""
    return width_mm <= PAPER_WIDTHS[0] or page_inches * SCALE > 1.25 * inches(PAPER_WIDTHS[0])


def _panels_across(axes: Axes) -> int:
    position = axes.get_subplotspec()
    return 1 if position is None else position.get_gridspec().ncols


def fit(figure: Figure, width_mm: float) -> None:
    """Set a figure to a width: 7 pt type, legends and names of rows broken into as many lines as they need.

    A figure that has the width already keeps its height; another keeps the height of its rows in lines of text.
    """
    width = inches(width_mm)
    for text in figure.findobj(Text):
        text.set_fontsize(TYPE_POINTS)
    for axes in figure.axes:
        axes.tick_params(labelsize=TYPE_POINTS)
    height = figure.get_figheight()
    if abs(figure.get_figwidth() - width) > 1e-6:
        height *= SCALE
    figure.set_size_inches(width, height)
    figure.set_dpi(RESOLUTION)
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's canvases are untyped
    renderer = canvas.get_renderer()
    extra = sum(_break_legend(figure, legend, renderer) for legend in list(figure.legends))
    extra += max((_break_names(axes, width, height, renderer) for axes in figure.axes), default=0.0)
    figure.set_size_inches(width, height + extra)
    for axes in figure.axes:
        _break_titles(axes, width / _panels_across(axes), renderer)
    _keep_inside(figure, renderer)
    for axes in figure.axes:
        _thin_out(axes, renderer)


def _break_legend(figure: Figure, legend: Legend, renderer: Any) -> float:
    """Give a legend fewer columns until it fits, and its names more lines; return the inches by which it grew."""
    before = _size(legend, renderer)
    room, width, columns = figure.get_figwidth(), before[0], legend._ncols  # type: ignore[attr-defined]  # no getter
    while width > room and columns > 1:
        columns -= 1
        legend = _renewed(figure, legend, columns, 1.0)
        width = _size(legend, renderer)[0]
    if width > room:
        legend = _renewed(figure, legend, 1, 0.85 * room / width)
    return max(0.0, _size(legend, renderer)[1] - before[1])


def _renewed(figure: Figure, legend: Legend, columns: int, share: float) -> Legend:
    """Replace a legend of a figure by one with other columns, and names broken at a share of the longest."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [text.get_text() for text in legend.get_texts()]
    samples: Any = [handles.get(label, sample) for label, sample in zip(labels, legend.legend_handles, strict=True)]
    if share < 1:
        labels = [_broken(label, int(share * max(map(len, labels)))) for label in labels]
    outside = getattr(legend, "_outside_loc", None)
    location: Any = {"lower": "outside lower center", "upper": "outside upper center"}.get(
        outside or "", "lower center"
    )
    legend.remove()
    return figure.legend(samples, labels, loc=location, ncols=columns, fontsize=TYPE_POINTS)


def _size(artist: Any, renderer: Any) -> tuple[float, float]:
    """Return width and height of an artist in inches."""
    extent = artist.get_window_extent(renderer)
    return extent.width / RESOLUTION, extent.height / RESOLUTION


def _break_names(axes: Axes, width: float, height: float, renderer: Any) -> float:
    """Break long names of rows into lines; return the inches that the rows lack for them."""
    labels = [label for label in axes.get_yticklabels() if label.get_text() and label.get_visible()]
    widest = max((_size(label, renderer)[0] for label in labels), default=0.0)
    limit = width * (_MAX_NAMES if _panels_across(axes) == 1 else _MAX_NAMES_OF_PANEL)
    if widest <= limit:
        return 0.0
    longest = max(len(line) for label in labels for line in label.get_text().split("\n"))
    names = [_broken(label.get_text(), int(longest * limit / widest)) for label in axes.get_yticklabels()]
    axes.set_yticks(axes.get_yticks(), names, fontsize=TYPE_POINTS)
    lines = max(name.count("\n") + 1 for name in names)
    pitch = axes.get_position().height * height / max(1, len(names))
    return len(names) * max(0.0, (lines + 0.5) * _LINE - pitch)


def _break_titles(axes: Axes, width: float, renderer: Any) -> None:
    """Break titles that are wider than their panel."""
    for text in (axes.title, axes.xaxis.label):
        own = _size(text, renderer)[0]
        if text.get_text() and own > 0.9 * width:
            longest = max(map(len, text.get_text().split("\n")))
            text.set_text(_broken(text.get_text(), int(longest * 0.9 * width / own)))


def _broken(text: str, characters: int) -> str:
    """Return a text with lines of at most ``characters`` characters."""
    return "\n".join(textwrap.fill(line, max(8, characters), break_long_words=False) for line in text.split("\n"))


def _keep_inside(figure: Figure, renderer: Any) -> None:
    """Make room at the edges for what the layout did not count, such as labels at the ends of lines."""
    engine: Any = figure.get_layout_engine()  # constrained, which can leave room at the edges
    if engine is None:
        _set_margins(figure, renderer)
        return
    engine.execute(figure)
    extent = figure.get_tightbbox(renderer)
    width, height = figure.get_size_inches()
    left, bottom = max(0.0, -extent.x0) / width, max(0.0, -extent.y0) / height
    right, top = max(0.0, extent.x1 - width) / width, max(0.0, extent.y1 - height) / height
    if max(left * width, bottom * height, right * width, top * height) > 1 / RESOLUTION:
        engine.set(rect=(left, bottom, 1 - left - right, 1 - bottom - top))
        engine.execute(figure)
    figure.set_layout_engine("none")  # each of the files would compute the layout again


def _thin_out(axes: Axes, renderer: Any) -> None:
    """Hide labels of layers that would overlap others; words, such as those of the ends, come before numbers."""
    labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_visible()]
    if any(label.get_rotation() % 90 for label in labels):  # boxes of slanted labels overlap where labels do not
        return
    shown: list[tuple[float, float]] = []
    gap = _GAP * RESOLUTION
    for label in sorted(labels, key=lambda label: label.get_text().isdigit()):
        extent = label.get_window_extent(renderer)
        if any(extent.x0 < right + gap and left < extent.x1 + gap for left, right in shown):
            label.set_visible(False)
        else:
            shown.append((extent.x0, extent.x1))


def _set_margins(figure: Figure, renderer: Any) -> None:
    """Set the margins of a figure without a layout engine, whose own are for the size of the page."""
    width, height = figure.get_size_inches()
    below = sum(_size(legend, renderer)[1] for legend in figure.legends)
    grids = {id(grid): grid for axes in figure.axes if (grid := axes.get_gridspec()) is not None}
    for grid in grids.values():
        for _ in range(2):  # labels may take another number of ticks once the panels have another size
            panels = [(axes, position) for axes in figure.axes if (position := axes.get_subplotspec()) is not None]
            panels = [(axes, position) for axes, position in panels if position.get_gridspec() is grid]
            boxes = [axes.get_tightbbox(renderer) for axes, _ in panels]
            extent = Bbox.union([box for box in boxes if box is not None])
            margins = grid.get_subplot_params(figure)
            grid.update(
                left=margins.left + (_MARGIN - extent.x0 / RESOLUTION) / width,
                right=margins.right - (_MARGIN - width + extent.x1 / RESOLUTION) / width,
                bottom=margins.bottom + (_MARGIN + below - extent.y0 / RESOLUTION) / height,
                top=margins.top - (_MARGIN - height + extent.y1 / RESOLUTION) / height,
            )
            for axes, position in panels:  # a grid moves panels of pyplot's figures only
                axes.set_position(position.get_position(figure))


def paper_files(figure: Figure, title: str, stem: str) -> dict[str, bytes]:
    """Return PDF, SVG and PNG of a figure by the ending of their names; the same figure gives the same bytes."""
    png, svg, pdf = io.BytesIO(), io.StringIO(), io.BytesIO()
    figure.set_dpi(RESOLUTION)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    dpi = (RESOLUTION, RESOLUTION)
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(png, "PNG", dpi=dpi, compress_level=4)
    with matplotlib.rc_context({"svg.hashsalt": stem}):
        vector: Any = FigureCanvasSVG(figure)
        vector.print_svg(svg, metadata={"Date": None, "Creator": None, "Title": cut(title, 200)})
    document: Any = FigureCanvasPdf(figure)
    facts: dict[str, Any] = {"CreationDate": None, "Creator": None, "Producer": None, "Title": cut(title, 200)}
    document.print_pdf(pdf, metadata=facts)
    return {"pdf": pdf.getvalue(), "svg": svg.getvalue().encode("utf-8"), "png": png.getvalue()}
