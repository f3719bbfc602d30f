"""Read headers of MetaImage files (itk.org/Wiki/ITK/MetaIO/Documentation), with their data or detached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from medmllm_plugins.data.readers.volume_headers import (
    IDENTITY,
    DataLocation,
    VolumeHeader,
    bad_field,
    check_header,
    cut_short,
    header_lines,
    not_scalar,
    numbers,
    three_axes,
    whole_numbers,
    wrong_content,
)
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import data_file_below, open_regular, size_of
from medmllm_plugins.utils.suggestions import one_edit_apart

_TYPES: Final = {
    **{"CHAR": "i1", "SHORT": "i2", "INT": "i4", "LONG": "i4", "LONG_LONG": "i8"},
    **{"UCHAR": "u1", "USHORT": "u2", "UINT": "u4", "ULONG": "u4", "ULONG_LONG": "u8"},
    **{"FLOAT": "f4", "DOUBLE": "f8"},
}
_BOOLEANS: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_READ: Final = (
    *("ObjectType", "NDims", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"),
    *("CompressedDataSize", "TransformMatrix", "Rotation", "Orientation", "ElementSpacing", "ElementSize", "DimSize"),
    *("HeaderSize", "ElementNumberOfChannels", "ElementType", "ElementDataFile"),
)
"""Fields about voxels and geometry; all others are skipped."""


def read_metaimage_header(path: Path) -> VolumeHeader:
    """Read and check the header of a MetaImage.

    A MetaImage without TransformMatrix is read as LPS. The format allows private fields; one whose name is a letter
    away from a known field is an error. Compressed data have a checksum (Adler-32); of raw data the length is checked.
    """
    fields, end = _parse(path)
    (dimensions,) = whole_numbers(path, "NDims", fields.get("NDims", ""), 1)
    if not 1 <= dimensions <= 10:
        raise bad_field(path, "NDims", "2 or 3", dimensions)
    sizes = whole_numbers(path, "DimSize", fields.get("DimSize", ""), dimensions)
    shape, flat = three_axes(path, sizes)
    if (channels := fields.get("ElementNumberOfChannels", "1")) != "1":
        raise not_scalar(path, f"{shown(channels)} (colours, vectors or complex numbers)")
    dtype = _dtype(path, fields)
    name = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    steps = numbers(path, name, fields.get(name, " ".join("1" * dimensions)), dimensions)
    x, y, z = (*steps, 1.0)[:3] if flat else steps[:3]
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    return check_header(
        VolumeHeader(
            path=path,
            shape=shape,
            spacing=(z, y, x),
            direction=_direction(path, fields, dimensions, flat),
            flat=flat,
            dtype=dtype,
            data=_location(path, fields, end, nbytes),
        )
    )


def _parse(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields by name, and the position behind the last one, ElementDataFile."""
    lines, _ = header_lines(path)
    fields: dict[str, str] = {}
    position = 0
    for line, behind in lines:
        if not line.strip():
            continue
        name, equals, value = (part.strip(" \t") for part in line.partition("="))
        if not equals:
            raise wrong_content(path, "a MetaImage")
        if name in _READ:
            if name in fields or not (value.isascii() and value.replace("\t", " ").isprintable()):
                raise bad_field(path, name, "text, once", value)
            fields[name] = value.replace("\t", " ")
            if name == "ElementDataFile":
                position = behind
                break
        elif near := next(
            (known for known in _READ if one_edit_apart(name, known) or name.lower() == known.lower()), ""
        ):
            raise DataError(
                f"{path}: expected the field {near}, got {shown(name)}; the header is damaged: get the file again."
            )
    else:
        raise wrong_content(path, "a MetaImage with the field ElementDataFile")
    if fields.get("ObjectType", "Image") != "Image":
        raise bad_field(path, "ObjectType", "Image", fields["ObjectType"])
    return fields, position


def _flag(path: Path, fields: dict[str, str], name: str, default: bool) -> bool:
    value = _BOOLEANS.get(fields.get(name, str(default)).lower())
    if value is None:
        raise bad_field(path, name, "True or False", fields[name])
    return value


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype[Any]:
    text = fields.get("ElementType", "")
    name = _TYPES.get(text.removeprefix("MET_").removesuffix("_ARRAY")) if text.startswith("MET_") else None
    if name is None:
        raise bad_field(path, "ElementType", "a type of real numbers such as MET_SHORT", text)
    stated = [name for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if name in fields]
    orders = {_flag(path, fields, order, False) for order in stated}
    if len(orders) > 1:
        raise bad_field(path, "ElementByteOrderMSB", "BinaryDataByteOrderMSB says", fields["ElementByteOrderMSB"])
    if not _flag(path, fields, "BinaryData", True):
        raise bad_field(path, "BinaryData", "True; voxels as text are not read", fields["BinaryData"])
    return np.dtype(name).newbyteorder(">" if orders == {True} else "<")


def _direction(path: Path, fields: dict[str, str], dimensions: int, flat: bool) -> tuple[float, ...]:
    """Return the direction matrix; the file states its columns one after the other."""
    stated = [name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields]
    if not stated:
        return IDENTITY
    if len(stated) > 1:
        raise bad_field(path, stated[1], "nothing, as TransformMatrix states the same", fields[stated[1]])
    values = numbers(path, stated[0], fields[stated[0]], dimensions**2)
    matrix = np.array(values, np.float64).reshape(dimensions, dimensions).T
    full = np.eye(3)
    used = 2 if flat else 3
    full[:used, :used] = matrix[:used, :used]
    return tuple(full.ravel().tolist())


def _location(path: Path, fields: dict[str, str], end: int, nbytes: int) -> DataLocation:
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    if not local and re.search(r"(?:\s-?\d+){2,3}$", name):
        name = f"LIST {name}"
    data = path if local else data_file_below(path, name)
    offset = end if local else 0
    (skip,) = whole_numbers(path, "HeaderSize", fields.get("HeaderSize", "0"), 1)
    packed = _flag(path, fields, "CompressedData", False)
    if skip < -1 or (skip > 0 and local) or (skip != 0 and packed):
        raise bad_field(path, "HeaderSize", "0, or -1 or a number of bytes before raw data in another file", skip)
    if not packed:
        return DataLocation(data, offset + max(skip, 0), to_end=skip < 0)
    with open_regular(data) as opened:
        held = size_of(opened) - offset
    (stated,) = whole_numbers(path, "CompressedDataSize", fields.get("CompressedDataSize", str(held)), 1)
    if held < stated:
        raise cut_short(data, stated, held)
    if held > stated:
        raise bad_field(path, "CompressedDataSize", f"the {held:,} bytes that there are", stated)
    return DataLocation(data, offset, "zlib")
