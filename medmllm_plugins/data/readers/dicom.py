"""Read DICOM series, multi-frame files, single slices and pictures, colour or grey.

No name, number, date or description of a patient leaves this module: of the header only attributes about pixels and
geometry are read, errors never quote a header value that is text, and messages of decoders, which may, are dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmllm_plugins.data.readers.decode_limit import check_decoded_size, check_volume_size
from medmllm_plugins.data.readers.decoder_process import CHILDREN
from medmllm_plugins.data.readers.dicom_codestreams import RLE
from medmllm_plugins.data.readers.dicom_colour import in_bands
from medmllm_plugins.data.readers.dicom_header import DicomHeader, header_of, read_header
from medmllm_plugins.data.readers.dicom_kinds import count_kinds, kind_without_pictures
from medmllm_plugins.data.readers.dicom_pixels import colour_frame, grey_frame
from medmllm_plugins.data.readers.dicom_prefix import is_dicom
from medmllm_plugins.data.readers.intensity_windows import Unit, to_grey, window_bounds
from medmllm_plugins.data.readers.picture_options import DEFAULT, PictureOptions, montage
from medmllm_plugins.data.readers.volume_headers import IDENTITY, check_spacing, finite
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.regular_files import head, open_regular

_FILE_NAMES = frozenset({"", ".dcm", ".dicom", ".ima"})
# Below this distance in mm two positions are the same: scanners state them to about a thousandth of a millimetre.
_SAME_POSITION = 0.01
# Share of the spacing by which a gap may be off. Positions rounded to 0.1 mm, the coarsest in use, move a gap of 1 mm
# by that much; a slice that is missing moves it by the whole spacing.
_UNEVEN = 0.1


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape, spacing and direction of a volume as its files store it.

    Attributes:
        shape: voxels along z, y and x.
        spacing: mm along z, y and x.
        direction: the nine numbers of ITK's direction matrix, row by row.
        flat: whether it is a single slice.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    direction: tuple[float, ...]
    flat: bool = False


def read_dicom(path: Path) -> tuple[npt.NDArray[np.float32], Geometry, Unit]:
    """Read a file or a folder that holds one series.

    The slices of a folder, and the frames of a multi-frame file, are put in the order of their positions along the
    normal of the slices, whatever their names or numbers. A folder's hidden files, ``DICOMDIR``, texts without an
    ending such as ``LICENSE``, and files whose ending is not DICOM's are left alone; folders in it are not entered.
    Where the gantry was tilted the slices are stacked as they are, not straightened.

    MONOCHROME1 (low is bright) is inverted to maximum + minimum - value over the whole volume, except for HU, whose
    values mean the same in either case.

    Returns:
        The voxels ``[D, H, W]``, their geometry, and their unit: ``"HU"`` for CT whose header says how stored values
        become HU, else ``"any"``. A file of one frame may lack position and spacing: these are then as SimpleITK
        assumes, axes along left, posterior and superior and the spacing of the detector or 1 mm.

    Raises:
        DataError: a file is no DICOM, damaged or in colour; the folder holds several series or one slice; slices
            differ in size, orientation, spacing or photometric interpretation; a position is missing, taken twice or
            unknown; a spacing is not above 0 or above :data:`MAX_SPACING`; the frames' positions are not stated, as in
            films; it would take more memory than the limit of :mod:`medmllm_plugins.data.readers.decode_limit`.
    """
    headers = _headers(path)
    geometry, order = _geometry(path, headers)
    first = headers[0]
    voxels = np.empty(geometry.shape, dtype=np.float32)
    if len(headers) == 1:
        _fill(voxels, first, order)
    else:
        _fill_from_files(voxels, headers, order)
    unit: Unit = "HU" if all(header.unit == "HU" for header in headers) else "any"
    if first.photometric == "MONOCHROME1" and unit != "HU":
        np.subtract(voxels.max() + voxels.min(), voxels, out=voxels)
    return voxels, geometry, unit


def _fill(voxels: npt.NDArray[np.float32], header: DicomHeader, order: Sequence[int]) -> None:
    """Read the frames of a file in the order given, into ``[D, H, W]``."""
    with open_regular(header.path) as opened:
        deflated = header.layout.syntax == DeflatedExplicitVRLittleEndian
        stream = header_of(header.path, opened)[1] if deflated else opened
        for z, index in enumerate(order):
            voxels[z] = grey_frame(header, stream, index)


def _fill_from_files(voxels: npt.NDArray[np.float32], headers: Sequence[DicomHeader], order: Sequence[int]) -> None:
    """Read files of one frame in the order given; compressed ones by as many threads as there are decoders."""

    def read(z: int) -> None:
        _fill(voxels[z : z + 1], headers[order[z]], [0])

    layouts = [header.layout for header in headers]
    if not any(layout.element.fragments is not None and layout.syntax != RLE for layout in layouts):
        for z in range(len(order)):
            read(z)
        return
    with ThreadPoolExecutor(max_workers=CHILDREN) as pool:
        for _ in pool.map(read, range(len(order))):
            pass


def dicom_geometry(path: Path) -> Geometry:
    """Read shape, spacing and direction from the headers alone.

    Raises:
        DataError: see :func:`read_dicom`; damaged pixels are not noticed.
    """
    return _geometry(path, _headers(path))[0]


def read_dicom_image(path: Path, options: PictureOptions = DEFAULT) -> Image.Image:
    """Read one DICOM picture as RGB, such as a radiograph, a mammogram, an ultrasound image or frames of a film.

    Colour (RGB, YBR, palette) is shown as it is, of more than 8 bits by its upper ones. Grey values go through the
    window of ``options``, else the header's (the first one if there are several; VOI LUT function LINEAR, LINEAR_EXACT
    or SIGMOID, DICOM PS3.3 C.11.2), or from smallest to largest where it has none or one without width; a constant
    picture is black. MONOCHROME1 is inverted. Look-up tables in sequences (Modality LUT, VOI LUT) are not applied.
    Spacing, orientation and position are not read.

    Returns:
        The picture in mode ``RGB``; of several frames a montage of them.

    Raises:
        DataError: the file is no DICOM, damaged or without pixels; it has no frame of that number; or the window does
            not go with its unit.
    """
    with open_regular(path) as opened:
        header, stream = header_of(path, opened, geometry=False)
        chosen = options.frames(path, header.size[2])
        # A picture takes memory for its stored values, the rescaled ones and the grey levels.
        each = 4 + 2 * header.layout.samples * -(-header.layout.allocated // 8)
        check_decoded_size(path, len(chosen) * math.prod(header.size[:2]) * each)
        if header.channels == 3:
            if options.window is not None:
                raise DataError(f"{path}: expected a grey picture for a window, got colours. Leave `window` out.")
            pictures = [Image.fromarray(colour_frame(header, stream, index)) for index in chosen]
        else:
            pictures = list(
                _grey_pictures(header, [finite(grey_frame(header, stream, i), path) for i in chosen], chosen, options)
            )
    return pictures[0] if len(pictures) == 1 else montage(pictures)


def _grey_pictures(
    header: DicomHeader, frames: Sequence[npt.NDArray[np.float32]], chosen: Sequence[int], options: PictureOptions
) -> Iterator[Image.Image]:
    """Yield frames as a viewer shows them; without a window all share one range."""
    lowest, highest = min(float(frame.min()) for frame in frames), max(float(frame.max()) for frame in frames)
    for values, index in zip(frames, chosen, strict=True):
        if options.window is not None:
            low, high = window_bounds(values, options.window, header.unit)
            show = partial(to_grey, low=low, high=high)
        else:
            window = header.windows[index if len(header.windows) > 1 else 0]
            show = partial(_through_window, window, lowest=lowest, highest=highest)
        grey = in_bands(show, values)
        yield Image.fromarray(255 - grey if header.photometric == "MONOCHROME1" else grey).convert("RGB")


def shows_volume(path: Path) -> bool:
    """Return whether a file holds a volume: several grey frames whose positions in the patient are stated."""
    header = read_header(path)
    return header.size[2] > 1 and header.channels == 1 and len(header.positions) == header.size[2]


def _headers(path: Path) -> list[DicomHeader]:
    """Read the header of a file, or the headers of the series in a folder."""
    if not path.is_dir():
        header = read_header(path)
        if header.channels != 1:
            raise DataError(f"{path}: expected one value a voxel, got colour ({header.channels} values).")
        return [header]
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: expected a folder, got one that cannot be read ({error.strerror}).") from error
    files = [entry for entry in entries if entry.is_file() and entry.name[0] != "." and entry.name != "DICOMDIR"]
    # Endings such as .1 or .73549 are parts of identifiers that serve as names.
    claiming = {file for file in files if file.suffix.lower() in _FILE_NAMES or file.suffix[1:].isdigit()}
    files = [file for file in files if (file in claiming and not _is_text(file)) or is_dicom(file)]
    headers, kinds = [], []
    for file in files:
        try:
            headers.append(read_header(file))
        except DataError:
            kind = kind_without_pictures(file)
            if kind is None:
                raise
            kinds.append(kind)
    if not headers:
        folders = sum(entry.is_dir() for entry in entries)
        others = count_kinds(kinds)
        raise DataError(
            f"{path}: expected the DICOM files of one series, got none{f' ({others})' if others else ''} and {folders} "
            "folders. Name the folder that holds the slices."
        )
    _check_one_series(path, headers)
    if len(headers) == 1 and headers[0].size[2] == 1:
        raise DataError(
            f"{path}: expected a series of at least 2 slices, got 1; add the missing ones, or name the file itself "
            "to read it as a single slice."
        )
    if len(headers) > 1 and any(header.size[2] != 1 for header in headers):
        raise DataError(
            f"{path}: expected one multi-frame file or several files of one frame, got {len(headers)} files with "
            f"{sum(header.size[2] for header in headers)} frames; put each multi-frame file in its own folder."
        )
    coloured = sum(header.channels != 1 for header in headers)
    if coloured:
        raise DataError(f"{path}: expected one value a voxel, got colour in {coloured} of {len(headers)} files.")
    return headers


def _is_text(file: Path) -> bool:
    """Return whether a file without a DICOM ending is plain text, such as the LICENSE that archives add."""
    if file.suffix:
        return False
    content = head(file, 512)
    return not any(byte < 32 and byte not in b"\t\n\f\r" for byte in content)


def _check_one_series(path: Path, headers: Sequence[DicomHeader]) -> None:
    counts = Counter(header.series for header in headers)
    if len(counts) > 1:
        listed = ", ".join(f"series {index} with {count}" for index, count in enumerate(counts.values(), start=1))
        raise DataError(
            f"{path}: expected the slices of one series, got {len(counts)} series: {listed} files (in the order of "
            "the file names); put each in its own folder."
        )


def _geometry(path: Path, headers: Sequence[DicomHeader]) -> tuple[Geometry, list[int]]:
    """Return the geometry of the stack, and the index of the slice or frame at each z."""
    first = headers[0]
    count = len(headers) if len(headers) > 1 else first.size[2]
    voxels = math.prod(first.size[:2]) * count
    check_volume_size(path, voxels, voxels * first.layout.allocated // 8)
    if count == 1:
        return _single(path, first), [0]
    for name in ("size", "photometric"):
        _check_same(path, f"{name} of the slices", [getattr(header, name) for header in headers])
    stacked = [position for header in headers for position in header.positions]
    if len(stacked) != count:
        raise DataError(
            f"{path}: expected every slice to state its position in the patient, got {len(stacked)} positions for "
            f"{count} slices or frames; films and pictures are no volumes, read them one by one."
        )
    without = sum(header.orientation is None or header.spacing is None for header in headers)
    if first.orientation is None or first.spacing is None or without:
        raise DataError(
            f"{path}: expected every slice to state its orientation and pixel spacing, got {without} of "
            f"{len(headers)} without."
        )
    _check_near(path, "orientation", [header.orientation for header in headers])
    _check_near(path, "pixel spacing", [header.spacing for header in headers])
    direction = _direction(path, first.orientation)
    along = np.array(stacked) @ np.array(direction).reshape(3, 3)[:, 2]
    order = np.argsort(along, kind="stable")
    x, y = first.spacing
    spacing = (_step(path, along[order]), y, x)
    check_spacing(spacing[::-1], path)
    return Geometry((count, first.size[1], first.size[0]), spacing, direction), [int(index) for index in order]


def _single(path: Path, header: DicomHeader) -> Geometry:
    x, y = header.spacing or header.assumed[:2]
    spacing = (header.assumed[2], y, x)
    check_spacing(spacing[::-1], path)
    direction = _direction(path, header.orientation) if header.orientation else IDENTITY
    return Geometry((1, header.size[1], header.size[0]), spacing, direction, flat=True)


def _direction(path: Path, orientation: tuple[float, ...]) -> tuple[float, ...]:
    """Return ITK's direction matrix: its columns are the directions in which x, y and z grow, in LPS coordinates."""
    x, y = np.array(orientation[:3]), np.array(orientation[3:])
    if max(abs(np.linalg.norm(x) - 1), abs(np.linalg.norm(y) - 1), abs(x @ y)) > 1e-2:
        raise DataError(
            f"{path}: expected two perpendicular directions of length 1 in the tag Image Orientation, got others; "
            "correct the header."
        )
    x /= np.linalg.norm(x)
    normal = np.cross(x, y)
    normal /= np.linalg.norm(normal)
    return tuple(float(value) for value in np.stack([x, np.cross(normal, x), normal], axis=1).ravel())


