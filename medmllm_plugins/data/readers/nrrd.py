"""Read headers of NRRD files (teem.sourceforge.net/nrrd/format.html), with their data or detached."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from medmllm_plugins.data.readers.byte_sources import Packing
from medmllm_plugins.data.readers.volume_headers import (
    IDENTITY,
    LONGEST_HEADER,
    DataLocation,
    VolumeHeader,
    bad_field,
    check_header,
    check_spacing,
    header_lines,
    not_scalar,
    not_three,
    numbers,
    three_axes,
    unit_columns,
    whole_numbers,
    wrong_content,
)
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import data_file_below, head, open_regular

_NAMES: Final = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
"""NumPy's types to their names in headers, and fields to other spellings."""
_TYPES: Final[Mapping[str, str]] = {name: dtype for dtype, names in _NAMES["types"].items() for name in names}
_PACKINGS: Final[dict[str, Packing]] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
    "hex": "hex",
}
_ORDERS: Final[dict[str, Literal["<", ">"]]] = {"little": "<", "big": ">"}
_TURNS: Final = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (1.0, 1.0, 1.0)),
}
"""Spaces, and the signs that turn them into LPS."""
_PLAIN_KINDS: Final = frozenset({"domain", "space", "time", "???", "none", ""})
_FIELDS: Final[Mapping[str, list[str]]] = _NAMES["fields"]
_OTHER_NAMES: Final = {other: name for name, others in _FIELDS.items() for other in others}


def read_nrrd_header(path: Path) -> VolumeHeader:
    """Read and check the header of an NRRD file.

    Unknown fields and fields stated twice are errors, as a misspelt `space directions` would otherwise lose the
    orientation. Raw data have no checksum: only their length is checked.
    """
    fields, end = _parse(path)
    (dimensions,) = whole_numbers(path, "dimension", fields.get("dimension", ""), 1)
    if not 1 <= dimensions <= 16:
        raise bad_field(path, "dimension", "2 or 3", dimensions)
    sizes = whole_numbers(path, "sizes", fields.get("sizes", ""), dimensions)
    spatial = _scalar_axes(path, fields, sizes)
    shape, flat = three_axes(path, [sizes[axis] for axis in spatial])
    dtype = _dtype(path, fields)
    spacing, direction = _geometry(path, fields, dimensions, spatial[: 2 if flat else 3], flat)
    return check_header(
        VolumeHeader(
            path=path,
            shape=shape,
            spacing=spacing,
            direction=direction,
            flat=flat,
            dtype=dtype,
            data=_location(path, fields, end),
        )
    )


def _parse(path: Path) -> tuple[dict[str, str], int | None]:
    """Return the fields by name, and where the data begin; ``None`` if a detached header ends with its file."""
    if not re.match(rb"NRRD000[1-5]\r?\n", head(path, 16)):
        raise wrong_content(path, "an NRRD file (version 1 to 5)")
    lines, start = header_lines(path)
    fields: dict[str, str] = {}
    for line, end in lines[1:]:
        if not line:
            return fields, end
        name, separator, value = line.partition(": ")
        if line.startswith("#") or ":=" in name or (not separator and ":=" in line):
            continue
        name = _OTHER_NAMES.get(name.lower(), name.lower())
        if not separator or name not in _FIELDS or name in fields:
            raise DataError(
                f"{path}: expected fields of the NRRD format, each once, got the line {shown(line)}; the header is "
                "damaged or of another kind: convert the file again."
            )
        if not (value.isascii() and value.replace("\t", " ").isprintable()) and name not in ("content", "labels"):
            raise bad_field(path, name, "text", value)
        fields[name] = value.replace("\t", " ").strip()
    if "data file" not in fields or len(start) >= LONGEST_HEADER:
        raise DataError(f"{path}: expected an NRRD header that ends with an empty line, got none: it is cut short.")
    return fields, None


