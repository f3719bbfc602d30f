"""Style of the figures, and the conversion of a matplotlib figure to SVG for the page and to files for a paper.

Colours are those of :data:`THEME`. In the SVG of the page each becomes a CSS variable, so that a figure follows light
and dark mode; the files for papers keep them. The functions that draw a figure are called once under the style of the
page, and once for each width of :data:`~medmllm_plugins.report.figures.paper_layout.PAPER_WIDTHS`.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import matplotlib
import yaml
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import Container, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.offsetbox import DrawingArea

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.report.figures.paper_layout import (
    SCALE,
    SETTINGS,
    fit,
    inches,
    paper_files,
    suits,
    suits_width,
)
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.templating import template_source, texts

INK: Final = "#1b2127"
MUTED: Final = "#5d6872"
GRID: Final = "#dde2e6"
PAPER: Final = "#fefefe"
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of Okabe and Ito, "Color universal design", 2008, without black and yellow (low contrast on some pages)."""
THEME: Final = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    PAPER: "card",
    **{colour: f"series-{index}" for index, colour in enumerate(SERIES)},
}
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
_FONT: Final = "DejaVu Sans"
"""Font that comes with matplotlib; has Latin, Greek, Cyrillic, Arabic and more, but not Chinese, Japanese or Korean."""
_OTHER_SCRIPTS: Final = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei"),
    *("Arial Unicode MS", "Malgun Gothic", "Apple SD Gothic Neo", "Yu Gothic", "Noto Sans KR", "Noto Sans JP"),
    *("Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI", "Noto Sans Bengali"),
)
"""Fonts of operating systems for scripts that :data:`_FONT` lacks."""
_GLYPH: Final = re.compile(r"Glyph (\d+) .*missing from")
_COLOURS: Final = {name: colour for colour, name in THEME.items()}
_SETTINGS: Final[Any] = {  # typed as any: matplotlib's own type is a literal of all its settings
    name: _COLOURS.get(value, value) for name, value in yaml.safe_load(template_source("figures.yaml")).items()
}
_PAPER_WIDTH: Final[ContextVar[int | None]] = ContextVar("medmllm_paper_width", default=None)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure.

    Attributes:
        inline: SVG for the page; empty if the page shows a table instead.
        svg: the same in the colours of light mode.
        files: the figure for papers, by what follows the stem in the file's name, such as ``"-88mm.pdf"``.
        width: natural width in CSS pixels.
        missing_letters: letters that are boxes in PDF and PNG files, since no font has them; the SVG has them as text.
        interactive: the figure of the page as Bokeh's JSON; ``inline`` takes its place in print and without
            JavaScript. Empty if the figure is not interactive.
        number: number of the figure on the page.
    """

    stem: str
    title: str
    caption: str
    alt: str
    inline: str
    svg: str
    width: int
    missing_letters: str = ""
    interactive: str = ""
    number: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)


@functools.cache
def font_families() -> list[str]:
    """Return the fonts in the order in which letters are looked up: matplotlib's own, then those for other scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return [_FONT, *(name for name in _OTHER_SCRIPTS if name in installed)]


@contextmanager
def style(paper_mm: int | None = None) -> Iterator[None]:
    """Apply the settings of all figures, without changing those of the process.

    Args:
        paper_mm: width of a figure for a paper, for which type is set in 7 points; by default the page's settings.
    """
    settings = _SETTINGS | {"font.family": font_families()} | (SETTINGS if paper_mm else {})
    token = _PAPER_WIDTH.set(paper_mm)
    try:
        with matplotlib.rc_context(settings):
            yield
    finally:
        _PAPER_WIDTH.reset(token)


def paper_width() -> int | None:
    """Return the width of the paper figure that is being drawn, in mm; ``None`` for the page."""
    return _PAPER_WIDTH.get()


