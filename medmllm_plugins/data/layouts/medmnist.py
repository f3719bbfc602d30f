"""Layout of MedMNIST (Yang et al., Scientific Data 10, 41, 2023): one npz file a set and size; 12 are 2D, 6 are 3D."""

from __future__ import annotations

import logging
import threading
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.readers.decode_limit import check_decoded_size, check_documents, max_decoded_bytes
from medmllm_plugins.data.readers.numpy_files import ArrayHeader
from medmllm_plugins.data.readers.zip_members import PackedRows, check_directory, member_header
from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.utils.regular_files import open_regular

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

logger = logging.getLogger(__name__)

SIZES = {2: (28, 64, 128, 224), 3: (28, 64)}
"""Published sizes in pixels, by dimensions."""
DEFAULT_SIZE = {2: 224, 3: 64}

_SPLITS: dict[str, Fold] = {"train": "train", "val": "validation", "test": "test"}
_LOCAL_HEADER = 30
_CHUNK = 1 << 20
_LABELS = 8
"""Labels, and images held unpacked, take up to this part of the limit: several arrays of several files are kept."""
_DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class MedMNIST(Layout):
    """``medmnist/<flag>.npz`` (28 pixels) and ``<flag>_64.npz``, ``_128``, ``_224``; of the 3D sets 28 and 64 only.

    The set's name is its flag. Option ``size`` asks for a size; without it the default is taken, and where that is not
    there the largest that is. The authors publish neither patients nor other groups, so that every image is a group of
    its own, and intervals are as narrow as if no two images were of one patient. Folds are the official ones.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read labels and check all members; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        path = folder / _file(spec, folder)
        documents: list[Document] = []
        for split, fold in _SPLITS.items():
            try:
                labels = _check(spec, path, split)
            except DataError as error:
                faults.add(str(error))
                continue
            for index, row in enumerate(labels):
                label = (
                    tuple(name for name, there in zip(spec.labels, row, strict=True) if there)
                    if spec.kind == "multilabel"
                    else spec.labels[int(row[0])]
                )
                name = f"{split}/{index:06d}"
                documents.append(Document(name, f"{path.name}#{name}", label, name, fold))
        faults.stop()
        return documents

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Return one image as RGB, or of a 3D set its volume, whose spacing and orientation are not published."""
        name, _, position = document.image.partition("#")
        split, _, index = position.partition("/")
        members = _members(folder / name)
        try:
            values = members[f"{split}_images"][int(index)]
        except _DAMAGE as error:
            raise DataError(f"{folder / name}: expected the array {split}_images, got {one_line(error)}.") from error
        if spec.dimensions == 2:
            return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
        from medmllm_plugins.data.readers.volumes import Volume

        return Volume(values.astype(np.float32), (1.0, 1.0, 1.0), "RAS", "any")

    def is_there(self, spec: DatasetSpec, folder: Path) -> bool:
        """Return whether a file of any size is there; all sets share a folder."""
        return any((folder / _name(spec, size)).is_file() for size in SIZES[spec.dimensions])

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return the check sum that the file holds of its split's images; the document's own would mean reading all."""
        name, _, position = document.image.partition("#")
        return f"{_members(folder / name).crc[position.partition('/')[0]]:08x}#{position}"


def _name(spec: DatasetSpec, size: int) -> str:
    return f"{spec.name}.npz" if size == 28 else f"{spec.name}_{size}.npz"


def _file(spec: DatasetSpec, folder: Path) -> str:
    """Return the file of the size asked for, else of the default size, else of the largest there is."""
    sizes = SIZES[spec.dimensions]
    size = spec.options.get("size")
    if size is not None and size not in sizes:
        raise DataError(f"{spec.title}: expected `size` to be one of {list(sizes)}, got {size!r}.")
    wanted = DEFAULT_SIZE[spec.dimensions] if size is None else size
    if (folder / _name(spec, wanted)).is_file():
        return _name(spec, wanted)
    there = [pixels for pixels in sizes if (folder / _name(spec, pixels)).is_file()]
    if size is not None or not there:
        raise DataError(
            f"{spec.title}: expected the file {folder / _name(spec, wanted)}, got "
            f"{', '.join(_name(spec, pixels) for pixels in there) or 'none of that set'}. Get it from {spec.download}."
        )
    logger.warning("%s: %s is not there; %s is used.", spec.title, _name(spec, wanted), _name(spec, there[-1]))
    return _name(spec, there[-1])


class _Members(dict[str, "npt.NDArray[Any] | PackedRows"]):
    """Arrays of an npz file, read when first asked for and then kept; several threads may ask.

    Arrays that are not packed stay on disk, and of large packed ones some rows at a time are unpacked, so that memory
    is bounded by the limit of :mod:`medmllm_plugins.data.readers.decode_limit` whatever the file's size.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        try:
            check_directory(path)
            with zipfile.ZipFile(path) as archive:
                infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except _DAMAGE as error:
            raise DataError(f"{path}: expected a whole npz file, got {one_line(error)}; get it again.") from error
        wanted = [f"{split}_{what}" for split in _SPLITS for what in ("images", "labels")]
        if missing := [name for name in wanted if name not in infos]:
            raise DataError(f"{path}: expected the arrays {wanted}, got none called {missing}; get the file again.")
        self._infos = infos
        self.crc = {split: infos[f"{split}_images"].CRC for split in _SPLITS}

    def header(self, name: str) -> ArrayHeader:
        """Return shape and type of an array, without reading it."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                return member_header(archive, self._infos[name])
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def labels(self, name: str) -> npt.NDArray[Any]:
        """Read an array into memory.

        Raises:
            DataError: it is damaged, or larger than the limit.
        """
        check_decoded_size(f"{self._path}: {name}", self.header(name).nbytes * _LABELS)
        array = self[name]
        assert isinstance(array, np.ndarray)
        return array

    def verify(self, name: str) -> None:
        """Compare an array's check sum, without keeping it."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._infos[name]) as member:
                while member.read(_CHUNK):
                    pass
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{self._path}: expected the array {name}, got {one_line(error)}; get the file again.")

    def __missing__(self, name: str) -> npt.NDArray[Any] | PackedRows:
        with self._lock:
            if name not in self:
                self[name] = self._read(name)
            return dict.__getitem__(self, name)

    def _read(self, name: str) -> npt.NDArray[Any] | PackedRows:
        info = self._infos[name]
        try:
            with zipfile.ZipFile(self._path) as archive:
                header = member_header(archive, info)
                if info.compress_type == zipfile.ZIP_STORED:
                    self.verify(name)
                    return self._mapped(info, header)
                if header.nbytes > max_decoded_bytes() // _LABELS:
                    self.verify(name)
                    return PackedRows(self._path, info, header)
                with archive.open(info) as member:
                    # To the end, where the check sum is compared; without a number it would unpack whatever there is.
                    content = member.read(info.file_size)
            array = np.frombuffer(content, header.dtype, offset=header.length)
            return array.reshape(header.shape, order="F" if header.fortran else "C")
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def _mapped(self, info: zipfile.ZipInfo, header: ArrayHeader) -> npt.NDArray[Any]:
        """Map a member that is stored as it is, read where it lies on disk."""
        with open_regular(self._path) as opened:
            opened.seek(info.header_offset)
            fixed = opened.read(_LOCAL_HEADER)
        # Behind the fixed part stand the name and an extra field, whose lengths end it.
        start = info.header_offset + _LOCAL_HEADER + int.from_bytes(fixed[26:28], "little")
        start += int.from_bytes(fixed[28:30], "little") + header.length
        return np.memmap(self._path, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, modified: int) -> _Members:
    return _Members(path)


