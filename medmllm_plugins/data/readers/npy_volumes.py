"""Read headers of volumes in NumPy's ``.npy`` files."""

from __future__ import annotations

from pathlib import Path

from medmllm_plugins.data.readers.numpy_files import MAGIC, array_file_header
from medmllm_plugins.data.readers.volume_headers import (
    DataLocation,
    VolumeHeader,
    check_header,
    not_three,
    wrong_content,
)
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import head


def read_volume_array_header(path: Path) -> VolumeHeader:
    """Read and check the header of a ``.npy`` file with a volume ``[D, H, W]`` or ``[D, H, W, 1]``.

    Raises:
        DataError: the file is damaged or holds no such array.
    """
    if not head(path, 8).startswith(MAGIC):
        raise wrong_content(path, "a NumPy array")
    array = array_file_header(path)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{path}: expected real numbers of up to 64 bits, got {shown(str(array.dtype))}; convert them.")
    shape = array.shape
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise not_three(path, shape)
    if min(shape) < 1:
        raise DataError(f"{path}: expected at least 2 voxels along each axis, got {shown(list(shape))}.")
    return check_header(
        VolumeHeader(
            path=path,
            shape=(shape[0], shape[1], shape[2]),
            spacing=(1.0, 1.0, 1.0),
            direction=None,
            flat=False,
            dtype=array.dtype,
            data=DataLocation(path, array.length),
            reversed_axes=array.fortran,
        )
    )
