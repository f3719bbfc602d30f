"""The feature store: features of a model's layers for the documents of one task, read from disk.

A folder with ``store.json`` (:class:`Header`), shards ``rank0-00000.safetensors`` … with a float16 tensor
``LAYER/POOLING`` of shape (n, d) each, and in ``index/`` a Parquet file for each shard, which together are one table
with a row for each document. A shard counts once its index file exists, so that a killed run leaves no half-written
one. ``seal.json`` lists the checksums of a whole store; it is written when all processes have finished.
:mod:`medmllm_plugins.features.store` writes stores.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.utils.record import Record, VersionedRecord, check_version, read_fields

STORE: Final = "store.json"
INDEX: Final = "index"
SEAL: Final = "seal.json"
LENS: Final = "lens"
"""The tensor of a shard that holds the labels' logits after each block of the LLM, (n, layers, K) float32."""
COLUMNS: Final = (
    "id", "document", "group", "fold", "label", "answer", "scores", "blank", "label_tokens", "attributes", "rank",
    "shard", "row", "sha256",
)  # fmt: skip
"""Columns of the index. ``scores``, ``blank`` and ``label_tokens`` are lists, one number a label, or missing;
``attributes`` is a JSON object of further columns of the data; ``shard`` is a file and ``sha256`` its checksum; ``row``
is the document's row in it."""


@dataclass(frozen=True, slots=True)
class StoredLayer(Record):
    """A layer of the model in the feature store.

    Attributes:
        name: its name, such as ``vision.03``.
        part: ``vision``, ``connector``, ``llm`` or ``control``.
        poolings: how its rows were pooled into one vector; each is a tensor of every shard.
        widths: length of a vector, by pooling, in their order.
        read: whether the LLM reads this layer; false for layers of the tower after the one it takes.
    """

    name: str
    part: str
    poolings: tuple[str, ...]
    widths: tuple[int, ...]
    read: bool = True


@dataclass(frozen=True, slots=True)
class Header(VersionedRecord):
    """What a feature store is of: the content of ``features/TASK/store.json``.

    Attributes:
        task: the task's name, with its arguments.
        dataset: the data set's name.
        labels: its classes, in order.
        dataset_fingerprint: fingerprint of the data.
        model: name of the model.
        model_fingerprint: SHA-256 of the model's files.
        layers: layers in the order in which an image passes them, control features last.
        lens: layers at which the labels' logits were read off; empty where they were not.
    """

    FORMAT: ClassVar[str] = "medmllm_features"

    task: str
    dataset: str
    labels: tuple[str, ...]
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    layers: tuple[StoredLayer, ...]
    lens: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read a header.

        Raises:
            DataError: the content is something else, of a newer version, or has no layers.
        """
        check_version(content, cls.FORMAT, cls.VERSION)
        header = cls(**read_fields(cls, content))
        if not header.layers or not header.labels:
            raise DataError("expected 'labels' and 'layers', got none that can be read")
        return header


class FeatureSource(Protocol):
    """What probes read: a :class:`FeatureStore`, or arrays in memory that look like one."""

    folder: Path
    """Where the features are; begins messages about them."""
    header: Header
    index: pd.DataFrame
    """A row for each document, with at least the columns ``id``, ``label``, ``group`` and ``fold``."""

    def __len__(self) -> int:
        """Return the number of documents."""

    def layer(self, name: str) -> StoredLayer:
        """Return the layer of that name."""

    def features(self, layer: str, pooling: str, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Return the features at one layer, (n, d) float32, in the order of ``rows`` of the index."""


