"""The gallery of attributions: images small enough for one page, each original stored once.

Images are WebP. Their size is chosen so that all fit the budget; if even the smallest do not, documents are left out
evenly over classes, correct and wrong answers, and the page says how many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import ENTRY_CHECKS
from medmllm_plugins.report.error_browser.page_images import encode_image
from medmllm_plugins.report.formatting import cut, decimal
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.report.templating import text
from medmllm_plugins.results.attribution_records import ONE_SIDED, TWO_SIDED, AttributionEntry

BUDGET: Final = 5_500_000
"""Characters of all images of a page together, in base64: those of the error browser and of the gallery."""
CARDS: Final = 1_500
"""Most cards of a page: more make a browser slow, however small their images are."""
SIZES: Final = ((256, 76), (192, 70), (144, 64), (112, 56), (88, 50))
"""Longest side in pixels and WebP quality, best first."""
_TOKENS: Final = 400


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the page: its id, its base64 data, and the size in pixels of it and of one slice."""

    id: str
    data: str
    width: int
    height: int
    slice_height: int


@dataclass(frozen=True, slots=True)
class Card:
    """One attribution as the page shows it.

    Attributes:
        transparent: whether the map is drawn over the original.
        tokens: text, attribution, and attribution in percent of the largest, of each token of the prompt.
    """

    entry: AttributionEntry
    dataset: str
    model: str
    series: int
    original: Picture | None
    layer: Picture | None
    transparent: bool
    tokens: tuple[tuple[str, float, float], ...]
    more_tokens: int
    checks: tuple[tuple[str, str], ...]

    @property
    def alt(self) -> str:
        """Text alternative of the image."""
        return cut(text("figures.txt.jinja", "card", entry=self.entry), 240)


@dataclass(frozen=True, slots=True)
class Gallery:
    """All cards of a page.

    Attributes:
        left_out: number of attributions that are not shown, to keep the page small.
        failed: images that could not be read.
    """

    pictures: tuple[Picture, ...]
    cards: tuple[Card, ...]
    left_out: int
    failed: tuple[str, ...]

    @property
    def has_unsigned(self) -> bool:
        """Whether there are maps that are never negative."""
        return any(card.entry.scale is not None and card.entry.scale[0] >= 0 for card in self.cards)

    @property
    def two_sided(self) -> str:
        """Colours of signed attributions, from against to for, as CSS lists them."""
        return _css_colours(TWO_SIDED)

    @property
    def one_sided(self) -> str:
        """Colours of attributions that are never negative, from none to most."""
        return _css_colours(ONE_SIDED)

    def choices(self, name: str) -> list[str]:
        """Return the values of an attribute of the entries, in order of appearance."""
        return list(dict.fromkeys(str(getattr(card.entry, name)) for card in self.cards))


def _css_colours(name: str) -> str:
    return ", ".join(to_hex(colormaps[name](step / 8)) for step in range(9))


def build_gallery(results: Sequence[TaskResult], budget: int = BUDGET, *, images: bool = True) -> Gallery:
    """Build the gallery of all attributions.

    Args:
        results: results of all tasks.
        budget: number of characters of all images.
        images: whether there shall be images; without them, only attributions of words are shown.
    """
    pairs = [
        (result, entry if images else replace(entry, original=None, heat=None, overlay=None))
        for result in results
        if result.task.attributions
        for entry in result.task.attributions.entries
        if images or entry.tokens
    ]
    documents: dict[tuple[int, str], list[tuple[TaskResult, AttributionEntry]]] = defaultdict(list)
    for result, entry in pairs:
        documents[result.subject.number, entry.document].append((result, entry))
    ordered = _interleaved(list(documents.values()))
    size, characters = _choose_size(ordered, budget)
    count = len(ordered) if not characters else min(len(ordered), max(1, int(budget / characters)))
    shown: list[tuple[TaskResult, AttributionEntry]] = []
    for members in ordered[:count]:
        if shown and len(shown) + len(members) > CARDS:
            break
        shown += members
    encoder = _Encoder(*size)
    cards = []
    for result, entry in shown:
        if encoder.spent > budget:
            break
        cards.append(_card(result, entry, encoder))
    return Gallery(tuple(encoder.originals.values()), tuple(cards), len(pairs) - len(cards), tuple(encoder.failed))


