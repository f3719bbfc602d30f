"""Read headers of NIfTI-1 and NIfTI-2 files (nifti.nimh.nih.gov) with nibabel, plain or compressed by gzip."""

# nibabel is not typed.
# mypy: untyped-calls-exclude="nibabel"

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers.byte_sources import CHUNK, open_source
from medmllm_plugins.data.readers.volume_headers import (
    IDENTITY,
    DataLocation,
    VolumeHeader,
    check_header,
    check_spacing,
    not_scalar,
    three_axes,
    unit_columns,
    wrong_content,
)
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import head, open_regular

_GZIP = b"\x1f\x8b"
_HEAD = 540
_MILLIMETRES: Final = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of units of length to mm; all others are taken as mm, as SimpleITK does."""
_EXACT = 1e-3


def read_nifti_header(path: Path) -> VolumeHeader:
    """Read and check the header of a NIfTI file in one piece with its voxels, of either byte order.

    If both are set, the sform states the directions if its code is 1 (scanner) and its axes are perpendicular, else
    the qform, as in SimpleITK. The spacing is ``pixdim``. A slope of 0, or one that is not finite, is one of 1.
    """
    packed = path.name.lower().endswith(".gz")
    start = _start(path, packed)
    fields, first = _fields(path, start)
    dimensions = int(fields["dim"][0])
    if not 1 <= dimensions <= 7:
        raise DataError(f"{path}: expected 2 or 3 dimensions, got {dimensions}: the header is damaged; get it again.")
    shape, flat = three_axes(path, [int(size) for size in fields["dim"][1 : dimensions + 1]])
    dtype = _dtype(path, fields)
    offset = float(fields["vox_offset"])
    if not (offset.is_integer() and first <= offset < 1 << 40):
        raise DataError(f"{path}: expected voxels from byte {first} on, got {offset:g}; the header is damaged.")
    scale = _MILLIMETRES.get(int(fields["xyzt_units"]) & 7, 1.0)
    spacing = [float(step) * scale for step in fields["pixdim"][1:4]]
    spacing = [*spacing[:2], 1.0] if flat else spacing
    check_spacing(spacing[::-1], path)
    slope, intercept = (float(fields[name]) for name in ("scl_slope", "scl_inter"))
    data = DataLocation(path, packing="gzip", skip=int(offset)) if packed else DataLocation(path, offset=int(offset))
    return check_header(
        VolumeHeader(
            path=path,
            shape=shape,
            spacing=(spacing[2], spacing[1], spacing[0]),
            direction=_direction(path, fields, spacing, flat),
            flat=flat,
            dtype=dtype,
            data=data,
            scaling=(
                slope if math.isfinite(slope) and slope != 0 else 1.0,
                intercept if math.isfinite(intercept) else 0.0,
            ),
        )
    )


def packed_nifti_sum(path: Path) -> str:
    """Return CRC-32 and length that a ``.nii.gz`` file states of its content (RFC 1952), as 16 hexadecimal digits.

    Where the length does not match the header, as in truncated files and in files of several gzip members, the file is
    decompressed to find the damage or to compute both. Other damage is found when the volume is read.

    Raises:
        DataError: see :func:`medmllm_plugins.data.readers.volumes.volume_facts`; or the data are cut short, or do
            not match the header.
    """
    header = read_nifti_header(path)
    wanted = header.data.skip + header.nbytes
    with open_regular(path) as opened:
        opened.seek(-8, os.SEEK_END)
        end = opened.read(8)
    stated = int.from_bytes(end[4:], "little")
    if stated == wanted % (1 << 32):  # it is stated modulo 4 GiB
        return end.hex()
    # The end of one of several members (as bgzip writes) or a padding of zeros states nothing of the whole.
    total = 0
    with open_regular(path) as opened:
        source = open_source(path, opened, "gzip", np.dtype("u1"))
        buffer = memoryview(bytearray(CHUNK))
        for start in range(0, wanted, CHUNK):
            part = buffer[: min(CHUNK, wanted - start)]
            source.fill(part)
            total = zlib.crc32(part, total)
        source.finish()
    return struct.pack("<II", total, wanted % (1 << 32)).hex()


def _start(path: Path, packed: bool) -> bytes:
    """Return the bytes of the header."""
    start = head(path, _HEAD)
    if not packed:
        return start
    if not start.startswith(_GZIP):
        raise wrong_content(path, "a compressed NIfTI file")
    with open_regular(path) as opened:
        source = open_source(path, opened, "gzip", np.dtype("u1"))
        buffer = bytearray(_HEAD)
        source.fill(memoryview(buffer)[:348])
        if buffer[:4] in (_HEAD.to_bytes(4, "little"), _HEAD.to_bytes(4, "big")):
            source.fill(memoryview(buffer)[348:])
    return bytes(buffer)


def _fields(path: Path, start: bytes) -> tuple[Any, int]:
    """Return the header as nibabel's mapping of names to numbers, and the first byte that may hold voxels."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", start.ljust(4))[0]
        if size == 348 and len(start) >= 348 and start[344:347] == b"n+1":
            from nibabel.nifti1 import Nifti1Header  # slow to import

            return Nifti1Header(start[:348], endianness=order, check=False), 352
        if size == _HEAD and len(start) >= _HEAD and start[4:7] == b"n+2":
            from nibabel.nifti2 import Nifti2Header

            return Nifti2Header(start[:_HEAD], endianness=order, check=False), 544
    raise wrong_content(path, "a NIfTI file in one piece (n+1 or n+2)")


