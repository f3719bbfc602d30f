"""Pictures of the documents in the error browser: thumbnails, and larger ones of errors, within a budget.

Errors come first, evenly over classes. If not all fit, the page says how many are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from PIL import Image

from medmllm_plugins.errors import one_line
from medmllm_plugins.report.error_browser.browsed_answers import ErrorBrowser
from medmllm_plugins.report.error_browser.image_source import Loader, image_loader, stored_originals
from medmllm_plugins.report.error_browser.page_images import PageImage, encode_image, stack_slices
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.templating import text

BUDGET: Final = 1_500_000
"""Characters of the pictures of one data set in base64: about 200 thumbnails, and larger pictures of some errors."""
PAGE_BUDGET: Final = 3_000_000
"""Characters of the pictures of all data sets."""
THUMBNAIL: Final = (160, 62)
"""Longest side in pixels and WebP quality."""
LARGE: Final = (512, 72)
SLICE: Final = (256, 60)
"""Of each slice of a volume."""
MAX_VOLUMES: Final = 60
"""Volumes that are read: each takes a second."""
_THUMBNAIL_SHARE: Final = 0.7
"""Most of a budget that thumbnails take, so that errors have larger pictures."""


@dataclass(frozen=True, slots=True)
class DocumentPicture:
    """The pictures of one document.

    Attributes:
        thumbnail: the picture, or the middle slice of a volume.
        large: a larger picture, or all slices one below the other; ``None`` where the thumbnail is all there is.
        slices: slices of ``large``.
        size: width and height of the picture, or of one slice, before it was scaled down.
    """

    thumbnail: PageImage
    large: PageImage | None
    slices: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class BrowserPictures:
    """The pictures of one browser.

    Attributes:
        pictures: by document.
        reason: why there are none; empty where there are.
        left_out: documents without a picture, to keep the page small.
        failed: messages on pictures that could not be read.
    """

    pictures: dict[str, DocumentPicture] = field(default_factory=dict)
    reason: str = ""
    left_out: int = 0
    failed: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        """Characters of all pictures in base64."""
        images = [image for item in self.pictures.values() for image in (item.thumbnail, item.large) if image]
        return sum(len(image.data) for image in images)


def page_pictures(
    browsers: Sequence[ErrorBrowser], *, images: bool = True, budget: int = PAGE_BUDGET
) -> list[BrowserPictures]:
    """Return the pictures of each browser of a page.

    Args:
        browsers: the browsers.
        images: whether the page shall have pictures at all.
        budget: characters of all pictures; what one browser leaves, the next may use.
    """
    if not images:
        return [BrowserPictures(reason=text("errors.txt.jinja", "left_out")) for _ in browsers]
    pictures: list[BrowserPictures] = []
    for index, browser in enumerate(browsers):
        share = budget // (len(browsers) - index)
        pictures.append(_browser_pictures(browser, min(BUDGET, share)))
        budget -= pictures[-1].characters
    return pictures


def _browser_pictures(browser: ErrorBrowser, budget: int) -> BrowserPictures:
    loader, reason = image_loader(browser)
    stored = {} if loader is not None else stored_originals(browser.dataset.results, browser)
    if loader is None and not stored:
        return BrowserPictures(reason=reason)
    documents = list(dict.fromkeys(question.document for question in browser.questions))
    wanted = [document for document in documents if loader is not None or document in stored]
    encoder = _Encoder(budget)
    for document in wanted:
        if encoder.is_full:
            break
        encoder.add(document, loader or stored[document])
    left_out = len(wanted) - len(encoder.pictures) - len(encoder.failed)
    return BrowserPictures(encoder.within_budget(), reason, left_out, tuple(encoder.failed))


class _Encoder:
    """Encodes the pictures of documents until the thumbnails have used their share of the budget."""

    def __init__(self, budget: int) -> None:
        self.pictures: dict[str, DocumentPicture] = {}
        self.failed: list[str] = []
        self._budget = budget
        self._thumbnails = self._large = self._volumes = 0

    @property
    def is_full(self) -> bool:
        return self._thumbnails > _THUMBNAIL_SHARE * self._budget or self._volumes >= MAX_VOLUMES

    def add(self, document: str, loader: Loader) -> None:
        try:
            picture = self._encode(loader(document))
        except Exception as error:  # a file may be damaged in any way, and the reader of a plugin may raise anything
            self.failed.append(f"{cut(document, 60)}: {cut(one_line(error), 160)}")
            return
        self.pictures[document] = picture
        self._thumbnails += len(picture.thumbnail.data)
        self._large += len(picture.large.data) if picture.large else 0
        self._volumes += picture.slices > 1

    def _encode(self, slices: Sequence[Image.Image]) -> DocumentPicture:
        middle = slices[len(slices) // 2]
        thumbnail = encode_image(middle, *THUMBNAIL)
        large = None
        if self._large <= self._budget:  # more would not stay in any case
            if len(slices) > 1:
                large = encode_image(stack_slices(slices), *SLICE, slices=len(slices))
            elif max(middle.size) > THUMBNAIL[0]:
                large = encode_image(middle, *LARGE)
        return DocumentPicture(thumbnail, large, len(slices) if large else 1, middle.size)

    def within_budget(self) -> dict[str, DocumentPicture]:
        """Return all pictures; the larger ones for as many documents, from the first on, as the budget allows."""
        left = self._budget - self._thumbnails
        kept = {}
        for document, picture in self.pictures.items():
            left -= len(picture.large.data) if picture.large else 0
            kept[document] = picture if left >= 0 else DocumentPicture(picture.thumbnail, None, 1, picture.size)
        return kept