def _step(path: Path, along: npt.NDArray[np.float64]) -> float:
    """Return the distance in mm of evenly spaced slices; ``along`` are their positions, ascending."""
    gaps = np.diff(along)
    twice = np.flatnonzero(gaps < _SAME_POSITION)
    if twice.size:
        raise DataError(
            f"{path}: expected every slice at its own position, got {twice.size} of {along.size} at the position of "
            f"the slice before, first slice {twice[0] + 2} at {along[twice[0]]:.3f} mm; remove the copies, or separate "
            "the time points."
        )
    median = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - median) > _UNEVEN * median)
    if wrong.size:
        index = int(wrong[0])
        missing = round(gaps[index] / median) - 1
        # A gap of half a step, say, is no missing slice.
        whole = missing >= 1 and abs(gaps[index] - (missing + 1) * median) <= _UNEVEN * median
        what = f"{missing} missing" if whole else "an uneven step"
        raise DataError(
            f"{path}: expected slices every {median:.3f} mm, got {what} between slice {index + 1} at "
            f"{along[index]:.3f} mm and slice {index + 2} at {along[index + 1]:.3f} mm, a gap of {gaps[index]:.3f} mm"
            f"{f' ({wrong.size} such gaps in all)' if wrong.size > 1 else ''}; get the whole series."
        )
    return float((along[-1] - along[0]) / gaps.size)


