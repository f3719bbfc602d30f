"""The data of the error browser for the page: pictures with their ids, and the JSON that the script reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from medmllm_plugins.report.error_browser.browsed_answers import BrowsedAnswer, BrowsedQuestion, ErrorBrowser
from medmllm_plugins.report.error_browser.document_pictures import BrowserPictures, DocumentPicture
from medmllm_plugins.report.error_browser.page_images import PageImage
from medmllm_plugins.utils.json_values import clean

MAX_TEXT: Final = 20_000
"""Characters of one answer on the page."""
MAX_TEXTS: Final = 600_000
"""Characters of all answers of a browser; each keeps at least :data:`MIN_TEXT`."""
MIN_TEXT: Final = 400
MAX_GROUPS: Final = 500
"""Groups that the filter suggests."""
STATIC_ERRORS: Final = 12
"""Errors that the page lists in print and without JavaScript."""


@dataclass(frozen=True, slots=True, eq=False)
class BrowserView:
    """A browser as the template needs it.

    Attributes:
        index: number of the browser on the page.
        section: index of its section.
    """

    index: int
    section: int
    browser: ErrorBrowser
    pictures: BrowserPictures
    ids: dict[str, str] = field(default_factory=dict)

    def images(self) -> Iterable[tuple[str, PageImage]]:
        """Yield all images with their ids on the page."""
        for document, picture in self.pictures.pictures.items():
            yield self.ids[document], picture.thumbnail
            if picture.large is not None:
                yield f"{self.ids[document]}-large", picture.large

    def picture(self, document: str) -> tuple[str, DocumentPicture] | None:
        """Return id and picture of a document; ``None`` without one."""
        return (self.ids[document], self.pictures.pictures[document]) if document in self.ids else None

    def worst_errors(self) -> list[tuple[BrowsedQuestion, Any, BrowsedAnswer]]:
        """Return the errors that the page lists in print and without JavaScript."""
        return self.browser.worst_errors(STATIC_ERRORS)

    @property
    def groups(self) -> list[str]:
        """Groups that the filter suggests; none where each document is a group of its own."""
        if not self.browser.has_groups:
            return []
        return sorted({clean(question.group) for question in self.browser.questions})[:MAX_GROUPS]

    @property
    def findings(self) -> list[str]:
        """Findings that the questions are about."""
        return list(dict.fromkeys(clean(question.finding) for question in self.browser.questions if question.finding))

    def json(self) -> str:
        """Return the data of the script, without any ``<``, so that no answer can end the element that holds it."""
        browser, texts = self.browser, _Texts()
        content = {
            "dataset": clean(browser.dataset.name),
            "title": clean(browser.dataset.title),
            "classes": browser.classes,
            "total": browser.total,
            "models": [
                {
                    "number": result.subject.number,
                    "label": clean(result.subject.label),
                    "reference": result.subject.reference,
                    "task": clean(result.task.name),
                    "prompt": texts(result.task.entry.prompt)[0],
                    "prompts": {clean(way): texts(prompt)[0] for way, prompt in result.task.entry.prompts.items()},
                }
                for result in browser.results
            ],
            "related": [[name, int(not shown)] for name, shown in browser.related_names],
            "questions": [self._question(question, texts) for question in browser.questions],
        }
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return body.replace("<", "\\u003c")

    def _question(self, question: BrowsedQuestion, texts: _Texts) -> dict[str, Any]:
        answers = {
            str(result.subject.number): _answer(question.answers[result.subject.number], self.browser.classes, texts)
            for result in self.browser.results
            if result.subject.number in question.answers
        }
        record = {
            "id": clean(question.id),
            "document": clean(question.document),
            "group": clean(question.group),
            "fold": question.fold,
            "finding": clean(question.finding),
            "variant": clean(question.variant),
            "label": question.label,
            "answers": answers,
        }
        if (shown := self.picture(question.document)) is not None:
            name, picture = shown
            large = picture.large or picture.thumbnail
            size = (large.width, large.slice_height, *picture.size)
            thumbnail = (picture.thumbnail.width, picture.thumbnail.height)
            record["picture"] = [name, int(picture.large is not None), picture.slices, *size, *thumbnail]
        return {key: value for key, value in record.items() if value != ""}


def browser_views(
    browsers: Sequence[tuple[int, ErrorBrowser]], pictures: Sequence[BrowserPictures]
) -> tuple[BrowserView, ...]:
    """Return the browsers of a page with their pictures; each browser comes with the index of its section."""
    return tuple(
        BrowserView(
            index,
            section,
            browser,
            pictured,
            {document: f"document{index}-{number}" for number, document in enumerate(pictured.pictures)},
        )
        for index, ((section, browser), pictured) in enumerate(zip(browsers, pictures, strict=True))
    )


def _answer(answer: BrowsedAnswer, classes: Sequence[str], texts: _Texts) -> list[Any]:
    """Return the answer as a list: class or -1, status, confidence, probabilities, text, characters cut, related.

    The text is ``null`` where it is the name of the answered class, and 0 where there is none.
    """
    words: str | int | None = 0
    hidden = 0
    if answer.text is not None:
        words, hidden = texts(answer.text)
        if answer.predicted is not None and words == classes[answer.predicted]:
            words = None
    return [
        -1 if answer.predicted is None else answer.predicted,
        answer.status,
        None if answer.confidence is None else round(answer.confidence, 4),
        [round(share, 4) for share in answer.probabilities],
        words,
        hidden,
        [
            [other.name, -1 if other.predicted is None else other.predicted, *([other.text] if other.text else [])]
            for other in answer.related
        ],
    ]


class _Texts:
    """Cuts answers, and limits their total length."""

    def __init__(self) -> None:
        self._left = MAX_TEXTS

    def __call__(self, value: str) -> tuple[str, int]:
        """Return as much of a text as the page holds, and the number of characters that are left out."""
        full = clean(value)
        shown = full[: min(MAX_TEXT, max(MIN_TEXT, self._left))]
        self._left -= len(shown)
        return shown, len(full) - len(shown)