class FeatureStore:
    """A store opened for reading; features are read when they are asked for, a layer at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            DataError: there is none, or its index is damaged.
        """
        self.folder = folder
        try:
            self.header = Header.from_dict(json.loads((folder / STORE).read_text(encoding="utf-8")))
        except DataError as error:
            raise DataError(f"{folder / STORE}: {error}.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{folder}: expected a feature store with {STORE}, got {shown(one_line(error))}. Copy the folder "
                "again, or run the med_probe task with this version of the package."
            ) from error
        if (folder / SEAL).is_file():
            self._check_seal()  # before what a damaged disk left reaches the decoder of the index
        self.index = read_index(folder)
        if self.index.empty:
            raise DataError(f"{folder}: expected features of at least one document, got none; run the task again.")
        try:
            self._places = _places(self.index)
        except (ValueError, TypeError) as error:
            raise DataError(f"{folder}: expected an index with rows, got {shown(one_line(error))}.") from error

    def only(self, rows: npt.NDArray[np.intp]) -> FeatureStore:
        """Return the same store with some of its documents; ``rows`` of :attr:`index`."""
        part = copy.copy(self)
        part.index = self.index.iloc[np.sort(rows)].reset_index(drop=True)
        part._places = _places(part.index)
        return part

    def __len__(self) -> int:
        return len(self.index)

    def layer(self, name: str) -> StoredLayer:
        """Return the layer of that name.

        Raises:
            DataError: the store has none.
        """
        for layer in self.header.layers:
            if layer.name == name:
                return layer
        raise DataError(
            f"{self.folder}: expected a layer among {[layer.name for layer in self.header.layers]}, got {name!r}."
        )

    def features(self, layer: str, pooling: str, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Return the features at one layer.

        Args:
            layer: its name.
            pooling: one of its poolings.
            rows: rows of :attr:`index`; all of them where ``None``.

        Returns:
            (n, d) float32, in the order of ``rows``.

        Raises:
            DataError: the store has no such features, a shard is missing or damaged, or a value is not finite; the
                message names layer and document.
        """
        features = self._read(f"{layer}/{pooling}", rows)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            chosen = self.index if rows is None else self.index.iloc[rows]
            bad = chosen["id"].to_numpy()[~finite]
            raise DataError(
                f"{self.folder}: expected finite features, got NaN or infinity at {layer} ({pooling}) in {len(bad)} "
                f"documents, such as {bad[0]!r}. The model's activations overflow in its precision: load it with "
                "dtype=bfloat16 or float32 and run the task again."
            )
        return features

    def lens(self, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32] | None:
        """Return the labels' logits after each block of the LLM, (n, layers, K) float32, or ``None`` without any."""
        return self._read(LENS, rows) if self.header.lens else None

    def _read(self, name: str, rows: npt.NDArray[np.intp] | None) -> npt.NDArray[np.float32]:
        wanted = np.arange(len(self.index)) if rows is None else np.asarray(rows)
        place_of = np.full(len(self.index), -1, dtype=np.intp)
        place_of[wanted] = np.arange(len(wanted))
        features: npt.NDArray[np.float32] | None = None
        for shard, (members, inside) in self._places.items():
            chosen = place_of[members] >= 0
            if not chosen.any():
                continue
            if Path(str(shard)).name != str(shard):
                raise DataError(f"{self.folder}: expected the index to name shards of the store, got {shown(shard)}.")
            values = _tensor(self.folder / str(shard), name)
            if features is None:
                features = np.empty((len(wanted), *values.shape[1:]), dtype=np.float32)
            rows_inside = inside[chosen]
            outside = rows_inside.min() < 0 or rows_inside.max() >= len(values)
            if outside or values.shape[1:] != features.shape[1:]:
                raise DataError(
                    f"{self.folder / str(shard)}: {name} is shorter than the index says, or of another width."
                )
            features[place_of[members[chosen]]] = values[rows_inside]
        if features is None:
            raise DataError(f"{self.folder}: expected rows of the index, got none.")
        return features

    def check(self) -> None:
        """Compare the checksums of the header, of every part of the index and of every shard.

        Raises:
            DataError: a file is missing, or is not what was written.
        """
        self._check_seal()
        for shard, expected in self.index.drop_duplicates("shard")[["shard", "sha256"]].itertuples(index=False):
            path = self.folder / str(shard)
            if not path.is_file():
                raise DataError(f"{path}: expected a shard of features, got no file; copy the folder again.")
            if sha256(path) != expected:
                raise DataError(f"{path}: the shard is damaged (its checksum is another); copy the folder again.")

    def _check_seal(self) -> None:
        """Check the list of files, which also names those that the index no longer does."""
        path = self.folder / SEAL
        try:
            sealed = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(sealed, dict):
                raise TypeError(f"{type(sealed).__name__} in place of an object")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: expected a list of the store's files, got {shown(one_line(error))}. Copy the folder again; "
                "if the run was stopped, start the same command again."
            ) from error
        actual = checksums(self.folder)
        if wrong := sorted(name for name in sealed.keys() | actual.keys() if sealed.get(name) != actual.get(name)):
            what = {name: "is missing" if name not in actual else "is damaged or of another store" for name in wrong}
            raise DataError(
                f"{self.folder / wrong[0][:200]}: the file {what[wrong[0]]} ({len(wrong)} such files in all); copy the "
                "folder again."
            )