def _members(path: Path) -> _Members:
    """Return the arrays of a file, kept between calls as long as the file stays what it was."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: expected a file, got one that cannot be read ({error.strerror}).") from error
    return _opened(path, stat.st_size, stat.st_mtime_ns)


def _check(spec: DatasetSpec, path: Path, split: str) -> npt.NDArray[np.generic]:
    """Check a split's arrays against the declaration; returns its labels.

    The check sum of the images is compared for the test split, which is evaluated. That of the other splits, of up to
    13 GB, is compared when they are read.
    """
    members = _members(path)
    labels = members.labels(f"{split}_labels")
    images = members.header(f"{split}_images")
    shape = images.shape
    columns = len(spec.labels) if spec.kind == "multilabel" else 1
    channels = shape[3:] if spec.dimensions == 2 else shape[4:]
    colours = ((), (3,)) if spec.dimensions == 2 else ((),)
    if images.dtype != np.uint8 or len(shape) < spec.dimensions + 1 or channels not in colours:
        raise DataError(f"{path}: expected {split}_images as 8-bit images, got {images.dtype} {list(shape)}.")
    if labels.shape != (shape[0], columns) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {split}_labels as whole numbers [{shape[0]}, {columns}], got {labels.dtype} "
            f"{list(labels.shape)}."
        )
    most = 1 if spec.kind == "multilabel" else len(spec.labels) - 1
    if labels.size and not (int(labels.min()) >= 0 and int(labels.max()) <= most):
        raise DataError(f"{path}: expected {split}_labels from 0 to {most}, got {labels.min()} to {labels.max()}.")
    check_documents(path, shape[0])
    if split == "test":
        members.verify(f"{split}_images")
    return labels