def _interleaved(
    documents: list[list[tuple[TaskResult, AttributionEntry]]],
) -> list[list[tuple[TaskResult, AttributionEntry]]]:
    """Order documents so that classes, correct and wrong answers are evenly spread from the start."""
    strata: dict[tuple[int, str, bool], list[list[tuple[TaskResult, AttributionEntry]]]] = defaultdict(list)
    for members in documents:
        result, entry = members[0]
        strata[result.subject.number, entry.label, entry.hit].append(members)
    return [members for turn in zip_longest(*strata.values()) for members in turn if members is not None]


def _choose_size(
    documents: Sequence[list[tuple[TaskResult, AttributionEntry]]], budget: int
) -> tuple[tuple[int, int], float]:
    """Return the best size at which all images fit, and the characters per document, estimated from a few."""
    step = max(1, len(documents) // 6)
    sample = documents[::step][:6]
    characters = 0.0
    for size in SIZES:
        encoder = _Encoder(*size)
        for members in sample:
            for _, entry in members:
                encoder.original(entry)
                encoder.layer(entry)
        characters = encoder.spent / max(1, len(sample))
        if characters * len(documents) <= 0.92 * budget:
            return size, characters
    return SIZES[-1], characters * 1.08


class _Encoder:
    """Encodes images at one size, and counts their characters."""

    def __init__(self, side: int, quality: int) -> None:
        self.side, self.quality = side, quality
        self.spent = 0
        self.originals: dict[Path, Picture] = {}
        self.failed: list[str] = []
        self._count = 0

    def original(self, entry: AttributionEntry) -> Picture | None:
        if entry.original is None:
            return None
        if entry.original not in self.originals:
            picture = self._encode(entry.original, entry.slices, "RGB")
            if picture is None:
                return None
            self.originals[entry.original] = picture
        return self.originals[entry.original]

    def layer(self, entry: AttributionEntry) -> Picture | None:
        path = entry.heat or entry.overlay
        return None if path is None else self._encode(path, entry.slices, "RGBA" if entry.heat else "RGB")

    def _encode(self, path: Path, slices: int, mode: str) -> Picture | None:
        try:
            with Image.open(path) as opened:
                image = opened.convert(mode)
            encoded = encode_image(image, self.side, self.quality, slices=slices)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            if path.name not in {message.partition(":")[0] for message in self.failed}:
                self.failed.append(f"{path.name}: {cut(error, 120)}")
            return None
        self.spent += len(encoded.data)
        self._count += 1
        return Picture(f"picture{self._count}", encoded.data, encoded.width, encoded.height, encoded.slice_height)


def _card(result: TaskResult, entry: AttributionEntry, encoder: _Encoder) -> Card:
    tokens = entry.tokens or ()
    values = [(token.text, token.value) for token in tokens[:_TOKENS] if known(token.value)]
    most = max((abs(value) for _, value in values), default=0.0) or 1.0
    numbers = {title: getattr(entry.checks, name) for name, title in ENTRY_CHECKS.items()}
    checks = [(title, decimal(value, 3)) for title, value in numbers.items() if known(value)]
    if entry.checks.pointing is not None:
        checks.append(("pointing game", "hit" if entry.checks.pointing else "miss"))
    return Card(
        entry=entry,
        dataset=result.task.dataset,
        model=result.subject.label,
        series=result.subject.number,
        original=encoder.original(entry),
        layer=encoder.layer(entry),
        transparent=entry.heat is not None,
        tokens=tuple((cut(token, 40) or "␣", value, round(100 * value / most, 1)) for token, value in values),
        more_tokens=max(0, len(tokens) - _TOKENS),
        checks=tuple(checks),
    )
