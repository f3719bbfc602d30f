"""The tags of a DICOM file that matter: those about pixels and geometry, also within the sequences of its frames.

No name, number, date or description of a patient is read, and errors never quote a header value that is text. What is
read of identifiers is used to compare files and leaves this package nowhere.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from medmllm_plugins.data.readers.dicom_elements import (
    Elements,
    PixelElement,
    Source,
    Values,
    Wanted,
    open_source,
    read_elements,
    starts_like_dicom,
)
from medmllm_plugins.data.readers.dicom_kinds import SOP_CLASS, kind_without_pixels
from medmllm_plugins.data.readers.intensity_windows import Unit
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import head

_PALETTE: Final = (*range(0x00281101, 0x00281104), *range(0x00281201, 0x00281204), *range(0x00281221, 0x00281224))
_FRAME: Final[Wanted] = {
    0x00209113: {0x00200032: None},
    0x00209116: {0x00200037: None},
    0x00289110: {0x00280030: None},
    0x00289132: {0x00281050: None, 0x00281051: None, 0x00281056: None},
    0x00289145: {0x00281052: None, 0x00281053: None, 0x00281054: None},
}
_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_WANTED: Final[Wanted] = {
    **dict.fromkeys((SOP_CLASS, 0x00080060, 0x00180088, 0x00181164, 0x0020000E, 0x00200032, 0x00200037, 0x3004000E)),
    **dict.fromkeys((0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280034)),
    **dict.fromkeys((0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280301, 0x7FE00001, 0x7FE00002)),
    **dict.fromkeys((0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056)),
    **dict.fromkeys(_PALETTE),
    _SHARED: _FRAME,
    _PER_FRAME: _FRAME,
}
_NAMES: Final = {
    0x00180088: "Spacing Between Slices",
    0x00181164: "Imager Pixel Spacing",
    0x00200032: "Image Position",
    0x00200037: "Image Orientation",
    0x00280008: "Number of Frames",
    0x00280030: "Pixel Spacing",
    0x00281050: "Window Center",
    0x00281051: "Window Width",
    0x00281052: "Rescale Intercept",
    0x00281053: "Rescale Slope",
    0x3004000E: "Dose Grid Scaling",
}
_COLOURS: Final = frozenset(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
)
GREY: Final = frozenset(("MONOCHROME1", "MONOCHROME2"))
PALETTE: Final = "PALETTE COLOR"
GE_PRIVATE: Final = "1.2.840.113619.5.2"
"""Transfer syntax of old scanners of GE: implicit little-endian elements, but big-endian pixels."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the pixels of a file are stored (PS3.3 C.7.6.3).

    Attributes:
        rows: rows of a frame.
        columns: columns of a frame.
        frames: number of frames.
        samples: values a pixel, 1 or 3.
        photometric: what the values mean.
        allocated: bits a value takes, 1 or whole bytes.
        stored: bits of these in use.
        high: the highest of these.
        signed: whether values are signed.
        planar: of three values a pixel, whether each has a plane of its own.
        syntax: UID of the transfer syntax.
        order: byte order, as ``struct`` calls it.
        element: where the pixels are.
        offsets: raw extended offset table, if there is one.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: bool
    syntax: str
    order: str
    element: PixelElement
    offsets: bytes = field(default=b"", repr=False)

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame that is not compressed; of single bits, rounded up."""
        values = self.rows * self.columns * self.samples
        if self.photometric == "YBR_FULL_422" and self.element.fragments is None:
            values = values * 2 // 3  # two pixels share their colour
        return -(-values * self.allocated // 8)


@dataclass(frozen=True, slots=True)
class Header:
    """The tags of one file that matter.

    Attributes:
        path: the file.
        size: columns, rows and frames.
        channels: 1, or 3 for colour.
        layout: how the pixels are stored.
        series: Series Instance UID.
        photometric: photometric interpretation.
        slopes: rescale slope of all frames, or of each.
        intercepts: rescale intercept of all frames, or of each.
        unit: ``"HU"`` for CT whose header says how stored values become HU.
        spacing: mm between columns and between rows, as stated; ``None`` where it is not.
        assumed: mm along x, y and z for a single frame that states no spacing: those at the detector, and 1.
        orientation: Image Orientation (Patient), six numbers.
        positions: Image Position (Patient) of the frames, or none.
        windows: window centre, width and VOI LUT function of all frames, or of each.
        palette: raw tags of the palette.
        burned_in: whether the header says that text is burned into the picture.
    """

    path: Path
    size: tuple[int, int, int]
    channels: int
    layout: Layout
    series: str = field(repr=False)
    photometric: str
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    unit: Unit
    spacing: tuple[float, float] | None
    assumed: tuple[float, float, float]
    orientation: tuple[float, ...] | None
    positions: tuple[tuple[float, ...], ...]
    windows: tuple[tuple[float, float, str], ...]
    palette: dict[int, bytes] = field(repr=False)
    burned_in: bool


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: with the prefix ``DICM`` at byte 128, or without it with an element.

    Raises:
        DataError: the file cannot be opened.
    """
    return starts_like_dicom(head(path, 132))


