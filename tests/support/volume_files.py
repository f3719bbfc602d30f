"""Small volume files for tests, and how SimpleITK reads them, which is the reference for files that are good."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medmllm_plugins.data.readers.volumes import Volume

SPACING = (0.5, 0.75, 2.0)  # x, y, z


def scan(
    dtype: type = np.int16, direction: Sequence[float] | None = None, shape: tuple[int, ...] = (4, 5, 6)
) -> sitk.Image:
    """An image of random numbers over much of the type's range."""
    generator = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        voxels = generator.normal(0, 1000, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        voxels = generator.integers(max(limits.min, -(2**40)), min(limits.max, 2**40), shape).astype(dtype)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING[: len(shape)])
    if direction is not None:
        image.SetDirection([float(part) for part in direction])
    return image


def by_simpleitk(path: Path, orientation: str = "RAS") -> Volume:
    """What SimpleITK reads, in the orientation asked for."""
    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() == 1 and image.GetPixelID() > 12:
        image = sitk.VectorIndexSelectionCast(image, 0)
    if image.GetDimension() == 2:
        image = sitk.JoinSeries([image])
        direction = image.GetDirection()
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)
    else:
        while image.GetDimension() > 3:
            image = sitk.Extract(image, (*image.GetSize()[:3], 0), (0,) * 4)
        image = sitk.DICOMOrient(image, orientation)
    x, y, z = image.GetSpacing()
    return Volume(sitk.GetArrayFromImage(image).astype(np.float32), (z, y, x), orientation, "any")


PACKERS = {
    "raw": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zlib": zlib.compress,
    "hex": lambda content: content.hex().encode(),
}


def write_nrrd(
    path: Path,
    voxels: np.ndarray,
    encoding: str = "raw",
    *,
    more: Sequence[str] = (),
    without: Sequence[str] = (),
    data: bytes | None = None,
) -> Path:
    """Write an NRRD file; ``without`` leaves fields out, ``data`` replaces the packed voxels."""
    content = np.ascontiguousarray(voxels).tobytes()
    if data is None:
        data = " ".join(map(str, voxels.ravel())).encode() if encoding == "ascii" else PACKERS[encoding](content)
    fields = [
        "NRRD0004",
        f"type: {voxels.dtype.newbyteorder('=').name}",
        f"dimension: {voxels.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, voxels.shape[::-1]))}",
        "space directions: (0.5,0,0) (0,0.75,0) (0,0,2)",
        f"endian: {'big' if voxels.dtype.str[0] == '>' else 'little'}",
        f"encoding: {encoding}",
    ]
    kept = [line for line in fields if line.partition(":")[0] not in without]
    path.write_bytes("\n".join([*kept, *more, "", ""]).encode() + data)
    return path


def write_metaimage(
    path: Path,
    voxels: np.ndarray,
    *,
    packed: bool = False,
    more: Sequence[str] = (),
    data: bytes | None = None,
    size: int | None = None,
    source: str = "LOCAL",
) -> Path:
    """Write a MetaImage; ``data`` replaces the packed voxels, ``size`` what the header says of their length."""
    types = {"i2": "SHORT", "u2": "USHORT", "u1": "UCHAR", "i1": "CHAR", "f4": "FLOAT", "f8": "DOUBLE", "i4": "INT"}
    content = np.ascontiguousarray(voxels).tobytes()
    content = zlib.compress(content) if packed else content
    content = content if data is None else data
    lines = [
        "ObjectType = Image",
        f"NDims = {voxels.ndim}",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {voxels.dtype.str[0] == '>'}",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(content) if size is None else size}"] if packed else []),
        "TransformMatrix = 0 1 0 0 0 -1 1 0 0",
        "ElementSpacing = 0.5 0.75 2",
        f"DimSize = {' '.join(map(str, voxels.shape[::-1]))}",
        f"ElementType = MET_{types[voxels.dtype.str[1:]]}",
        *more,
        f"ElementDataFile = {source}",
        "",
    ]
    path.write_bytes("\n".join(lines).encode() + (content if source == "LOCAL" else b""))
    return path
