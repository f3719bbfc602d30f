"""Decode the raw attributes of a DICOM data set as text and numbers.

pydicom's own conversion is not used: it quotes values, which may be patient data, in warnings and log records of the
whole process.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Final

from pydicom.datadict import dictionary_description

from medmllm_plugins.data.readers.dicom_elements import Values
from medmllm_plugins.errors import DataError

FUNCTIONAL_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


class Attributes:
    """Attributes of a data set or of an item of a sequence, by keyword; ``byte_order`` is ``"<"`` or ``">"``."""

    __slots__ = ("_byte_order", "_path", "_values")

    def __init__(self, path: Path, values: Values, byte_order: str) -> None:
        self._path, self._values, self._byte_order = path, values, byte_order

    def raw(self, keyword: str) -> bytes:
        """Return the bytes of a value; none if it is missing."""
        value = self._values.get(keyword, b"")
        return value if isinstance(value, bytes) else b""

    def frames(self, count: int) -> list[Attributes]:
        """Return the attributes of each frame: its own functional groups, else the shared ones, else the data set's.

        Without functional groups for each of ``count`` frames, the list has one entry.
        """
        shared, frames = (_merged_groups(self._values.get(keyword)) for keyword in FUNCTIONAL_GROUPS)
        common = {**_not_empty(self._values), **(shared[0] if shared else {})}
        return [
            Attributes(self._path, {**common, **frame}, self._byte_order)
            for frame in (frames if len(frames) == count else [{}])
        ]

    def text(self, keyword: str) -> str:
        """Return a value as text; empty if it is missing."""
        return self.raw(keyword).decode("ascii", "replace").strip(" \0")

    def has(self, keyword: str) -> bool:
        """Return whether a value is there and not empty."""
        return bool(self.text(keyword))

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return a value of VR "US"; ``default`` if it is missing.

        Raises:
            DataError: it is of another length, or missing and there is no default.
        """
        value = self.raw(keyword)
        if not value and default is not None:
            return default
        if len(value) < 2 or len(value) > 4:
            raise DataError(
                f"{self._path}: expected an integer of 16 bits as {dictionary_description(keyword)}, got {len(value)} "
                "bytes. Correct the header."
            )
        return int(struct.unpack_from(f"{self._byte_order}H", value)[0])

    def numbers(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """Return the numbers of a value of VR "DS" or "IS"; ``None`` if it is missing or empty.

        Raises:
            DataError: it holds something else, another number of them than ``count``, NaN or infinity.
        """
        text = self.text(keyword)
        if not text:
            return None
        try:
            values = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            values = ()
        if not values or (count is not None and len(values) != count) or not all(map(math.isfinite, values)):
            raise DataError(
                f"{self._path}: expected {'' if count is None else f'{count} '}finite numbers as "
                f"{dictionary_description(keyword)}, got something else. Correct the header."
            )
        return values

    def number(self, keyword: str, default: float) -> float:
        """Return the first number of a value, or ``default`` if it is missing or empty."""
        values = self.numbers(keyword)
        return default if values is None else values[0]


def _merged_groups(items: bytes | list[Values] | None) -> list[Values]:
    """Return the items of a sequence of functional groups, the attributes of an item's groups merged into one."""
    merged: list[Values] = []
    for item in items if isinstance(items, list) else []:
        merged.append({})
        for group in item.values():
            if isinstance(group, list) and group:
                merged[-1] |= _not_empty(group[0])
    return merged


def _not_empty(values: Values) -> Values:
    return {keyword: value for keyword, value in values.items() if isinstance(value, bytes) and value.strip(b" \0")}
