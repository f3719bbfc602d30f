"""Name DICOM objects without pictures, such as reports, plans and waveforms, by their SOP class (PS3.4 B.5)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from medmllm_plugins.data.readers.dicom_elements import Elements, Selection, read_elements
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular

_KINDS: Final = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""Kinds of SOP classes without pictures, by UID, and of families of them, by the beginning of the UID."""
_SELECTION: Final = Selection("SOPClassUID", DirectoryRecordSequence=Selection())


def kind_of_class(sop_class: str) -> str | None:
    """Return what objects of a SOP class without pictures are called; ``None`` for pictures and unknown classes."""
    families = (kind for start, kind in _KINDS["families"].items() if sop_class.startswith(start))
    kind: str | None = _KINDS["classes"].get(sop_class) or next(families, None)
    return kind


def kind_without_pixels(elements: Elements) -> str | None:
    """Return what to call an object without pixels; ``None`` if its class says that it should have them."""
    value = elements.values.get("SOPClassUID", b"")
    sop_class = value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else ""
    if "DirectoryRecordSequence" in elements.values:
        return "media directory"
    # The classes of vendors are their own; what they keep without pixels is not meant to be looked at.
    private = sop_class and not sop_class.startswith("1.2.840.10008.")
    return kind_of_class(sop_class) or ("private object" if private else None)


def kind_without_pictures(path: Path) -> str | None:
    """Return the kind of a whole DICOM file that is not meant to hold a picture, such as ``"structured report"``.

    Pictures, damaged files and files of other formats give ``None``: the error comes when they are read.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return _kind(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _kind(path: Path, size: int, changed: int) -> str | None:
    try:
        with open_regular(path) as opened:
            kind = kind_without_pixels(read_elements(path, opened, _SELECTION, until=0x0008FFFF)[0])
            if kind is None:  # most files: the elements behind the class need not be parsed
                return None
            elements, _ = read_elements(path, opened, _SELECTION)
    except DataError:
        return None
    return kind if elements.pixels is None else None


def count_kinds(kinds: Iterable[str]) -> str:
    """Return objects by kind as text: ``"2 of the kind structured report, 1 of the kind waveform"``."""
    return ", ".join(f"{count} of the kind {kind}" for kind, count in Counter(kinds).most_common())
