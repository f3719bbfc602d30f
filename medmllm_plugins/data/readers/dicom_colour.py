"""Convert the colours of DICOM pictures, luminance and chrominance or palettes, to RGB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.errors import DataError

_BAND: Final = 1 << 18
_COLOURS: Final = ("Red", "Green", "Blue")


def in_bands(
    function: Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]],
    values: npt.NDArray[Any],
    channels: tuple[int, ...] = (),
) -> npt.NDArray[np.uint8]:
    """Apply a function to some rows at a time, since the floats that it makes take several times their memory.

    ``values`` are ``[rows, columns, …]``; ``channels`` follows rows and columns in the shape of the result.

    Returns:
        ``[rows, columns, *channels]``.
    """
    out = np.empty((*values.shape[:2], *channels), np.uint8)
    rows = max(1, _BAND // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        out[start : start + rows] = function(values[start : start + rows])
    return out


def palette_to_rgb(
    path: Path, values: npt.NDArray[Any], palette: Mapping[str, bytes], order: str, *, signed: bool
) -> npt.NDArray[np.uint8]:
    """Look values up in a palette (PS3.3 C.7.6.3.1.5 and C.7.9.2).

    ``values`` are stored values ``[rows, columns]``; those beyond the tables take the nearest entry. ``palette`` holds
    raw attributes by keyword, in the byte order ``order`` of ``struct``. The result is ``[rows, columns, 3]``.

    Raises:
        DataError: a table is missing or does not fit its descriptor.
    """
    tables, depths, firsts = [], [], []
    for colour in _COLOURS:
        raw = palette.get(f"{colour}PaletteColorLookupTableDescriptor", b"")
        if len(raw) < 6:
            raise _bad(path, "one without descriptors")
        count, _, depth = (int(number) for number in np.frombuffer(raw[:6], f"{order}u2"))
        firsts.append(int(np.frombuffer(raw[2:4], f"{order}{'i' if signed else 'u'}2")[0]))
        count = count or 1 << 16
        if table := palette.get(f"{colour}PaletteColorLookupTableData"):
            tables.append(_entries(path, table, count, order))
        else:
            segments = palette.get(f"Segmented{colour}PaletteColorLookupTableData", b"")
            tables.append(_expand(path, segments, count, depth, order))
        depths.append(depth)
    longest = max(map(len, tables))
    lookup = np.stack([np.pad(table, (0, longest - len(table)), mode="edge") for table in tables], axis=1)
    # Where entries have 16 bits the upper 8 are shown; some writers keep 8 bits in them all the same.
    if max(depths) > 8 and lookup.max() > 255:
        lookup //= 256
    shown = lookup.clip(0, 255).astype(np.uint8)
    return in_bands(lambda band: shown[(band.astype(np.int64) - firsts[0]).clip(0, len(shown) - 1)], values, (3,))


def _entries(path: Path, raw: bytes, count: int, order: str) -> npt.NDArray[np.uint16]:
    if len(raw) >= 2 * count:
        return np.frombuffer(raw[: 2 * count], f"{order}u2").astype(np.uint16)
    if len(raw) < count:
        raise _bad(path, f"tables of {len(raw):,} bytes for {count:,} entries")
    content = np.frombuffer(raw[: count + count % 2], np.uint8)
    if order == ">" and not len(content) % 2:  # bytes that are written as words
        content = content.reshape(-1, 2)[:, ::-1].ravel()
    return content[:count].astype(np.uint16)


def _expand(path: Path, raw: bytes, count: int, depth: int, order: str) -> npt.NDArray[np.uint16]:
    """Expand a table in segments: runs, lines, and references to segments before them."""
    width = 1 if depth <= 8 else 2
    data = np.frombuffer(raw[: len(raw) // width * width], f"{order}u{width}").tolist()
    entries: list[int] = []
    _segments(path, data, 0, len(data), entries, count, width, within=False)
    if len(entries) != count:
        raise _bad(path, f"segments of {len(entries):,} entries for {count:,}")
    return np.array(entries, np.uint16)


def _segments(
    path: Path, data: list[int], offset: int, left: int, entries: list[int], count: int, width: int, *, within: bool
) -> None:
    """Append the entries of up to ``left`` segments, and never more than ``count`` in all."""
    while left and offset + 1 < len(data) and len(entries) < count:
        left -= 1
        opcode, length = data[offset : offset + 2]
        offset += 2
        room = count - len(entries)
        if opcode == 0:
            entries += data[offset : offset + min(length, room)]
            offset += length
        elif opcode == 1 and entries and offset < len(data) and length:
            start, end = entries[-1], data[offset]
            steps = np.arange(1, min(length, room) + 1) / length
            entries += np.rint(start + (end - start) * steps).astype(int).tolist()
            offset += 1
        elif opcode == 2 and entries and not within and length:
            words = data[offset : offset + 4 // width]
            if len(words) < 4 // width:
                raise _bad(path, "segments that are cut short")
            target = sum(word << 8 * width * index for index, word in enumerate(words))
            _segments(path, data, target // width if width == 2 else target, length, entries, count, width, within=True)
            offset += 4 // width
        else:
            raise _bad(path, "segments of another kind")


def _bad(path: Path, got: str) -> DataError:
    return DataError(
        f"{path}: expected a palette of three tables that fit their descriptors, got {got}. Convert to RGB."
    )