@contextmanager
def _collecting_missing_letters(letters: set[str]) -> Iterator[None]:
    """Collect the letters of which matplotlib warns that no font has them; pass on other warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if match := _GLYPH.match(str(warning.message)):
            letters.add(chr(int(match[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def finish(
    figure: Figure,
    stem: str,
    *,
    number: int,
    macro: str = "",
    on_page: bool = True,
    interactive: str = "",
    **values: Any,
) -> Drawing:
    """Convert a figure to its files and to the SVG of the page.

    Args:
        figure: drawn under :func:`style`.
        stem: name of its files.
        number: number of the figure, which keeps ids on a page unique.
        macro: macro of ``templates/figures.txt.jinja`` with title, caption and text alternative; by default the part
            of the stem after the name of the data set.
        on_page: whether the figure is on the page, or only a file.
        interactive: the same figure from :func:`medmllm_plugins.report.figures.interactive.to_json`.
        values: arguments of the macro.
    """
    title, caption, alt = texts("figures.txt.jinja", macro or stem.rpartition(".")[2], **values)
    width, letters = round(figure.get_size_inches()[0] * 96), set[str]()
    source, inline, files = "", "", dict[str, bytes]()
    with _collecting_missing_letters(letters):
        if (paper_mm := paper_width()) is None:
            source = _page_svg(figure, title, stem)
            inline = themed_svg(source, f"f{number}", alt) if on_page else ""
        elif suits(figure, paper_mm):
            fit(figure, paper_mm)
            contents = paper_files(figure, title, stem)
            files = {f"-{paper_mm}mm.{ending}": content for ending, content in contents.items()}
    return Drawing(
        stem=stem,
        title=title,
        caption=caption,
        alt=alt,
        inline=inline,
        svg=source,
        width=width,
        missing_letters="".join(sorted(letters)),
        interactive=interactive,
        number=number,
        files=files,
    )


def _page_svg(figure: Figure, title: str, stem: str) -> str:
    """Return a figure as SVG at the page's size."""
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": stem}):
        vector: Any = FigureCanvasSVG(figure)  # matplotlib's canvases are untyped
        vector.print_svg(svg, metadata={"Date": None, "Creator": None, "Title": cut(title, 200)})
    return svg.getvalue()