def read_header(path: Path, *, placed: bool = True) -> Header:
    """Read what matters of a file's header; no pixels are read.

    Args:
        path: the file.
        placed: whether spacing, orientation and positions matter; else they are not looked at.

    Raises:
        DataError: the file is no DICOM, damaged or without pixels; a tag holds something else than numbers; the pixels
            are fewer or more than the header states; or the slope is 0.
    """
    with open_source(path) as source:
        return header_of(path, source, placed=placed)[0]


def header_of(path: Path, source: Source, *, placed: bool = True) -> tuple[Header, Source]:
    """Read a header from an open file.

    Returns:
        The header, and where its pixels are to be read from.

    Raises:
        DataError: see :func:`read_header`.
    """
    elements, content = read_elements(
        path, source, _WANTED, lambda found: _layout(path, found, Tags(path, found.values, found.coding.order))
    )
    return _header(path, elements, placed), content


def _header(path: Path, elements: Elements, placed: bool) -> Header:
    tags = Tags(path, elements.values, elements.coding.order)
    layout = _layout(path, elements, tags)
    shared, frames = _groups(tags, _SHARED), _groups(tags, _PER_FRAME)
    levels = [*shared, tags]
    if len(frames) != layout.frames:
        frames = []
    found = [[*([frame] if frame else []), *levels] for frame in frames] or [levels]
    slopes = tuple(_first(level, 0x00281053, 1.0) for level in found)
    intercepts = tuple(_first(level, 0x00281052, 0.0) for level in found)
    if tags.has(0x3004000E) and not tags.has(0x00281053):
        slopes = (tags.number(0x3004000E, 1.0),)
    if 0 in slopes:
        raise DataError(f"{path}: expected a Rescale Slope other than 0, got 0. Correct the header.")
    scaled = all(any(level.has(0x00281052) for level in levels) for levels in found)
    units = {next((level.text(0x00281054) for level in levels if level.has(0x00281054)), "") for levels in found}
    is_ct = tags.text(0x00080060) == "CT" and scaled and units <= {"", "HU", "US"}
    photometric = layout.photometric
    spacing = _agreeing(path, found, 0x00280030, 2) if placed else None
    positions = [_numbers_of(levels, 0x00200032, 3) for levels in found] if placed else []
    return Header(
        path=path,
        size=(layout.columns, layout.rows, layout.frames),
        channels=1 if photometric in GREY else 3,
        layout=layout,
        series=tags.text(0x0020000E),
        photometric=photometric,
        slopes=slopes if len(set(slopes)) > 1 else slopes[:1],
        intercepts=intercepts if len(set(intercepts)) > 1 else intercepts[:1],
        unit="HU" if is_ct else "any",
        # The tag states the distance between rows first.
        spacing=None if spacing is None else (spacing[1], spacing[0]),
        assumed=_assumed(tags) if placed else (1.0, 1.0, 1.0),
        orientation=_agreeing(path, found, 0x00200037, 6) if placed else None,
        positions=tuple(place for place in positions if place is not None) if len(found) == layout.frames else (),
        windows=tuple(_window(levels) for levels in found),
        palette={tag: tags.raw(tag) for tag in _PALETTE if tag in elements.values},
        burned_in=tags.text(0x00280301).upper() == "YES",
    )