def _places(index: pd.DataFrame) -> dict[Any, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return by shard the rows of an index that are in it, and their row numbers there."""
    return {
        shard: (part.index.to_numpy(), part["row"].to_numpy(np.int64))
        for shard, part in index.groupby("shard", sort=True, observed=True)
    }


def read_index(folder: Path) -> pd.DataFrame:
    """Return the documents of a store, sorted by id and without repeats; empty where there are none.

    Raises:
        DataError: a file of it is damaged.
    """
    parts = []
    for path in sorted((folder / INDEX).glob("*.parquet")):
        part = read_index_part(path)
        for name in ("group", "fold", "label", "shard", "sha256"):
            part[name] = part[name].astype("category")
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    whole = pd.concat(parts, ignore_index=True)
    for name in ("group", "fold", "label", "shard", "sha256"):
        whole[name] = whole[name].astype("category")
    # A document that two starts of a run looked at has two rows, alike but for their place.
    return whole.drop_duplicates("id").sort_values("id").reset_index(drop=True)


def read_index_part(path: Path) -> pd.DataFrame:
    """Return one part of the index.

    Raises:
        DataError: the file is damaged.
    """
    try:
        table = pq.read_table(path)
        # pyarrow reads text that is no UTF-8, and raises only where it is used; its full check finds it here.
        table.validate(full=True)
        part: pd.DataFrame = table.to_pandas()
        if missing := sorted(set(COLUMNS) - set(part.columns)):
            raise ValueError(f"columns {missing} are missing")
    # What pyarrow and pandas raise of damaged files and of damaged notes about columns in them.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError) as error:
        raise DataError(
            f"{path}: expected an index of features, got {shown(one_line(error))}. Copy the folder again."
        ) from error
    return part


def _tensor(path: Path, name: str) -> npt.NDArray[np.float32]:
    try:
        with safe_open(str(path), framework="numpy") as handle:
            values = np.asarray(handle.get_tensor(name), dtype=np.float32)
            exponents: dict[str, str] = handle.metadata() or {}
        exponent = int(exponents.get(name, 0))
        if values.ndim < 2 or abs(exponent) > 1000:
            raise ValueError(f"the shape {list(values.shape)} and the exponent {shown(exponent)}")
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: expected features {shown(name)}, got {shown(one_line(error))}; copy the folder again."
        ) from error
    return np.ldexp(values, exponent) if exponent else values


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the checksums of the header and of the parts of the index, which in turn hold those of the shards."""
    names = [STORE, *sorted(f"{INDEX}/{path.name}" for path in (folder / INDEX).glob("*.parquet"))]
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def shard_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a store's shards by file name, as its index holds them."""
    index = read_index(folder)
    pairs = index.drop_duplicates("shard")[["shard", "sha256"]]
    return {str(shard): str(checksum) for shard, checksum in pairs.itertuples(index=False)}