def _check_same(path: Path, what: str, values: Sequence[object]) -> None:
    counts = Counter(values)
    if len(counts) > 1:
        listed = ", ".join(str(count) for count in counts.values())
        raise DataError(
            f"{path}: expected one {what}, got {len(counts)}, with {listed} slices; put each in its own folder."
        )


def _check_near(path: Path, what: str, values: Sequence[tuple[float, ...] | None]) -> None:
    table = np.array(values, dtype=np.float64)
    # From the middle one, so that a localiser that comes first is the odd one out.
    off = int(np.count_nonzero((np.abs(table - np.median(table, axis=0)) > 1e-3).any(axis=1)))
    if off:
        raise DataError(
            f"{path}: expected one {what} for all slices, got {off} of {len(values)} with another; put localisers "
            "and reformatted slices in their own folders."
        )


def _through_window(
    window: tuple[float, float, str], values: npt.NDArray[np.float32], lowest: float, highest: float
) -> npt.NDArray[np.uint8]:
    centre, width, function = window
    if not width > 0 or math.isnan(centre):
        return to_grey(values, lowest, highest)
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values.astype(np.float64) - centre) / width, -500, 500)))
        return np.rint(share * 255).astype(np.uint8)
    if function == "LINEAR_EXACT" or width <= 1:
        return to_grey(values, centre - width / 2, centre + width / 2)
    # The standard's LINEAR counts whole grey levels: a window of 256 around 128 is 0 to 255.
    return to_grey(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