def _assumed(tags: Tags) -> tuple[float, float, float]:
    rows, columns = tags.numbers(0x00181164, 2) or (1.0, 1.0)
    return columns, rows, tags.number(0x00180088, 1.0)


def _layout(path: Path, elements: Elements, tags: Tags) -> Layout:
    element = elements.pixels
    if element is None:
        kind = kind_without_pixels(elements)
        got = f"one without pixels (kind: {kind})" if kind else "one without pixels"
        raise DataError(f"{path}: expected a DICOM picture, got {got}. Leave it out, or get the file again.")
    rows, columns = tags.whole(0x00280010), tags.whole(0x00280011)
    samples = tags.whole(0x00280002, 1)
    allocated = tags.whole(0x00280100, {0x7FE00008: 32, 0x7FE00009: 64}.get(element.tag))
    stored = tags.whole(0x00280101, allocated)
    # Where all bits are in use there is one highest, whatever a header says that was copied from another file.
    high = stored - 1 if stored == allocated else tags.whole(0x00280102, stored - 1)
    # Some writers state 0 frames for a picture of one; the length of the pixels is compared all the same.
    frames = tags.number(0x00280008, 1.0) or 1.0
    if not (rows and columns and 1 <= frames <= 2**31 and frames == int(frames)):
        raise DataError(
            f"{path}: expected at least one row, column and frame, got {rows}, {columns} and {frames:g}. Correct the "
            "header."
        )
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= high + 1 <= allocated:
        raise DataError(
            f"{path}: expected 1, 8, 16, 32 or 64 bits allocated and no more in use, got {allocated} allocated, "
            f"{stored} stored and {high} as the high bit. Correct the header."
        )
    photometric = tags.text(0x00280004).upper() or "MONOCHROME2"
    wanted = 1 if photometric in GREY or photometric == PALETTE else 3 if photometric in _COLOURS else 0
    if samples != wanted:
        raise DataError(
            f"{path}: expected 1 value a pixel of grey or a palette, or 3 of a colour, got {samples} of "
            f"{'another kind' if not wanted else photometric}. Convert the file to MONOCHROME2 or RGB."
        )
    layout = Layout(
        rows=rows,
        columns=columns,
        frames=int(frames),
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=tags.whole(0x00280103, 0) == 1,
        planar=tags.whole(0x00280006, 0) == 1,
        syntax=elements.syntax,
        order=">" if elements.syntax == GE_PRIVATE and photometric in GREY else elements.coding.order,
        element=element,
        offsets=tags.raw(0x7FE00001),
    )
    if element.fragments is None:
        _check_length(path, layout)
    return layout


