"""The gallery of attributions: pictures small enough for one page, each original held once.

Pictures go into the page as WebP. Their size is chosen so that all of them fit the budget; where even the smallest do
not, documents are left out evenly over classes, hits and misses, and the page says how many.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut, decimal
from medmllm_plugins.report.run_collection import Cell
from medmllm_plugins.results.attribution_results import CHECKS, Entry

BUDGET: Final = 5_500_000
"""Characters of all pictures of a page together, in base64."""
CARDS: Final = 1_500
"""More cards make a browser slow, however small their pictures are."""
SIZES: Final = ((256, 76), (192, 70), (144, 64), (112, 56), (88, 50))
"""Longest side in pixels and WebP quality, the best first."""
_TALLEST: Final = 16_000
"""WebP ends at 16,383 pixels, and a volume's slices stand below each other."""
_TOKENS: Final = 400
ONE_SIDED, TWO_SIDED = "cividis", "PuOr"
"""What ``attribution/map_images.py`` paints with, which would load PyTorch here."""
_NAMES: Final = {
    "completeness_gap": "completeness gap",
    "deletion": "deletion",
    "deletion_random": "deletion, random order",
    "insertion": "insertion",
    "insertion_random": "insertion, random order",
    "stability": "stability",
    "inside": "inside the mask",
    "area": "mask's share of the area",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the page: its id there, its data, and the size of it and of one slice."""

    id: str
    data: str
    width: int
    height: int
    slice_height: int


@dataclass(frozen=True, slots=True)
class Card:
    """One attribution as the page shows it; see :class:`medmllm_plugins.results.attribution_results.Entry`."""

    entry: Entry
    model: str
    series: int
    original: Picture | None
    overlay: Picture | None
    laid_over: bool
    tokens: tuple[tuple[str, float, float], ...]
    more_tokens: int
    checks: tuple[tuple[str, str], ...]

    @property
    def alt(self) -> str:
        """What the picture is, in words."""
        one = self.entry
        return cut(
            f"{one.document}, {one.label}, answered {one.predicted or 'nothing that was parsed'}: {one.method} at "
            f"{one.layer} for {one.target}",
            240,
        )


@dataclass(frozen=True, slots=True)
class Gallery:
    """All cards of a page.

    Attributes:
        pictures: originals, held once and shown in several cards.
        cards: the cards.
        left_out: attributions that are not shown, for the page's sake.
        failed: pictures that could not be read.
    """

    pictures: tuple[Picture, ...]
    cards: tuple[Card, ...]
    left_out: int
    failed: tuple[str, ...]

    @property
    def two_sided(self) -> str:
        """Colours of attributions for and against, from against to for, as CSS lists them."""
        return _stops(TWO_SIDED)

    @property
    def one_sided(self) -> str:
        """Colours of attributions that are never negative, from none to most."""
        return _stops(ONE_SIDED)

    def choices(self, name: str) -> list[str]:
        """Values of an attribute of the entries, in the order in which they come."""
        return list(dict.fromkeys(str(getattr(card.entry, name)) for card in self.cards))


def _stops(name: str) -> str:
    return ", ".join(to_hex(colormaps[name](place / 8)) for place in range(9))


def gallery(cells: Sequence[Cell], budget: int = BUDGET) -> Gallery:
    """Make the gallery of all attributions.

    Args:
        cells: tasks, with or without attributions.
        budget: characters of all pictures.
    """
    pairs = [(cell, entry) for cell in cells if cell.task.attributions for entry in cell.task.attributions.entries]
    documents: dict[tuple[int, str], list[tuple[Cell, Entry]]] = defaultdict(list)
    for cell, entry in pairs:
        documents[cell.subject.number, entry.document].append((cell, entry))
    ordered = _mixed(list(documents.values()))
    size, each = _fitting(ordered, budget)
    count = len(ordered) if not each else min(len(ordered), max(1, int(budget / each)))
    shown: list[tuple[Cell, Entry]] = []
    for members in ordered[:count]:
        if shown and len(shown) + len(members) > CARDS:
            break
        shown += members
    maker = _Maker(*size)
    cards = []
    for cell, entry in shown:
        if maker.spent > budget:
            break
        cards.append(_card(cell, entry, maker))
    return Gallery(tuple(maker.originals.values()), tuple(cards), len(pairs) - len(cards), tuple(maker.failed))


def _mixed(documents: list[list[tuple[Cell, Entry]]]) -> list[list[tuple[Cell, Entry]]]:
    """Documents in an order whose every beginning holds classes, hits and misses evenly."""
    strata: dict[tuple[int, str, bool], list[list[tuple[Cell, Entry]]]] = defaultdict(list)
    for members in documents:
        cell, entry = members[0]
        strata[cell.subject.number, entry.label, entry.hit].append(members)
    return [one for turn in zip_longest(*strata.values()) for one in turn if one is not None]


def _fitting(documents: Sequence[list[tuple[Cell, Entry]]], budget: int) -> tuple[tuple[int, int], float]:
    """The best size at which all pictures fit, and what a document then takes, judged by a few."""
    step = max(1, len(documents) // 6)
    probe = documents[::step][:6]
    each = 0.0
    for size in SIZES:
        maker = _Maker(*size)
        for members in probe:
            for _, entry in members:
                maker.original(entry)
                maker.overlay(entry)
        each = maker.spent / max(1, len(probe))
        if each * len(documents) <= 0.92 * budget:
            return size, each
    return SIZES[-1], each * 1.08


class _Maker:
    """Makes pictures of one size, and counts what they take."""

    def __init__(self, side: int, quality: int) -> None:
        self.side, self.quality = side, quality
        self.spent = 0
        self.originals: dict[Path, Picture] = {}
        self.failed: list[str] = []
        self._count = 0

    def original(self, entry: Entry) -> Picture | None:
        if entry.original is None:
            return None
        if entry.original not in self.originals:
            made = self._make(entry.original, entry.slices, "RGB")
            if made is None:
                return None
            self.originals[entry.original] = made
        return self.originals[entry.original]

    def overlay(self, entry: Entry) -> Picture | None:
        path = entry.heat or entry.overlay
        return None if path is None else self._make(path, entry.slices, "RGBA" if entry.heat else "RGB")

    def _make(self, path: Path, slices: int, mode: str) -> Picture | None:
        try:
            with Image.open(path) as opened:
                image = opened.convert(mode)
            whole = max(1, image.height // slices)
            side = min(self.side, _TALLEST // slices)
            scale = min(1.0, side / max(image.width, whole))
            width, height = max(1, round(image.width * scale)), max(1, round(whole * scale))
            if scale < 1:
                image = image.resize((width, height * slices), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=self.quality, method=2)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            if path.name not in {one.partition(":")[0] for one in self.failed}:
                self.failed.append(f"{path.name}: {cut(error, 120)}")
            return None
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        self.spent += len(data)
        self._count += 1
        return Picture(f"picture{self._count}", data, image.width, image.height, max(1, image.height // slices))


def _card(cell: Cell, entry: Entry, maker: _Maker) -> Card:
    values = [(text, value) for text, value in entry.tokens[:_TOKENS] if known(value)]
    most = max((abs(value) for _, value in values), default=0.0) or 1.0
    checks = [
        (_NAMES[name], decimal(entry.checks[name], 3)) for name in CHECKS if known(entry.checks.get(name, float("nan")))
    ]
    if entry.pointing is not None:
        checks.append(("pointing game", "hit" if entry.pointing else "miss"))
    return Card(
        entry=entry,
        model=cell.subject.label,
        series=cell.subject.number,
        original=maker.original(entry),
        overlay=maker.overlay(entry),
        laid_over=entry.heat is not None,
        tokens=tuple((cut(text, 40) or "␣", value, round(100 * value / most, 1)) for text, value in values),
        more_tokens=max(0, len(entry.tokens) - _TOKENS),
        checks=tuple(checks),
    )
