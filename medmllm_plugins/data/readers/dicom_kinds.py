"""Name DICOM objects without pictures, such as reports, plans and waveforms, by their SOP class (PS3.4 B.5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from medmllm_plugins.data.readers.dicom_elements import Elements, Selection, read_elements
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_FAMILIES: Final = {
    "9.": "waveform",
    "11.": "presentation state",
    "78.": "eye measurement",
    "88.": "structured report",
    "104.": "encapsulated document",
    "200.": "protocol",
}
"""Families of SOP classes, by what follows the root of the storage classes."""
_CLASSES: Final = {
    "4.2": "spectroscopy",
    "8": "overlay",
    "9": "curve",
    "10": "look-up table",
    "11": "look-up table",
    "66": "raw data",
    "66.1": "registration",
    "66.2": "fiducials",
    "66.3": "registration",
    "66.5": "surface",
    "66.6": "tractography",
    "67": "value mapping",
    "68.1": "surface",
    "68.2": "surface",
    "77.1.5.3": "stereometric relationship",
    "79.1": "eye measurement",
    "80.1": "eye measurement",
    "88.59": "key object selection",
    "90.1": "content assessment",
    "91.1": "annotations",
    "129": "curve",
    "131": "structured display",
    "481.3": "RT structure set",
    **dict.fromkeys((f"481.{number}" for number in (4, 6, 7, 9, 14, 16, 17, 18, 19, 20)), "RT treatment record"),
    **dict.fromkeys((f"481.{number}" for number in (5, 8, 10, 11, 12, 13, 15, 21, 22, 25)), "RT plan"),
}
_OTHERS: Final = {
    "1.2.840.10008.1.3.10": "media directory",
    "1.2.840.10008.5.1.4.34.1": "RT plan",
    "1.2.840.10008.5.1.4.34.7": "RT plan",
    "1.2.840.10008.5.1.4.34.10": "RT plan",
    "1.2.840.10008.5.1.4.38.1": "hanging protocol",
    "1.2.840.10008.5.1.4.39.1": "colour palette",
    "1.2.840.10008.5.1.4.43.1": "implant template",
    "1.2.840.10008.5.1.4.44.1": "implant template",
    "1.2.840.10008.5.1.4.45.1": "implant template",
}
_SELECTION: Final = Selection("SOPClassUID", DirectoryRecordSequence=Selection())


def kind_of_class(sop_class: str) -> str | None:
    """Return what objects of a SOP class without pictures are called; ``None`` for pictures and unknown classes."""
    if not sop_class.startswith(_STORAGE):
        return _OTHERS.get(sop_class)
    rest = sop_class.removeprefix(_STORAGE)
    return _CLASSES.get(rest) or next((kind for start, kind in _FAMILIES.items() if rest.startswith(start)), None)


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
