"""The tags of a DICOM file that matter: those about pixels and geometry, also within the sequences of its frames.

No name, number, date or description of a patient is read, and errors never quote a header value that is text.
"""

# SimpleITK declares that it is typed but annotates next to nothing.
# mypy: untyped-calls-exclude="SimpleITK"

from __future__ import annotations

import math
import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import SimpleITK as sitk

from medmllm_plugins.data.itk import check_spacing, head, open_image
from medmllm_plugins.data.windows import Unit
from medmllm_plugins.errors import DataError

_MAGIC = b"DICM"


@dataclass(frozen=True, slots=True)
class Header:
    """The tags of one file that matter; all frames of a multi-frame file share them but for the positions."""

    path: Path
    reader: sitk.ImageFileReader = field(repr=False)
    size: tuple[int, int, int]
    channels: int
    series: str = field(repr=False)
    photometric: str
    slope: float
    intercept: float
    unit: Unit
    spacing: tuple[float, float] | None  # between columns, between rows
    orientation: tuple[float, ...] | None
    positions: tuple[tuple[float, ...], ...]


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix: 128 bytes, then ``DICM`` (older files without it are not supported).

    Raises:
        DataError: the file cannot be opened.
    """
    return head(path, 132)[128:] == _MAGIC


def read_header(path: Path) -> Header:
    """Read what matters of a file's header.

    Raises:
        DataError: the file is no DICOM or damaged, a tag holds something else than numbers, or the slope is 0.
    """
    if not is_dicom(path):
        raise DataError(
            f"{path}: expected a DICOM file, found one without the prefix DICM at byte 128; move other files out of "
            "the folder, or get the file again."
        )
    reader = open_image(path, "GDCMImageIO")
    tags = Tags(path, reader)
    size = tuple(reader.GetSize()) + (1,) * (3 - reader.GetDimension())
    frames = _frame_tags(path) if size[2] > 1 else None
    if frames is not None:
        slope, intercept = frames.same("slope", default=1.0), frames.same("intercept", default=0.0)
        scaled = bool(frames.found["intercept"])
        spacing, orientation = frames.spacing(), frames.orientation()
        positions = frames.positions(size[2])
    else:
        slope, intercept = tags.number("0028|1053", "Rescale Slope", 1.0), tags.number("0028|1052", "Intercept", 0.0)
        scaled = tags.has("0028|1052")
        spacing, orientation = tags.spacing(), tags.numbers("0020|0037", "Image Orientation", 6)
        position = tags.numbers("0020|0032", "Image Position", 3)
        positions = () if position is None else (position,)
    if slope == 0:
        raise DataError(f"{path}: expected a Rescale Slope other than 0, found 0; correct the header.")
    ct = tags.text("0008|0060") == "CT" and scaled and tags.text("0028|1054") in ("", "HU", "US")
    return Header(
        path=path,
        reader=reader,
        size=(size[0], size[1], size[2]),
        channels=reader.GetNumberOfComponents(),
        series=tags.text("0020|000e"),
        photometric=tags.text("0028|0004"),
        slope=slope,
        intercept=intercept,
        unit="HU" if ct else "any",
        spacing=spacing,
        orientation=orientation,
        positions=positions,
    )


class Tags:
    """The tags of a file's own level; those within sequences SimpleITK does not show."""

    def __init__(self, path: Path, reader: sitk.ImageFileReader) -> None:
        self.path = path
        self.reader = reader

    def has(self, tag: str) -> bool:
        """Whether a tag, as ``"gggg|eeee"``, is there and not empty."""
        return bool(self.text(tag))

    def text(self, tag: str) -> str:
        """A tag's text; empty where it is not there."""
        return str(self.reader.GetMetaData(tag)).strip(" \0") if self.reader.HasMetaDataKey(tag) else ""

    def numbers(self, tag: str, name: str, count: int | None = None) -> tuple[float, ...] | None:
        """The numbers of a tag, or ``None`` where it is not there or empty."""
        text = self.text(tag)
        return _numbers(text, self.path, name, count) if text else None

    def number(self, tag: str, name: str, default: float) -> float:
        """The first number of a tag, or ``default`` where it is not there or empty."""
        found = self.numbers(tag, name)
        return default if found is None else found[0]

    def spacing(self) -> tuple[float, float] | None:
        """Distances in mm between columns and between rows; ``None`` where they are not stated."""
        found = self.numbers("0028|0030", "Pixel Spacing", 2)
        # The tag states the distance between rows first.
        return None if found is None else (found[1], found[0])


