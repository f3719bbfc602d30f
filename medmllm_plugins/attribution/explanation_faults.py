"""Record what failed while documents were explained; each fault leaves out only the part it concerns."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from PIL.Image import Image

from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.results.attribution_records import AttributionFault

logger = logging.getLogger(__name__)

NAMED: Final = 5
"""Largest number of documents named in the message of one fault."""


class Faults:
    """Faults of one document."""

    def __init__(self, identifier: str, visual: VisualInput, condition: str = "", before: Faults | None = None) -> None:
        """Create an empty record.

        ``condition`` is added to the part, such as ``"with shuffled weights"``; faults in ``before`` are not reported
        again.
        """
        self.records: list[AttributionFault] = []
        self._before = {(record.method, record.part) for record in before.records} if before else set()
        self._document, self._condition = f"{identifier} ({format_size(visual)})", condition

    @contextmanager
    def skipping(self, method: str = "", part: str = "") -> Iterator[None]:
        """Leave out what fails inside the context, and record it.

        Args:
            method: Name of the method; empty for the whole document.
            part: A layer or a check; empty for the whole method.
        """
        try:
            yield
        # Methods may be a plugin's and may raise anything; the answers and the other maps took hours.
        except Exception as error:
            self.add(method, part, str(error) if isinstance(error, MedMLLMError) else one_line(error))

    def add(self, method: str, part: str, why: str) -> None:
        """Record what is left out; arguments as for :meth:`skipping`, and the reason."""
        if (method, part) in self._before:
            return
        part = " ".join(filter(None, (part, self._condition)))
        self.records.append(AttributionFault(document=self._document, method=method, part=part, why=why))
        logger.warning("%s: left out: %s: %s", self._document, _subject(method, part) or "the document", why)


def fault_messages(records: Sequence[AttributionFault]) -> list[str]:
    """Return one sentence for each fault, with the documents it concerns."""
    documents_of: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        documents_of.setdefault((record.method, record.part, record.why), []).append(record.document)
    messages = []
    for (method, part, why), documents in documents_of.items():
        names = ", ".join(documents[:NAMED])
        more = f" and {len(documents) - NAMED} others" if len(documents) > NAMED else ""
        subject = _subject(method, part)
        messages.append(
            f"{subject}: left out of {names}{more}: {why}" if subject else f"Left out: {names}{more}: {why}"
        )
    return messages


def format_size(visual: VisualInput) -> str:
    """Return the size of an image, images or a volume for people, such as ``640 x 480``."""
    if isinstance(visual, Image):
        return f"{visual.width} x {visual.height}"
    if isinstance(visual, Sequence):
        return ", ".join(dict.fromkeys(f"{image.width} x {image.height}" for image in visual))
    return " x ".join(map(str, visual.voxels.shape))


def _subject(method: str, part: str) -> str:
    return ", ".join(filter(None, (method, part)))
