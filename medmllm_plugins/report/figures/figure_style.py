"""How figures look, and how a matplotlib figure becomes an SVG that follows the page, and files for a paper.

One drawing serves three uses. Its colours are those of :data:`THEME`; in the SVG of the page each becomes a CSS
variable, so that a figure follows light and dark; the SVG and PNG files keep them.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.offsetbox import DrawingArea
from PIL import Image

from medmllm_plugins.report.formatting import cut

INK: Final = "#1b2127"
MUTED: Final = "#5d6872"
GRID: Final = "#dde2e6"
PAPER: Final = "#fefefe"
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of Okabe and Ito, "Color universal design", 2008, without black and yellow, which a page may swallow."""
THEME: Final = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    PAPER: "card",
    **{colour: f"series-{place}" for place, colour in enumerate(SERIES)},
}
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI: Final = 150
"""Of the PNG files: 7.2 inches make 1,080 pixels, a journal's double column at 150 dpi."""
_FONT: Final = "DejaVu Sans"
"""Comes with matplotlib; has Latin, Greek, Cyrillic, Arabic and more, but not Chinese, Japanese or Korean."""
_OTHER_SCRIPTS: Final = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei"),
    *("Arial Unicode MS", "Malgun Gothic", "Apple SD Gothic Neo", "Yu Gothic", "Noto Sans KR", "Noto Sans JP"),
    *("Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Leelawadee UI", "Noto Sans Bengali"),
)
"""Fonts that systems have for scripts that :data:`_FONT` lacks."""
_GLYPH: Final = re.compile(r"Glyph (\d+) .*missing from")
_SETTINGS: Final[Any] = {  # typed as any: matplotlib's own type is a literal of all its settings
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and scaled
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure.

    Attributes:
        stem: name of its files, without the ending.
        title: what it shows, for its caption.
        caption: how to read it.
        alt: what can be seen, in words, for those who do not see it.
        inline: SVG for the page; empty where the page shows a table in its place.
        svg: SVG for a file.
        png: PNG for a file.
        width: natural width in CSS pixels.
        lacking: letters that are empty boxes in the PNG file, since no font that was found has them; the SVG holds them
            as text.
    """

    stem: str
    title: str
    caption: str
    alt: str
    inline: str
    svg: str
    png: bytes
    width: int
    lacking: str = ""


@functools.cache
def families() -> list[str]:
    """Fonts in the order in which a letter is looked for in them: matplotlib's own, then those for other scripts."""
    installed = {font.name for font in fontManager.ttflist}
    return [_FONT, *(name for name in _OTHER_SCRIPTS if name in installed)]


@contextmanager
def style() -> Iterator[None]:
    """Settings under which all figures are made, without touching those of the process."""
    with matplotlib.rc_context(_SETTINGS | {"font.family": families()}):
        yield


@contextmanager
def _hearing(lacking: set[str]) -> Iterator[None]:
    """Collects the letters of which matplotlib warns that no font has them; other warnings go on."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    for one in heard:
        if found := _GLYPH.match(str(one.message)):
            lacking.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def finish(
    figure: Figure, stem: str, title: str, caption: str, alt: str, *, on_page: bool = True, number: int = 0
) -> Drawing:
    """Turn a figure into its files and into what stands on the page.

    Args:
        figure: drawn under :func:`style`.
        stem: name of its files.
        title: see :class:`Drawing`.
        caption: likewise.
        alt: likewise.
        on_page: whether it stands on the page, or only beside it.
        number: of the figure, which keeps ids on one page apart.
    """
    # Figure.savefig draws twice and lays out each time; a page of ten models has no time for that.
    svg, png = io.StringIO(), io.BytesIO()
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's canvases carry no types
    lacking: set[str] = set()
    with _hearing(lacking):
        canvas.draw()
    figure.set_layout_engine("none")
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(png, "PNG", dpi=(DPI, DPI), compress_level=4)
    with matplotlib.rc_context({"svg.hashsalt": stem}):
        metadata = {"Date": None, "Creator": None, "Title": cut(title, 200)}
        vector: Any = FigureCanvasSVG(figure)
        with _hearing(lacking):
            vector.print_svg(svg, metadata=metadata)
    text = svg.getvalue()
    width = round(figure.get_size_inches()[0] * 96)
    inline = themed(text, f"f{number}", alt) if on_page else ""
    return Drawing(stem, title, caption, alt, inline, text, png.getvalue(), width, "".join(sorted(lacking)))


def themed(svg: str, prefix: str, alt: str) -> str:
    """SVG for the page: colours as CSS variables, ids of its own, one picture to a screen reader.

    Args:
        svg: as matplotlib writes it.
        prefix: put before all ids.
        alt: text alternative; escaped here.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r' id="series(\d+)-\d+"', r' class="series" data-series="\1"', body)
    body = re.sub(r' id="([\w.-]+)"', rf' id="{prefix}-\1"', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for colour, name in THEME.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", " ", body)
    head, _, rest = body.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    escaped = alt.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{escaped}" focusable="false">{rest}'


def colour(number: int) -> str:
    """Colour of a model, or of a class."""
    return SERIES[number % len(SERIES)]


def dash(number: int) -> Any:
    """Dashes, which differ where colours come round again."""
    return DASHES[(number // len(SERIES) + number) % len(DASHES)]


def marker(number: int) -> str:
    """Marker; no two of the first 24 share it with colour and dashes."""
    return MARKERS[number % len(MARKERS)]


_SIGN, _LETTER = 0.55, 0.058
"""Inches that a sign of a legend and a letter of its names take."""


class Marks:
    """Gives what is drawn of a model its number, so that the page can show and hide it."""

    def __init__(self) -> None:
        self._owners: dict[int, int] = {}
        self._kept: list[Artist] = []  # an id is an artist's own only while the artist lives

    def __call__(self, number: int, artists: Artist | Sequence[Any]) -> None:
        """Mark artists as those of model ``number``; containers are taken apart."""
        for one in [artists] if isinstance(artists, Artist) else artists:
            if isinstance(one, Artist):
                self._kept.append(one)
                self._owners[id(one)] = number
                one.set_gid(f"series{number}-{len(self._kept)}")
            elif one is not None:
                self(number, one)

    def names(self, axes: Axes, numbers: Sequence[int]) -> None:
        """Mark the names beside rows, which axes have at their ticks."""
        for number, label in zip(numbers, axes.get_yticklabels(), strict=True):
            self(number, label)

    def legend(self, figure: Figure, axes: Axes) -> None:
        """Put a legend below a figure; names and signs of what is marked go with it."""
        handles, labels = axes.get_legend_handles_labels()
        widest = _SIGN + _LETTER * max(map(len, labels), default=1)
        columns = int(min(3, max(1, figure.get_figwidth() // widest)))
        made = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        signs = [area.get_children() for area in made.findobj(DrawingArea)]
        for handle, sign, text in zip(handles, signs, made.get_texts(), strict=True):
            parts = handle.get_children() if isinstance(handle, Container) else [handle]
            owner = next((self._owners[id(one)] for one in parts if id(one) in self._owners), None)
            if owner is not None:
                self(owner, [*sign, text])


def grid(
    count: int,
    across: int,
    draw: Callable[[Axes, int], None],
    *,
    size: tuple[float, float],
    titles: tuple[str, str] | None = None,
    owners: Sequence[int] = (),
    below: float = 0,
) -> Figure:
    """Small multiples.

    Args:
        count: number of panels.
        across: at most so many in a row.
        draw: draws panel i into its axes.
        size: inches of one panel.
        titles: of both axes, where all panels have the same; below each column, and once beside all.
        owners: for each panel the model that it is of, with which it is shown and hidden; none where it is of no one.
        below: inches for a legend below.
    """
    columns = min(across, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines + below), layout="constrained")
    axes, marks = figure.subplots(lines, columns, squeeze=False), Marks()
    for place, one in enumerate(axes.flat):
        if place >= count:
            one.set_axis_off()
            continue
        draw(one, place)
        if owners:
            marks(owners[place], one)
        if titles is not None and place + columns >= count:  # the last of its column
            one.set_xlabel(titles[0])
    if titles is not None:
        # Of the whole figure and not of the first panel of a line, which may be hidden.
        figure.supylabel(titles[1], fontsize=_SETTINGS["axes.labelsize"])
    return figure