def _numbers(text: str, path: Path, name: str, count: int | None) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        values = ()
    if not values or (count is not None and len(values) != count):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise DataError(f"{path}: expected {wanted} in the tag {name}, found something else; correct the header.")
    if name == "Pixel Spacing":
        check_spacing(values, path)
    if not all(map(math.isfinite, values)):
        raise DataError(
            f"{path}: expected finite numbers in the tag {name}, found NaN or infinity; correct the header."
        )
    return values


class _FrameTags:
    """Tags of the frames, found by their bytes, as SimpleITK shows nothing that lies in a sequence.

    The bytes are those of a little-endian data set, with or without the type of the value; what is found counts only
    if it reads as numbers and there is one for all frames or one for each.
    """

    _TAGS: ClassVar[dict[str, bytes]] = {
        "position": b"\x20\x00\x32\x00",
        "orientation": b"\x20\x00\x37\x00",
        "spacing": b"\x28\x00\x30\x00",
        "intercept": b"\x28\x00\x52\x10",
        "slope": b"\x28\x00\x53\x10",
    }

    def __init__(self, path: Path, content: bytes | mmap.mmap) -> None:
        self.path = path
        end = content.rfind(b"\xe0\x7f\x10\x00O")
        end = end if end >= 0 else len(content)
        self.found = {name: self._values(content, tag, end) for name, tag in self._TAGS.items()}

    @staticmethod
    def _values(content: bytes | mmap.mmap, tag: bytes, end: int) -> list[str]:
        values = []
        for match in re.compile(re.escape(tag) + rb"(?:DS(..)|(..)\0\0)([-+0-9.eE\\ ]*)", re.DOTALL).finditer(
            content, 0, end
        ):
            length = int.from_bytes(match[1] or match[2], "little")
            text = match[3][:length]
            if len(text) == length and text.strip():
                values.append(text.decode("ascii").strip())
        return values

    def same(self, name: str, default: float) -> float:
        values = {_numbers(text, self.path, name, 1)[0] for text in self.found[name]}
        if len(values) > 1:
            raise DataError(
                f"{self.path}: expected one rescale {name} for all frames, found {len(values)}, which SimpleITK does "
                "not apply frame by frame; convert the file to one with a single slope and intercept."
            )
        return values.pop() if values else default

    def spacing(self) -> tuple[float, float] | None:
        values = self._agreeing("spacing", "Pixel Spacing", 2)
        return None if values is None else (values[1], values[0])

    def orientation(self) -> tuple[float, ...] | None:
        return self._agreeing("orientation", "Image Orientation", 6)

    def positions(self, frames: int) -> tuple[tuple[float, ...], ...]:
        values = tuple(_numbers(text, self.path, "Image Position", 3) for text in self.found["position"])
        return values if len(values) == frames else ()

    def _agreeing(self, name: str, tag: str, count: int) -> tuple[float, ...] | None:
        values = [_numbers(text, self.path, tag, count) for text in self.found[name]]
        if not values:
            return None
        if np.abs(np.array(values) - values[0]).max() > 1e-3:
            raise DataError(f"{self.path}: expected one {tag} for all frames, found several; split the file.")
        return values[0]


def _frame_tags(path: Path) -> _FrameTags:
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _FrameTags(path, content)