def _dtype(path: Path, fields: Any) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    try:
        dtype: np.dtype[Any] = np.dtype(fields.get_data_dtype())
    except KeyError:  # an unknown code
        dtype = np.dtype("V")
    if dtype.kind == "c" or dtype.names:
        raise not_scalar(path, "colours" if dtype.names else "complex numbers")
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype.itemsize * 8 != bits:
        raise DataError(
            f"{path}: expected a NIfTI type of real numbers with its number of bits, got code {code} with {bits} bits. "
            "Convert the file again."
        )
    return dtype


def _direction(path: Path, fields: Any, spacing: list[float], flat: bool) -> tuple[float, ...]:
    """Return the directions of the axes in LPS coordinates; NIfTI states them in RAS."""
    quaternion, matrix = int(fields["qform_code"]), int(fields["sform_code"])
    if quaternion <= 0 and matrix <= 0:
        if flat:
            return IDENTITY
        raise DataError(
            f"{path}: expected a NIfTI file that states its orientation, got qform and sform both unset, so left and "
            "right are unknown; set one, or save the voxels as .npy in the orientation you read with."
        )
    axes = None
    if matrix > 0 and (quaternion <= 0 or matrix == 1):
        rows = np.array([fields[name] for name in ("srow_x", "srow_y", "srow_z")], np.float64)
        axes, _ = unit_columns(path, rows[:, :3])
        if quaternion > 0 and np.abs(axes.T @ axes - np.eye(3)).max() > _EXACT:
            axes = None
    if axes is None:
        axes = _rotation(path, fields)
    return tuple((np.diag([-1.0, -1.0, 1.0]) @ axes).ravel().tolist())


def _rotation(path: Path, fields: Any) -> npt.NDArray[np.float64]:
    """Return the qform's directions: a quaternion without its real part, and the sign of the third axis."""
    from nibabel.quaternions import quat2mat

    imaginary = np.array([fields[f"quatern_{name}"] for name in "bcd"], np.float64)
    length = float(imaginary @ imaginary)
    if not length <= 1.01:
        raise DataError(f"{path}: expected a quaternion of length 1 in the qform, got another; correct the header.")
    axes = np.array(quat2mat([math.sqrt(max(0.0, 1.0 - length)), *imaginary]), np.float64)
    if float(fields["pixdim"][0]) < 0:
        axes[:, 2] *= -1
    return axes
