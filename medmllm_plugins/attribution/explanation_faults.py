"""What went wrong while documents were explained: each fault costs only what it is part of, and is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from PIL.Image import Image

from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.models.base import VisualInput

logger = logging.getLogger(__name__)

NAMED: Final = 5
"""So many documents are named where one fault struck several."""


class Faults:
    """Faults of one document.

    Attributes:
        found: what :func:`fault_messages` reads, in plain JSON types: ``document`` (its id and size), ``method`` and ``part`` of
            it (both empty where all of the document is left out), and ``why``.
    """

    def __init__(self, identifier: str, shown: VisualInput, when: str = "", before: Faults | None = None) -> None:
        """Begin with none.

        Args:
            identifier: the document's id.
            shown: its image, images or volume, whose size is told, as it is often the reason.
            when: told beside the part, such as ``"with shuffled weights"``.
            before: what was told already, and is not told again for this ``when``.
        """
        self.found: list[dict[str, str]] = []
        self._before = {(one["method"], one["part"]) for one in before.found} if before is not None else set()
        self._document, self._when = f"{identifier} ({format_size(shown)})", when

    @contextmanager
    def costing(self, method: str = "", part: str = "") -> Iterator[None]:
        """Leave out what fails inside, and tell of it.

        Args:
            method: whose it is; empty for all of the document.
            part: a layer or a check; empty for all of the method.
        """
        try:
            yield
        # Methods may be a plugin's, and may raise anything; the answers, and what other methods say, took hours.
        except Exception as error:
            self.add(method, part, str(error) if isinstance(error, MedMLLMError) else one_line(error))

    def add(self, method: str, part: str, why: str) -> None:
        """Tell of what is left out; arguments as for :meth:`costing`, and the reason."""
        if (method, part) in self._before:
            return
        part = " ".join(filter(None, (part, self._when)))
        self.found.append({"document": self._document, "method": method, "part": part, "why": why})
        logger.warning("%s: left out: %s: %s", self._document, _what(method, part) or "the document", why)


def fault_messages(faults: Sequence[Mapping[str, str]]) -> list[str]:
    """A sentence for each fault, with the documents that it struck."""
    struck: dict[tuple[str, str, str], list[str]] = {}
    for one in faults:
        struck.setdefault((one["method"], one["part"], one["why"]), []).append(one["document"])
    found = []
    for (method, part, why), documents in struck.items():
        names = ", ".join(documents[:NAMED])
        more = f" and {len(documents) - NAMED} others" if len(documents) > NAMED else ""
        what = _what(method, part)
        found.append(f"{what}: left out of {names}{more}: {why}" if what else f"Left out: {names}{more}: {why}")
    return found


def format_size(shown: VisualInput) -> str:
    """The size of what was shown, for people: ``640 x 480``, one behind the other where there are several."""
    if isinstance(shown, Image):
        return f"{shown.width} x {shown.height}"
    if isinstance(shown, Sequence):
        return ", ".join(dict.fromkeys(f"{one.width} x {one.height}" for one in shown))
    return " x ".join(map(str, shown.voxels.shape))


def _what(method: str, part: str) -> str:
    return ", ".join(filter(None, (method, part)))
