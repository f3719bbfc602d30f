"""Read the DICOM attributes about pixels and geometry, also from the functional groups of frames.

No name, number, date or description of a patient is read, and errors quote no header value that is text. Identifiers
of series are compared within the process and never written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from pydicom.datadict import dictionary_description

from medmllm_plugins.data.readers.dicom_attributes import FUNCTIONAL_GROUPS, Attributes
from medmllm_plugins.data.readers.dicom_elements import Elements, PixelElement, Selection, read_elements
from medmllm_plugins.data.readers.dicom_kinds import kind_without_pixels
from medmllm_plugins.data.readers.intensity_windows import Unit
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import open_regular

_PALETTE: Final = tuple(
    keyword.format(colour)
    for keyword in (
        "{}PaletteColorLookupTableDescriptor",
        "{}PaletteColorLookupTableData",
        "Segmented{}PaletteColorLookupTableData",
    )
    for colour in ("Red", "Green", "Blue")
)
_FRAME: Final = Selection(
    PlanePositionSequence=Selection("ImagePositionPatient"),
    PlaneOrientationSequence=Selection("ImageOrientationPatient"),
    PixelMeasuresSequence=Selection("PixelSpacing"),
    FrameVOILUTSequence=Selection("WindowCenter", "WindowWidth", "VOILUTFunction"),
    PixelValueTransformationSequence=Selection("RescaleIntercept", "RescaleSlope", "RescaleType"),
)
_SELECTION: Final = Selection(
    *("SOPClassUID", "Modality", "SeriesInstanceUID", "DoseGridScaling", "ExtendedOffsetTable"),
    *("SpacingBetweenSlices", "ImagerPixelSpacing", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "RescaleType"),
    *_PALETTE,
    **dict.fromkeys(FUNCTIONAL_GROUPS, _FRAME),
)
_COLOURS: Final = frozenset(
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
)
GREY: Final = frozenset(("MONOCHROME1", "MONOCHROME2"))
PALETTE: Final = "PALETTE COLOR"
GE_PRIVATE: Final = "1.2.840.113619.5.2"
"""Transfer syntax of old scanners of GE: implicit little-endian elements, but big-endian pixels."""


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How the pixels of a file are stored (PS3.3 C.7.6.3).

    Attributes:
        samples: values a pixel, 1 or 3.
        allocated: bits a value takes, 1 or whole bytes.
        stored: bits of these in use.
        high: the highest of these.
        planar: of three values a pixel, whether each has a plane of its own.
        order: byte order, as ``struct`` calls it.
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
    def frame_values(self) -> int:
        """Values of a frame that is not compressed."""
        values = self.rows * self.columns * self.samples
        # In YBR_FULL_422 two pixels share their colour.
        return values * 2 // 3 if self.photometric == "YBR_FULL_422" else values


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """The tags of one file that matter.

    Attributes:
        size: columns, rows and frames.
        channels: 1, or 3 for colour.
        slopes: rescale slope of all frames, or of each.
        intercepts: rescale intercept of all frames, or of each.
        unit: ``"HU"`` for CT whose header says how stored values become HU.
        spacing: mm between columns and between rows, as stated; ``None`` where it is not.
        assumed: mm along x, y and z for a single frame that states no spacing: those at the detector, and 1.
        orientation: Image Orientation (Patient), six numbers.
        positions: Image Position (Patient) of the frames, or none.
        windows: window centre, width and VOI LUT function of all frames, or of each.
    """

    path: Path
    size: tuple[int, int, int]
    channels: int
    layout: PixelLayout
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
    palette: dict[str, bytes] = field(repr=False)


def read_header(path: Path, *, geometry: bool = True) -> DicomHeader:
    """Read the header of a file without its pixels; spacing, orientation and positions only with ``geometry``.

    Raises:
        DataError: the file is no DICOM, damaged or without pixels; an attribute holds something else than numbers; the
            pixels are fewer or more than the header states; or the slope is 0.
    """
    with open_regular(path) as opened:
        return header_of(path, opened, geometry=geometry)[0]


def header_of(path: Path, opened: BinaryIO, *, geometry: bool = True) -> tuple[DicomHeader, BinaryIO]:
    """Read a header from an open file, with the errors of :func:`read_header`.

    Returns:
        The header, and the stream to read its pixels from.
    """
    elements, stream = read_elements(path, opened, _SELECTION)
    attributes = Attributes(path, elements.values, elements.encoding.byte_order)
    layout = _layout(path, elements, attributes)
    frames = attributes.frames(layout.frames)
    slopes, unit = _rescale(path, attributes, frames)
    intercepts = tuple(frame.number("RescaleIntercept", 0.0) for frame in frames)
    spacing = _common(path, frames, "PixelSpacing", 2) if geometry else None
    positions = [frame.numbers("ImagePositionPatient", 3) for frame in frames] if geometry else []
    rows, columns = (attributes.numbers("ImagerPixelSpacing", 2) if geometry else None) or (1.0, 1.0)
    header = DicomHeader(
        path=path,
        size=(layout.columns, layout.rows, layout.frames),
        channels=1 if layout.photometric in GREY else 3,
        layout=layout,
        series=attributes.text("SeriesInstanceUID"),
        photometric=layout.photometric,
        slopes=slopes if len(set(slopes)) > 1 else slopes[:1],
        intercepts=intercepts if len(set(intercepts)) > 1 else intercepts[:1],
        unit=unit,
        # The attribute states the distance between rows first.
        spacing=None if spacing is None else (spacing[1], spacing[0]),
        assumed=(columns, rows, attributes.number("SpacingBetweenSlices", 1.0) if geometry else 1.0),
        orientation=_common(path, frames, "ImageOrientationPatient", 6) if geometry else None,
        positions=tuple(filter(None, positions)) if len(frames) == layout.frames else (),
        windows=tuple(_window(frame) for frame in frames),
        palette={keyword: attributes.raw(keyword) for keyword in _PALETTE if keyword in elements.values},
    )
    return header, stream


def _rescale(path: Path, attributes: Attributes, frames: Sequence[Attributes]) -> tuple[tuple[float, ...], Unit]:
    """Return the slope of each frame, and the unit of the rescaled values."""
    slopes = tuple(frame.number("RescaleSlope", 1.0) for frame in frames)
    if attributes.has("DoseGridScaling") and not attributes.has("RescaleSlope"):
        slopes = (attributes.number("DoseGridScaling", 1.0),)
    if 0 in slopes:
        raise DataError(f"{path}: expected a Rescale Slope other than 0, got 0. Correct the header.")
    hounsfield = (
        attributes.text("Modality") == "CT"
        and all(frame.has("RescaleIntercept") for frame in frames)
        and {frame.text("RescaleType") for frame in frames} <= {"", "HU", "US"}
    )
    return slopes, "HU" if hounsfield else "any"


def _layout(path: Path, elements: Elements, attributes: Attributes) -> PixelLayout:
    element = elements.pixels
    if element is None:
        kind = kind_without_pixels(elements)
        got = f"one without pixels (kind: {kind})" if kind else "one without pixels"
        raise DataError(f"{path}: expected a DICOM picture, got {got}. Leave it out, or get the file again.")
    rows, columns = attributes.integer("Rows"), attributes.integer("Columns")
    samples = attributes.integer("SamplesPerPixel", 1)
    allocated = attributes.integer("BitsAllocated", {0x7FE00008: 32, 0x7FE00009: 64}.get(element.tag))
    stored = attributes.integer("BitsStored", allocated)
    # Where all bits are in use there is one highest, whatever a header says that was copied from another file.
    high = stored - 1 if stored == allocated else attributes.integer("HighBit", stored - 1)
    # Some writers state 0 frames for a picture of one; the length of the pixels is compared all the same.
    frames = attributes.number("NumberOfFrames", 1.0) or 1.0
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
    photometric = attributes.text("PhotometricInterpretation").upper() or "MONOCHROME2"
    wanted = 1 if photometric in GREY or photometric == PALETTE else 3 if photometric in _COLOURS else 0
    if samples != wanted:
        raise DataError(
            f"{path}: expected 1 value a pixel of grey or a palette, or 3 of a colour, got {samples} of "
            f"{'another kind' if not wanted else photometric}. Convert the file to MONOCHROME2 or RGB."
        )
    layout = PixelLayout(
        rows=rows,
        columns=columns,
        frames=int(frames),
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=attributes.integer("PixelRepresentation", 0) == 1,
        planar=attributes.integer("PlanarConfiguration", 0) == 1,
        syntax=elements.syntax,
        order=">" if elements.syntax == GE_PRIVATE and photometric in GREY else elements.encoding.byte_order,
        element=element,
        offsets=attributes.raw("ExtendedOffsetTable"),
    )
    if element.fragments is None:
        _check_length(path, layout)
    return layout


def _check_length(path: Path, layout: PixelLayout) -> None:
    """Check the pixels' bytes against the header; an odd number may be padded by one byte (PS3.5 8.1.1)."""
    wanted = -(-layout.frame_values * layout.frames * layout.allocated // 8)
    length = layout.element.length
    if length != wanted and length != wanted + wanted % 2:
        why = "cut short" if length < wanted else "damaged, or its header was changed"
        raise DataError(
            f"{path}: expected {layout.frames} x {layout.rows} x {layout.columns} pixels of {layout.samples} x "
            f"{layout.allocated} bits ({wanted:,} bytes), got {length:,} bytes of pixel data. The file is {why}: "
            "export it again, or use on_error=skip to leave it out."
        )


def _window(frame: Attributes) -> tuple[float, float, str]:
    """Return centre, width and function of the first window; ``nan`` if there is none."""
    if not (frame.has("WindowCenter") and frame.has("WindowWidth")):
        return math.nan, math.nan, ""
    return frame.number("WindowCenter", math.nan), frame.number("WindowWidth", math.nan), frame.text("VOILUTFunction")


def _common(path: Path, frames: Sequence[Attributes], keyword: str, count: int) -> tuple[float, ...] | None:
    """Return numbers that all frames share; ``None`` if a frame does not state them."""
    values = [frame.numbers(keyword, count) for frame in frames]
    first = values[0]
    if first is None or None in values:
        return None
    if np.abs(np.array(values, np.float64) - first).max() > 1e-3:
        name = dictionary_description(keyword)
        raise DataError(f"{path}: expected one {name} for all frames, got several. Split the file.")
    return first
