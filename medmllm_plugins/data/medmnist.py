"""Layout of MedMNIST (Yang et al., Scientific Data 10, 41, 2023): one npz file a set and size; 12 are 2D, 6 are 3D."""

from __future__ import annotations

import logging
import threading
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.documents import Document, Fold
from medmllm_plugins.data.faults import Faults
from medmllm_plugins.data.layouts import Layout
from medmllm_plugins.data.spec import DatasetSpec
from medmllm_plugins.errors import DataError, one_line

if TYPE_CHECKING:
    from medmllm_plugins.data.volumes import Volume

logger = logging.getLogger(__name__)

SIZES = {2: (28, 64, 128, 224), 3: (28, 64)}
"""Published sizes in pixels, by dimensions."""
DEFAULT_SIZE = {2: 224, 3: 64}

_SPLITS: dict[str, Fold] = {"train": "train", "val": "validation", "test": "test"}
_LOCAL_HEADER = 30
_CHUNK = 1 << 20
_DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class MedMNIST(Layout):
    """``medmnist/<flag>.npz`` (28 pixels) and ``<flag>_64.npz``, ``_128``, ``_224``; of the 3D sets 28 and 64 only.

    The set's name is its flag. Option ``size`` asks for a size; without it the default is taken, and where that is not
    there the largest that is. The authors publish neither patients nor other groups, so that every image is a group of
    its own, and intervals are as narrow as if no two images were of one patient. Folds are the official ones.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read labels and check all members; see :class:`medmllm_plugins.data.layouts.Layout`."""
        path = folder / _file(spec, folder)
        found: list[Document] = []
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
                found.append(Document(name, f"{path.name}#{name}", label, name, fold))
        faults.stop()
        return found

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """One image as RGB, or of a 3D set its volume, whose spacing and orientation are not published."""
        name, _, place = document.image.partition("#")
        split, _, index = place.partition("/")
        values = _members(folder / name)[f"{split}_images"][int(index)]
        if spec.dimensions == 2:
            return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")
        from medmllm_plugins.data.volumes import Volume

        return Volume(values.astype(np.float32), (1.0, 1.0, 1.0), "RAS", "any")

    def is_there(self, spec: DatasetSpec, folder: Path) -> bool:
        """Whether a file of any size is there; all sets share a folder."""
        return any((folder / _name(spec, size)).is_file() for size in SIZES[spec.dimensions])

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """The check sum that the file holds of its split's images; the document's own would mean reading all."""
        name, _, place = document.image.partition("#")
        return f"{_members(folder / name).crc[place.partition('/')[0]]:08x}#{place}"


def _name(spec: DatasetSpec, size: int) -> str:
    return f"{spec.name}.npz" if size == 28 else f"{spec.name}_{size}.npz"


def _file(spec: DatasetSpec, folder: Path) -> str:
    """The file of the size asked for, else of the default size, else of the largest there is."""
    sizes = SIZES[spec.dimensions]
    asked = spec.options.get("size")
    if asked is not None and asked not in sizes:
        raise DataError(f"{spec.title}: expected `size` to be one of {list(sizes)}, found {asked!r}.")
    wanted = DEFAULT_SIZE[spec.dimensions] if asked is None else asked
    if (folder / _name(spec, wanted)).is_file():
        return _name(spec, wanted)
    there = [size for size in sizes if (folder / _name(spec, size)).is_file()]
    if asked is not None or not there:
        raise DataError(
            f"{spec.title}: expected the file {folder / _name(spec, wanted)}, found "
            f"{', '.join(_name(spec, size) for size in there) or 'none of that set'}. Get it from {spec.download}."
        )
    logger.warning("%s: %s is not there; %s is used.", spec.title, _name(spec, wanted), _name(spec, there[-1]))
    return _name(spec, there[-1])