def themed_svg(svg: str, prefix: str, alt: str) -> str:
    """Return an SVG for the page: colours as CSS variables, ids with a prefix, one image to a screen reader."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r' id="series(\d+)-\d+"', r' class="series" data-series="\1"', body)
    body = re.sub(r' id="([\w.-]+)"', rf' id="{prefix}-\1"', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for colour, name in THEME.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", " ", body)
    head, _, content = body.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    escaped = alt.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{escaped}" focusable="false">{content}'


_MARKER_PATHS: Final = {
    "o": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z",
    "s": "M-5.5,-5.5h11v11h-11z",
    "^": "M0,-7l7,12h-14z",
    "D": "M0,-7.5l6,7.5l-6,7.5l-6,-7.5z",
    "v": "M0,7l7,-12h-14z",
    "P": "M-2.5,-7h5v4.5h4.5v5h-4.5v4.5h-5v-4.5h-4.5v-5h4.5z",
    "X": "M-7,-4.5l2.5,-2.5l4.5,4.5l4.5,-4.5l2.5,2.5l-4.5,4.5l4.5,4.5l-2.5,2.5l-4.5,-4.5l-4.5,4.5l-2.5,-2.5l4.5,-4.5z",
    "*": "M0,-8l1.9,5.5h5.8l-4.7,3.5l1.7,5.6l-4.7,-3.4l-4.7,3.4l1.7,-5.6l-4.7,-3.5h5.8z",
}


def marker_path(number: int) -> str:
    """Return the marker of a model as an SVG path in a box from -8 to 8."""
    return _MARKER_PATHS[MARKERS[number % len(MARKERS)]]


def series_style(number: int) -> dict[str, Any]:
    """Return colour, dashes and marker of a model's line; no two of the first 24 models share all three."""
    dashes = DASHES[(number // len(SERIES) + number) % len(DASHES)]
    return {"color": SERIES[number % len(SERIES)], "linestyle": dashes, "marker": MARKERS[number % len(MARKERS)]}


def error_bar(
    axes: Axes, estimate: Estimate, position: float, *, scale: float = 100, upright: bool = False, **options: Any
) -> ErrorbarContainer:
    """Draw a value with its interval at a position of the other axis; ``options`` go to ``Axes.errorbar``."""
    below, above = (max(0.0, length) for length in (estimate.value - estimate.low, estimate.high - estimate.value))
    lengths = [[scale * below], [scale * above]] if known(estimate.low) and known(estimate.high) else None
    value = scale * estimate.value
    options = {"capsize": 2, **options}
    if upright:
        return axes.errorbar(position, value, yerr=lengths, **options)
    return axes.errorbar(value, position, xerr=lengths, **options)


_SIGN, _LETTER = 0.55, 0.058
"""Inches that a legend's line sample and one letter of its names take."""


class SeriesMarks:
    """Tags artists with the number of their model, so that the page can show and hide models."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        self._artists: list[Artist] = []  # an id is unique only while its artist exists

    def __call__(self, number: int, artists: Artist | Sequence[Any]) -> None:
        """Tag artists as those of model ``number``; containers are unpacked."""
        for artist in [artists] if isinstance(artists, Artist) else artists:
            if isinstance(artist, Artist):
                self._artists.append(artist)
                self._owners[id(artist)] = number
                artist.set_gid(f"series{number}-{len(self._artists)}")
            elif artist is not None:
                self(number, artist)

    def row_names(self, axes: Axes, numbers: Sequence[int]) -> None:
        """Tag the names of rows, which are tick labels."""
        for number, label in zip(numbers, axes.get_yticklabels(), strict=True):
            self(number, label)

    def legend(self, figure: Figure, axes: Axes) -> None:
        """Put a legend below a figure and tag its entries."""
        handles, labels = axes.get_legend_handles_labels()
        widest = _SIGN + _LETTER * max(map(len, labels), default=1)
        columns = int(min(3, max(1, figure.get_figwidth() // widest)))
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        samples = [area.get_children() for area in legend.findobj(DrawingArea)]
        for handle, sample, label in zip(handles, samples, legend.get_texts(), strict=True):
            parts = handle.get_children() if isinstance(handle, Container) else [handle]
            owner = next((self._owners[id(part)] for part in parts if id(part) in self._owners), None)
            if owner is not None:
                self(owner, [*sample, label])


def panel_grid(
    count: int,
    across: int,
    draw: Callable[[Axes, int], None],
    *,
    size: tuple[float, float],
    titles: tuple[str, str] | None = None,
    owners: Sequence[int] = (),
    below: float = 0,
) -> Figure:
    """Draw small multiples.

    Args:
        count: number of panels.
        across: at most this many in a row.
        draw: draws panel i into its axes.
        size: inches of one panel.
        titles: titles of both axes, if all panels have the same; below each column, and once for all rows.
        owners: number of each panel's model; empty if panels are not about models.
        below: inches for a legend below.
    """
    columns = min(across, count)
    width, height = size
    if (paper_mm := paper_width()) is not None and suits_width(width * columns, paper_mm):
        # As many panels as fit, and none much larger than on the page.
        columns = min(columns, max(1, int(inches(paper_mm) / (width * SCALE) + 0.25)))
        height *= min(1.25 * SCALE, inches(paper_mm) / (columns * width))
        width, below = inches(paper_mm) / columns, below * SCALE
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines + below), layout="constrained")
    panels, marks = figure.subplots(lines, columns, squeeze=False), SeriesMarks()
    for index, axes in enumerate(panels.flat):
        if index >= count:
            axes.set_axis_off()
            continue
        draw(axes, index)
        if owners:
            marks(owners[index], axes)
        if titles is not None and index + columns >= count:  # the last of its column
            axes.set_xlabel(titles[0])
    if titles is not None:
        # On the figure, not on the first panel of a row, which may be hidden.
        figure.supylabel(titles[1], fontsize=_SETTINGS["axes.labelsize"])
    return figure
