"""Read 2D images of every kind: raster image files (Pillow), ``.npy`` arrays and single DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.readers.decode_limit import check_decoded_size
from medmllm_plugins.data.readers.dicom_prefix import starts_like_dicom
from medmllm_plugins.data.readers.numpy_files import MAGIC, array_file_header
from medmllm_plugins.data.readers.picture_options import DEFAULT, PictureOptions
from medmllm_plugins.data.readers.pillow_images import SUFFIXES, check_pixels, read_rgb, to_rgb
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import head

ARRAY = ".npy"
_DICOM = frozenset({".dcm", ".dicom", ".ima"})


def may_be_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its name, or by its first bytes if the name has no ending or a number for one.

    Scanners name files by identifiers, such as ``1.2.840.10008.1`` or ``IM000001``.
    """
    suffix = path.suffix.lower()
    if suffix in _DICOM:
        return True
    if (suffix and not suffix[1:].isdigit()) or not path.is_file():  # opening a pipe waits for its writer
        return False
    try:
        with path.open("rb") as opened:
            return starts_like_dicom(opened.read(132))
    except OSError:
        return False


def is_picture(path: Path) -> bool:
    """Return whether a file is, by its name, a picture that :func:`read_picture` reads."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or suffix == ARRAY or may_be_dicom(path)


def read_picture(path: Path, options: PictureOptions = DEFAULT) -> Image.Image:
    """Read a picture as RGB, 8 bit per channel.

    - Image files: see :func:`medmllm_plugins.data.readers.pillow_images.read_rgb`; of several frames the first is read.
    - ``.npy``: ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``. 8-bit values are taken as they are; grey values of other
      types are scaled from their smallest and largest value to 0 and 255.
    - DICOM: see :func:`medmllm_plugins.data.readers.dicom.read_dicom_image`.

    Raises:
        DataError: the file is missing, empty, damaged, cut short or not what its name says; or a window is asked for
            of a file that is no DICOM.
    """
    suffix = path.suffix.lower()
    if options.window is not None and (suffix in SUFFIXES or suffix == ARRAY):
        raise DataError(f"{path}: expected a DICOM file for a window, got {suffix}. Leave `window` out for this set.")
    if suffix in SUFFIXES:
        return read_rgb(path)
    if suffix == ARRAY:
        return _to_picture(path, open_array(path))
    from medmllm_plugins.data.readers.dicom import read_dicom_image  # pydicom is slow to import

    return read_dicom_image(path, options)


def picture_size(path: Path) -> tuple[int, int]:
    """Read width and height from the header of a good picture.

    Raises:
        DataError: the header can no longer be read.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        try:
            with Image.open(path) as image:
                return image.size
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: expected an image file, got one that cannot be read ({error}).") from error
    if suffix == ARRAY:
        height, width = open_array(path).shape[:2]
        return width, height
    from medmllm_plugins.data.readers.dicom_header import read_header  # pydicom is slow to import

    return read_header(path, geometry=False).size[:2]


def open_array(path: Path) -> npt.NDArray[np.generic]:
    """Map a picture in a ``.npy`` file, ``[H, W]`` or ``[H, W, 3]``.

    Raises:
        DataError: the file is missing, damaged or holds no such array.
    """
    start = head(path, len(MAGIC))
    if start != MAGIC:
        raise DataError(f"{path}: expected a NumPy array by its name, got {start!r} at its start; correct the name.")
    header = array_file_header(path)
    if 0 in header.shape:
        raise DataError(
            f"{path}: expected a picture, got {header.dtype} {shown(list(header.shape))}, an array without values."
        )
    array: npt.NDArray[np.generic] = np.memmap(
        path, header.dtype, "r", header.length, header.shape, "F" if header.fortran else "C"
    )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    plain = array.ndim == 2 and array.dtype.kind in "biuf"
    coloured = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    if not (plain or coloured) or 0 in array.shape:
        raise DataError(
            f"{path}: expected a picture as numbers [H, W] or as uint8 [H, W, 3], got {array.dtype} "
            f"{list(array.shape)}; volumes need a data set of dimensions 3."
        )
    height, width = array.shape[:2]
    check_pixels(path, (width, height))
    check_decoded_size(path, array.nbytes + 5 * height * width)  # as stored, scaled and as RGB
    return array


def _to_picture(path: Path, array: npt.NDArray[np.generic]) -> Image.Image:
    if array.dtype == np.uint8:
        return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which is refused
        values = np.ascontiguousarray(array, dtype=np.float32)
    try:
        return to_rgb(Image.fromarray(values))
    except ValueError as error:
        raise DataError(f"{path}: expected finite numbers, got values that are not: {error}.") from error