class _Members(dict[str, npt.NDArray[np.generic]]):
    """Arrays of an npz file, read when first asked for and then kept; several threads may ask."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        try:
            with zipfile.ZipFile(path) as archive:
                infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: expected a whole npz file, found {one_line(error)}; get it again.") from error
        wanted = [f"{split}_{what}" for split in _SPLITS for what in ("images", "labels")]
        if missing := [name for name in wanted if name not in infos]:
            raise DataError(f"{path}: expected the arrays {wanted}, found none called {missing}; get the file again.")
        self._infos = infos
        self.crc = {split: infos[f"{split}_images"].CRC for split in _SPLITS}

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and type of an array, without reading it."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._infos[name]) as member:
                shape, _, dtype = _npy_header(member)
        except _DAMAGE as error:
            raise self._damaged(name, error) from error
        return shape, dtype

    def verify(self, name: str) -> None:
        """Compare an array's check sum, without keeping it."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._infos[name]) as member:
                while member.read(_CHUNK):
                    pass
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{self._path}: expected the array {name}, found {one_line(error)}; get the file again.")

    def __missing__(self, name: str) -> npt.NDArray[np.generic]:
        with self._lock:
            if name not in self:
                self[name] = self._read(name)
            return dict.__getitem__(self, name)

    def _read(self, name: str) -> npt.NDArray[np.generic]:
        info = self._infos[name]
        try:
            if info.compress_type == zipfile.ZIP_STORED:
                self.verify(name)
                return self._mapped(info)
            with zipfile.ZipFile(self._path) as archive, archive.open(info) as member:
                found: npt.NDArray[np.generic] = np.lib.format.read_array(member, allow_pickle=False)
                member.read()  # to the end, where the check sum is compared
                return found
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def _mapped(self, info: zipfile.ZipInfo) -> npt.NDArray[np.generic]:
        """A member that is stored as it is, read where it lies on disk."""
        with self._path.open("rb") as opened:
            opened.seek(info.header_offset)
            header = opened.read(_LOCAL_HEADER)
            # Behind the fixed part stand the name and an extra field, whose lengths end it.
            opened.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            shape, fortran, dtype = _npy_header(opened)
            return np.memmap(self._path, dtype, "r", opened.tell(), shape, "F" if fortran else "C")


def _npy_header(opened: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(opened)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    return shape, fortran, dtype


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, modified: int) -> _Members:
    return _Members(path)


def _members(path: Path) -> _Members:
    """The arrays of a file, kept between calls as long as the file stays what it was."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: expected a file, found that it cannot be read ({error.strerror}).") from error
    return _opened(path, stat.st_size, stat.st_mtime_ns)


def _check(spec: DatasetSpec, path: Path, split: str) -> npt.NDArray[np.generic]:
    """Check a split's arrays against the declaration; returns its labels.

    The check sum of the images is compared for the test split, which is evaluated. That of the other splits, of up to
    13 GB, is compared when they are read.
    """
    members = _members(path)
    labels = members[f"{split}_labels"]
    shape, dtype = members.header(f"{split}_images")
    columns = len(spec.labels) if spec.kind == "multilabel" else 1
    channels = shape[3:] if spec.dimensions == 2 else shape[4:]
    colours = ((), (3,)) if spec.dimensions == 2 else ((),)
    if dtype != np.uint8 or len(shape) < spec.dimensions + 1 or channels not in colours:
        raise DataError(f"{path}: expected {split}_images as 8-bit images, found {dtype} {list(shape)}.")
    if labels.shape != (shape[0], columns) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {split}_labels as whole numbers [{shape[0]}, {columns}], found {labels.dtype} "
            f"{list(labels.shape)}."
        )
    most = 1 if spec.kind == "multilabel" else len(spec.labels) - 1
    if labels.size and not (int(labels.min()) >= 0 and int(labels.max()) <= most):
        raise DataError(f"{path}: expected {split}_labels from 0 to {most}, found {labels.min()} to {labels.max()}.")
    if split == "test":
        members.verify(f"{split}_images")
    return labels
