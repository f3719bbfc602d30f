"""Layout of PatchCamelyon (Veeling et al., MICCAI 2018): patches of lymph nodes in HDF5 files."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.readers.decode_limit import check_decoded_size, check_documents
from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.utils.regular_files import open_regular

SIDE = 96
"""Side of a patch, in pixels."""

_SPLITS: dict[str, Fold] = {"train": "train", "valid": "validation", "test": "test"}
_STEM = "camelyonpatch_level_2_split_{}"
_BLOCK = 512
_DEFLATE, _SHUFFLE = 1, 2  # HDF5's numbers of its filters
_COPIES = 3
"""Copies of a chunk or of rows that are in memory at once, such as packed, unpacked and in the result."""


class PCam(Layout):
    """``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`` and ``…_meta.csv``, unpacked.

    Folds are the official ones. A patch's group is the slide it was cut from, by the column ``wsi`` of the meta file;
    without that file every patch is a group of its own, and intervals are as narrow as if all were of other patients.
    The images of the test split, which is evaluated, are read in full before an evaluation; of the other splits
    the labels and sizes are checked, and damage in their images is found when these are read.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read labels and check all files; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        documents: list[Document] = []
        for split, fold in _SPLITS.items():
            try:
                labels = _labels(_path(folder, split, "y"))
                shape = _pixels(folder, split).shape
                if shape != (len(labels), SIDE, SIDE, 3):
                    raise DataError(
                        f"{_path(folder, split, 'x')}: expected {len(labels)} images of {SIDE} x {SIDE} x 3, as many "
                        f"as labels, got {list(shape)}; get the file again."
                    )
                slides = _slides(folder, split, len(labels))
                _split_digest(folder, split)
            except DataError as error:
                faults.add(str(error))
                continue
            for index, label in enumerate(labels):
                name = f"{split}/{index:06d}"
                group = f"{split}/{slides[index]}" if slides else name
                documents.append(Document(name, name, spec.labels[int(label)], group, fold))
        faults.stop()
        return documents

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image:
        """Return one patch as RGB."""
        split, _, index = document.image.partition("/")
        return Image.fromarray(_pixels(folder, split).read(int(index), int(index) + 1)[0])

    def is_there(self, spec: DatasetSpec, folder: Path) -> bool:
        """Return whether the test split's images are there."""
        return _path(folder, "test", "x").is_file()

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return the digest of the split's images with the position in it."""
        return f"{_split_digest(folder, document.image.partition('/')[0])}#{document.image}"


def _path(folder: Path, split: str, what: str) -> Path:
    return folder / f"{_STEM.format(split)}_{what}.h5"