def _check_length(path: Path, layout: Layout) -> None:
    """Check the pixels' bytes against the header; an odd number may be padded by one byte (PS3.5 8.1.1)."""
    values = layout.rows * layout.columns * layout.samples
    if layout.photometric == "YBR_FULL_422":
        values = values * 2 // 3
    wanted = -(-values * layout.frames * layout.allocated // 8)
    length = layout.element.length
    if length != wanted and length != wanted + wanted % 2:
        why = "cut short" if length < wanted else "damaged, or its header was changed"
        raise DataError(
            f"{path}: expected {layout.frames} x {layout.rows} x {layout.columns} pixels of {layout.samples} x "
            f"{layout.allocated} bits ({wanted:,} bytes), got {length:,} bytes of pixel data. The file is {why}: "
            "export it again, or use on_error=skip to leave it out."
        )


class Tags:
    """The raw tags of a file's own level, or of one item of a sequence, as text and numbers."""

    __slots__ = ("_order", "_path", "_values")

    def __init__(self, path: Path, values: Values, order: str) -> None:
        self._path, self._values, self._order = path, values, order

    def raw(self, tag: int) -> bytes:
        """A tag's bytes; none where it is not there."""
        value = self._values.get(tag, b"")
        return value if isinstance(value, bytes) else b""

    def items(self, tag: int) -> list[Tags]:
        """The items of a sequence."""
        value = self._values.get(tag)
        return [Tags(self._path, item, self._order) for item in value] if isinstance(value, list) else []

    def text(self, tag: int) -> str:
        """A tag's text; empty where it is not there."""
        return self.raw(tag).decode("ascii", "replace").strip(" \0")

    def has(self, tag: int) -> bool:
        """Whether a tag is there and not empty."""
        return bool(self.text(tag))

    def whole(self, tag: int, default: int | None = None) -> int:
        """A tag of the type US; ``default`` where it is not there.

        Raises:
            DataError: it is of another length, or missing where there is no default.
        """
        value = self.raw(tag)
        if not value and default is not None:
            return default
        if len(value) < 2 or len(value) > 4:
            raise DataError(
                f"{self._path}: expected a whole number of 16 bits in the tag ({tag >> 16:04X},{tag & 0xFFFF:04X}), "
                f"got {len(value)} bytes. Correct the header."
            )
        return int(struct.unpack_from(f"{self._order}H", value)[0])

    def numbers(self, tag: int, count: int | None = None) -> tuple[float, ...] | None:
        """The numbers of a tag of the type DS or IS; ``None`` where it is not there or empty.

        Raises:
            DataError: it holds something else, or another number of them.
        """
        text = self.text(tag)
        if not text:
            return None
        try:
            values = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            values = ()
        if not values or (count is not None and len(values) != count):
            wanted = "numbers" if count is None else f"{count} numbers"
            raise DataError(
                f"{self._path}: expected {wanted} in the tag {_NAMES[tag]}, got something else. Correct the header."
            )
        if not all(map(math.isfinite, values)):
            raise DataError(
                f"{self._path}: expected finite numbers in the tag {_NAMES[tag]}, got NaN or infinity. Correct the "
                "header."
            )
        return values

    def number(self, tag: int, default: float) -> float:
        """The first number of a tag, or ``default`` where it is not there or empty."""
        values = self.numbers(tag)
        return default if values is None else values[0]


class _Group(Tags):
    """The functional groups of a frame, or those that all frames share, as if their tags stood side by side."""

    def __init__(self, path: Path, item: Values, order: str) -> None:
        merged: Values = {}
        for value in item.values():
            if isinstance(value, list) and value:
                merged |= value[0]
        super().__init__(path, merged, order)


def _groups(tags: Tags, sequence: int) -> list[Tags]:
    return [_Group(tags._path, item._values, tags._order) for item in tags.items(sequence)]


def _first(levels: list[Tags], tag: int, default: float) -> float:
    return next((level.number(tag, default) for level in levels if level.has(tag)), default)


def _numbers_of(levels: list[Tags], tag: int, count: int) -> tuple[float, ...] | None:
    return next((level.numbers(tag, count) for level in levels if level.has(tag)), None)


def _window(levels: list[Tags]) -> tuple[float, float, str]:
    """The first window; ``nan`` where there is none."""
    level = next((level for level in levels if level.has(0x00281050) and level.has(0x00281051)), None)
    if level is None:
        return math.nan, math.nan, ""
    return level.number(0x00281050, math.nan), level.number(0x00281051, math.nan), level.text(0x00281056)


def _agreeing(path: Path, found: list[list[Tags]], tag: int, count: int) -> tuple[float, ...] | None:
    values = [value for levels in found if (value := _numbers_of(levels, tag, count)) is not None]
    if not values or len(values) != len(found):
        return None
    if np.abs(np.array(values) - values[0]).max() > 1e-3:
        raise DataError(f"{path}: expected one {_NAMES[tag]} for all frames, got several. Split the file.")
    return values[0]