def _scalar_axes(path: Path, fields: dict[str, str], sizes: tuple[int, ...]) -> list[int]:
    """Return the spatial axes; others, for the parts of vectors and colours, have to be of size 1."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    if len(kinds) != len(sizes):
        raise bad_field(path, "kinds", f"{len(sizes)} words", fields["kinds"])
    spatial = [axis for axis, kind in enumerate(kinds) if kind in _PLAIN_KINDS]
    channels = max((size for axis, size in enumerate(sizes) if axis not in spatial), default=1)
    if channels != 1:
        raise not_scalar(path, f"{channels} (colours, vectors or complex numbers)")
    return spatial


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    name = _TYPES.get(" ".join(fields.get("type", "").lower().split()))
    if name is None:
        raise bad_field(path, "type", "a type of real numbers such as short", fields.get("type", ""))
    dtype = np.dtype(name)
    order = _ORDERS.get(fields.get("endian", "").lower())
    if order is None and ("endian" in fields or (dtype.itemsize > 1 and _packing(path, fields) != "text")):
        raise bad_field(path, "endian", "little or big", fields.get("endian", ""))
    return dtype.newbyteorder(order) if order is not None else dtype


def _packing(path: Path, fields: dict[str, str]) -> Packing:
    packing = _PACKINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        raise bad_field(path, "encoding", "raw, gzip, bzip2, ascii or hex", fields.get("encoding", ""))
    return packing


def _geometry(
    path: Path, fields: dict[str, str], dimensions: int, axes: list[int], flat: bool
) -> tuple[tuple[float, float, float], tuple[float, ...] | None]:
    """Return spacings along z, y and x, and the directions."""
    space = fields.get("space", "").lower()
    turn = _TURNS.get(space.removesuffix("-time"))
    if not flat and (turn is None or "space directions" not in fields):
        raise DataError(
            f"{path}: expected an NRRD file whose field `space` states left, posterior and superior (or right, "
            "anterior) and whose field `space directions` goes with it, got none of these, so left and right are "
            "unknown; set it, or save the voxels as .npy."
        )
    if space and turn is None and flat:
        raise bad_field(path, "space", "left-posterior-superior, LAS or RAS", space)
    if "space directions" in fields:
        vectors = _vectors(path, fields["space directions"], dimensions)
        chosen = [vectors[axis] for axis in axes]
        if any(vector is None for vector in chosen):
            raise bad_field(path, "space directions", "a vector for each axis", fields["space directions"])
        parts = max(len(axes), 2)
        columns = np.array([[*(vector or ()), 0.0, 0.0, 0.0][:parts] for vector in chosen], np.float64).T
        if any(len(vector or ()) < parts or any((vector or ())[3:]) for vector in chosen) or (
            flat and any(any((vector or ())[2:]) for vector in chosen)
        ):
            raise bad_field(path, "space directions", f"vectors of {parts} numbers", fields["space directions"])
        columns, lengths = unit_columns(path, columns)
        full = np.eye(3)
        full[:parts, :parts] = columns
        turned = np.diag(turn or (1.0, 1.0, 1.0)) @ full
        x, y, z = (*lengths, 1.0)[:3]
        return (z, y, x), tuple(turned.ravel().tolist())
    if space:
        raise bad_field(path, "space directions", "vectors, as there is a `space`", "")
    steps = [1.0] * dimensions
    if "spacings" in fields:
        words = fields["spacings"].lower().split()
        if len(words) != dimensions:
            raise bad_field(path, "spacings", f"{dimensions} numbers", fields["spacings"])
        # "nan" stands for axes that are not in space, of which a volume has none.
        check_spacing([numbers(path, "spacings", word)[0] if word != "nan" else float("nan") for word in words], path)
        steps = [float(word) for word in words]
    x, y = (steps[axis] for axis in axes)
    return (1.0, y, x), IDENTITY


def _vectors(path: Path, text: str, dimensions: int) -> list[tuple[float, ...] | None]:
    """Parse a vector, or ``none``, for each axis."""
    words = re.findall(r"\([^()]*\)|[^\s()]+", text)
    vectors: list[tuple[float, ...] | None] = []
    for word in words:
        if word.lower() == "none":
            vectors.append(None)
            continue
        inner = word[1:-1] if word.startswith("(") and word.endswith(")") else "?"
        count = inner.count(",") + 1
        vectors.append(numbers(path, "space directions", inner.replace(",", " "), count))
    if len(vectors) != dimensions:
        raise bad_field(path, "space directions", f"{dimensions} vectors", text)
    return vectors


def _location(path: Path, fields: dict[str, str], end: int | None) -> DataLocation:
    packing = _packing(path, fields)
    (lines,) = whole_numbers(path, "line skip", fields.get("line skip", "0"), 1)
    (skip,) = whole_numbers(path, "byte skip", fields.get("byte skip", "0"), 1)
    if lines < 0 or skip < (-1 if packing == "raw" else 0) or lines > 10_000:
        raise bad_field(path, "byte skip" if lines == 0 else "line skip", "a number of bytes or lines", skip or lines)
    if "data file" in fields:
        name = fields["data file"]
        if re.search(r"(?:\s-?\d+){3,4}$", name):
            name = f"LIST {name}"
        data, offset = data_file_below(path, name), 0
    elif end is None:
        raise not_three(path, ())
    else:
        data, offset = path, end
    offset += _length_of_lines(data, offset, lines)
    if packing == "raw":
        return DataLocation(data, offset + max(skip, 0), packing, to_end=skip < 0)
    return DataLocation(data, offset, packing, skip)


def _length_of_lines(path: Path, offset: int, count: int) -> int:
    if not count:
        return 0
    with open_regular(path) as opened:
        opened.seek(offset)
        text = opened.read(LONGEST_HEADER)
    position = 0
    for _ in range(count):
        position = text.find(b"\n", position) + 1
        if position == 0:
            raise DataError(f"{path}: expected {count} lines before the data, got fewer; correct `line skip`.")
    return position