class _Array:
    """The one array of an HDF5 file; threads take turns, as the library makes them do anyway."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._filters: list[int] = []
        self._kept: tuple[tuple[int, ...], npt.NDArray[Any]] | None = None
        try:
            import h5py
        except ImportError as error:
            raise DataError(
                f"{path}: expected the package h5py, which reads HDF5 files, got none. Run: "
                "pip install 'medmllm-plugins[pcam]'."
            ) from error
        try:
            with open_regular(path):
                pass
            file = h5py.File(path, "r")
            if not isinstance(file.get(key, getlink=True), h5py.HardLink):
                raise KeyError(f"no array {key!r} in this file itself")
            self._data: Any = file[key]
            self.shape: tuple[int, ...] = tuple(self._data.shape)
            dtype = np.dtype(self._data.dtype)
            self._check_storage(dtype)
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise self._damaged(error) from error
        if dtype.kind not in "iu":
            raise DataError(f"{path}: expected whole numbers under {key!r}, got {dtype}; get the file again.")

    def _check_storage(self, dtype: np.dtype[Any]) -> None:
        """Check that the array lies in this file, packed in a way that is unpacked here with a bound."""
        if self._data.is_virtual or self._data.external:
            raise OSError("an array that lies in other files")
        properties = self._data.id.get_create_plist()
        self._filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
        if unknown := [number for number in self._filters if number not in (_DEFLATE, _SHUFFLE)]:
            raise OSError(f"an array packed by the HDF5 filters {unknown}; repack it with gzip")
        if self._filters.count(_DEFLATE) > 1 or self._filters.count(_SHUFFLE) > 1:
            raise OSError("an array packed more than once")
        if self._data.chunks is not None:
            chunk = math.prod(self._data.chunks) * dtype.itemsize
            check_decoded_size(self.path, _COPIES * chunk)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read some rows.

        Raises:
            DataError: the file is damaged there, or the rows are more than the limit.
        """
        rows = max(0, min(stop, self.shape[0]) - start)
        check_decoded_size(self.path, _COPIES * rows * math.prod(self.shape[1:]) * self._data.dtype.itemsize)
        try:
            with self._lock:
                values = self._unpacked(start, start + rows) if self._filters else np.asarray(self._data[start:stop])
                return values.astype(np.uint8, casting="same_kind")
        except (OSError, RuntimeError, TypeError, ValueError, zlib.error) as error:
            raise self._damaged(error) from error

    def _unpacked(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Unpack the rows of chunks. HDF5 itself would unpack a chunk to whatever length its stream has."""
        chunks, shape = self._data.chunks, self.shape
        values = np.empty((stop - start, *shape[1:]), self._data.dtype)
        steps = [range(start - start % chunks[0], stop, chunks[0])]
        steps += [range(0, size, step) for size, step in zip(shape[1:], chunks[1:], strict=True)]
        for corner in itertools.product(*steps):
            chunk = self._chunk(corner)
            # The part that lies in this chunk and in the rows asked for.
            begins = [max(corner[0], start), *corner[1:]]
            ends = [min(at + step, size) for at, step, size in zip(corner, chunks, (stop, *shape[1:]), strict=True)]
            source = tuple(slice(a - at, b - at) for a, b, at in zip(begins, ends, corner, strict=True))
            origin = (start, *(0 for _ in shape[1:]))
            target = tuple(slice(a - at, b - at) for a, b, at in zip(begins, ends, origin, strict=True))
            values[target] = chunk[source]
        return values

    def _chunk(self, corner: tuple[int, ...]) -> npt.NDArray[Any]:
        """Unpack a chunk to the length it has by the header and no byte further."""
        if self._kept is not None and self._kept[0] == corner:
            return self._kept[1]
        dtype = np.dtype(self._data.dtype)
        wanted = math.prod(self._data.chunks) * dtype.itemsize
        if self._data.id.get_chunk_info_by_coord(corner).size > 2 * wanted + 1024:
            raise ValueError("a packed chunk that is larger than it is unpacked")
        mask, content = self._data.id.read_direct_chunk(corner)
        for index, number in reversed(list(enumerate(self._filters))):
            if mask >> index & 1:  # this chunk was left out of the filter
                continue
            if number == _DEFLATE:
                unpacker = zlib.decompressobj()
                content = unpacker.decompress(content, wanted + 1)
                if not unpacker.eof:
                    raise ValueError("a chunk that is cut short, or longer than its header states")
            elif dtype.itemsize > 1:
                content = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        if len(content) != wanted:
            raise ValueError(f"a chunk of {len(content):,} bytes instead of {wanted:,}")
        chunk = np.frombuffer(content, dtype).reshape(self._data.chunks)
        self._kept = (corner, chunk)
        return chunk

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: expected a whole HDF5 file, got {one_line(error)}; get the file again.")


def _stat(path: Path) -> tuple[int, int]:
    """Return size and time of change, by which a file that was read is known to be what it was."""
    try:
        stat = path.stat()
    except OSError as error:
        packed = path.with_name(f"{path.name}.gz")
        got = f"only {packed.name}; gunzip it" if packed.is_file() else f"one that cannot be read ({error.strerror})"
        raise DataError(f"{path}: expected a file of PCam, got {got}.") from error
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=6)
def _opened(path: Path, key: str, state: tuple[int, int]) -> _Array:
    return _Array(path, key)


def _pixels(folder: Path, split: str) -> _Array:
    path = _path(folder, split, "x")
    return _opened(path, "x", _stat(path))


def _labels(path: Path) -> npt.NDArray[np.uint8]:
    array = _opened(path, "y", _stat(path))
    if not array.shape or np.prod(array.shape) != array.shape[0]:
        raise DataError(f"{path}: expected one label for each image, got the shape {list(array.shape)}.")
    check_documents(path, array.shape[0])
    labels = array.read(0, array.shape[0]).reshape(-1)
    if labels.size == 0 or int(labels.max()) > 1:
        raise DataError(f"{path}: expected labels 0 and 1, got {sorted(set(labels.tolist()))[:5] or 'none'}.")
    return labels


def _slides(folder: Path, split: str, count: int) -> list[str]:
    path = folder / f"{_STEM.format(split)}_meta.csv"
    if not path.is_file():
        return []
    faults = Faults(path.name, str(path))
    slides = [row["wsi"] for _, row in read_rows(path, ("wsi",), faults)]
    if len(slides) != count:
        faults.add(f"{path}: expected {count} rows, one for each image, got {len(slides)}")
    faults.stop()
    return slides


def _split_digest(folder: Path, split: str) -> str:
    """Return the SHA-256 of a split's pixels; of the splits that are not evaluated, of labels and size of the file."""
    pixels, labels = _path(folder, split, "x"), _path(folder, split, "y")
    return _digest(folder, split, _stat(pixels), _stat(labels))


@lru_cache(maxsize=6)
def _digest(folder: Path, split: str, pixels: tuple[int, int], labels: tuple[int, int]) -> str:
    digest = hashlib.sha256(_labels(_path(folder, split, "y")).tobytes())
    array = _pixels(folder, split)
    if _SPLITS[split] == "test":
        for start in range(0, array.shape[0], _BLOCK):
            digest.update(np.ascontiguousarray(array.read(start, start + _BLOCK)).data)
    else:
        digest.update(repr((array.shape, pixels[0])).encode())
    return digest.hexdigest()
