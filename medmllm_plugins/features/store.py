"""The feature store: what the stages of one model hold of the documents of one task, on disk.

A folder with ``store.json`` (what it is of, and its layers), shards ``rank0-00000.safetensors`` … with a float16 tensor
``LAYER/POOLING`` of shape (n, d) each, and in ``index/`` a Parquet file for each shard, which together are one table
with a row for each document. A shard counts once its index file is there, so that a killed run leaves nothing
half-written. ``seal.json`` is written when all processes have written theirs: it lists the files of a whole store.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError, safe_open

from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.utils.atomic_files import write_whole

logger = logging.getLogger(__name__)
VERSION: Final = 1
STORE: Final = "store.json"
INDEX: Final = "index"
SEAL: Final = "seal.json"
LENS: Final = "lens"
"""The tensor of a shard that holds the labels' logits after each block of the LLM, (n, layers, K) float32."""
COLUMNS: Final = (
    "id", "document", "group", "fold", "label", "answer", "scores", "blank", "label_tokens", "rank", "shard", "row",
    "sha256",
)  # fmt: skip
"""Columns of the index. ``scores``, ``blank`` and ``label_tokens`` are lists, one number a label, or missing; ``shard``
is a file and ``sha256`` its checksum; ``row`` is the document's row in it."""

Half = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer of the model, as the store knows it.

    Attributes:
        name: such as ``"vision.03"``.
        part: ``"vision"``, ``"connector"``, ``"llm"`` or ``"control"``.
        poolings: how its rows were pooled; each shard has a tensor for each.
        widths: length of a vector, by pooling, in their order.
        read: whether it reaches the LLM; ``False`` for a tower's layers after the one that the LLM takes.
    """

    name: str
    part: str
    poolings: tuple[str, ...]
    widths: tuple[int, ...]
    read: bool = True


@dataclass(frozen=True, slots=True)
class Header:
    """The origin and the layers of a store.

    Attributes:
        task: the task's name, with its arguments.
        dataset: the data set's name.
        labels: its classes, in order.
        dataset_fingerprint: of the data, see :class:`medmllm_plugins.data.loading.dataset.Dataset`.
        model: name of the model.
        model_fingerprint: SHA-256 of the files that the model was made from.
        layers: in the order in which an image passes them; control features at the end.
        lens: layers at which the labels' logits were read off; empty where they were not.
    """

    task: str
    dataset: str
    labels: tuple[str, ...]
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    layers: tuple[StoredLayer, ...]
    lens: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the text of ``store.json``."""
        return json.dumps({"medmllm_features": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Read what :meth:`to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        fields = dict(json.loads(text))
        if (version := fields.pop("medmllm_features")) != VERSION:
            raise ValueError(f"version {version} of the format, which is not this package's, {VERSION}")
        layers = tuple(
            StoredLayer(**{**layer, "poolings": tuple(layer["poolings"]), "widths": tuple(layer["widths"])})
            for layer in fields["layers"]
        )
        return cls(**{**fields, "labels": tuple(fields["labels"]), "layers": layers, "lens": tuple(fields["lens"])})


class FeatureStore:
    """A store opened for reading; features are read when they are asked for, a layer at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            DataError: there is none, or its index is damaged.
        """
        self.folder = folder
        try:
            self.header = Header.from_json((folder / STORE).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{folder}: expected a feature store with {STORE}, got {shown(one_line(error))}. Copy the folder "
                "again, or run the med_probe task with this version of the package."
            ) from error
        if (folder / SEAL).is_file():
            self._check_seal()  # before what a damaged disk left reaches the decoder of the index
        self.index = read_index(folder)
        if self.index.empty:
            raise DataError(f"{folder}: expected features of at least one document, found none; run the task again.")
        try:
            self._rows_by_shard = _shard_rows(self.index)
        except (ValueError, TypeError) as error:
            raise DataError(f"{folder}: expected an index with rows, got {shown(one_line(error))}.") from error

    def only(self, rows: npt.NDArray[np.intp]) -> FeatureStore:
        """Return the same store with some of its documents; ``rows`` of :attr:`index`."""
        part = copy.copy(self)
        part.index = self.index.iloc[np.sort(rows)].reset_index(drop=True)
        part._rows_by_shard = _shard_rows(part.index)
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
            f"{self.folder}: expected a layer among {[layer.name for layer in self.header.layers]}, found {name!r}."
        )

    def features(self, layer: str, pooling: str, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Return the features of one layer.

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
        values = self._read(f"{layer}/{pooling}", rows)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            chosen = self.index if rows is None else self.index.iloc[rows]
            bad = chosen["id"].to_numpy()[~finite]
            raise DataError(
                f"{self.folder}: expected finite features, found NaN or infinity at {layer} ({pooling}) in {len(bad)} "
                f"documents, such as {bad[0]!r}. The model's activations overflow in its precision: load it with "
                "dtype=bfloat16 or float32 and run the task again."
            )
        return values

    def lens(self, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32] | None:
        """Return the labels' logits after each block of the LLM, (n, layers, K) float32; ``None`` where none were kept."""
        return self._read(LENS, rows) if self.header.lens else None

    def _read(self, name: str, rows: npt.NDArray[np.intp] | None) -> npt.NDArray[np.float32]:
        wanted = np.arange(len(self.index)) if rows is None else np.asarray(rows)
        position_of = np.full(len(self.index), -1, dtype=np.intp)
        position_of[wanted] = np.arange(len(wanted))
        features: npt.NDArray[np.float32] | None = None
        for shard, (members, inside) in self._rows_by_shard.items():
            chosen = position_of[members] >= 0
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
            features[position_of[members[chosen]]] = values[rows_inside]
        if features is None:
            raise DataError(f"{self.folder}: expected rows of the index, found none.")
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
                raise DataError(f"{path}: expected a shard of features, found no file; copy the folder again.")
            if sha256(path) != expected:
                raise DataError(f"{path}: the shard is damaged (its checksum is another); copy the folder again.")

    def _check_seal(self) -> None:
        """Compare the store's files with the seal: a part that the index lacks would not be missed otherwise."""
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
        sums = _sums(self.folder)
        if wrong := sorted(name for name in sealed.keys() | sums.keys() if sealed.get(name) != sums.get(name)):
            what = {name: "is missing" if name not in sums else "is damaged or of another store" for name in wrong}
            raise DataError(
                f"{self.folder / wrong[0][:200]}: the file {what[wrong[0]]} ({len(wrong)} such files in all); copy the "
                "folder again."
            )


def _shard_rows(index: pd.DataFrame) -> dict[Any, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return, by shard, the rows of an index that are in it, and their rows there."""
    return {
        shard: (part.index.to_numpy(), part["row"].to_numpy(np.int64))
        for shard, part in index.groupby("shard", sort=True, observed=True)
    }


def read_index(folder: Path) -> pd.DataFrame:
    """Read the table of a store's documents, sorted by id, without duplicates; empty where there is none.

    Raises:
        DataError: a file of it is damaged.
    """
    parts = []
    for path in sorted((folder / INDEX).glob("*.parquet")):
        part = _read_part(path)
        for name in ("group", "fold", "label", "shard", "sha256"):
            part[name] = part[name].astype("category")
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    whole = pd.concat(parts, ignore_index=True)
    for name in ("group", "fold", "label", "shard", "sha256"):
        whole[name] = whole[name].astype("category")
    # A document that two starts of a run recorded has two rows, which differ in their shard alone.
    return whole.drop_duplicates("id").sort_values("id").reset_index(drop=True)


def _read_part(path: Path) -> pd.DataFrame:
    try:
        part = pd.read_parquet(path)
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


def halves(values: npt.NDArray[np.float32]) -> tuple[Half, int]:
    """Return values as float16, divided by a power of two where they are too large for it.

    Returns:
        The values, and the exponent; NaN and infinity stay what they are.
    """
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    exponent = max(0, int(np.ceil(np.log2(largest / 60000.0)))) if largest > 60000.0 else 0
    with np.errstate(over="ignore"):
        return np.ldexp(values, -exponent).astype(np.float16), exponent


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_header(folder: Path, header: Header) -> None:
    """Write ``store.json``; every process writes the same.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / INDEX).mkdir(parents=True, exist_ok=True)
    write_whole(folder / STORE, header.to_json())


def seal(folder: Path) -> None:
    """Write the list of the store's files, once it is complete.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / SEAL, json.dumps(_sums(folder), indent=2) + "\n")


def _sums(folder: Path) -> dict[str, str]:
    """Return the checksums of the header and of the parts of the index, which in turn hold those of the shards."""
    names = [STORE, *sorted(f"{INDEX}/{path.name}" for path in (folder / INDEX).glob("*.parquet"))]
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def stored_ids(folder: Path) -> frozenset[str]:
    """Return the ids of the documents whose features are on disk as they were written.

    A part of the index that is damaged, or whose shard is missing or has another checksum, counts as never written.
    """
    if not (folder / INDEX).is_dir():
        return frozenset()
    for path in sorted((folder / INDEX).glob("*.parquet")):
        try:
            part = _read_part(path)
            sums = part.drop_duplicates("shard")[["shard", "sha256"]].itertuples(index=False)
            damaged = [str(shard) for shard, checksum in sums if not _is_whole(folder / str(shard), checksum)]
            fault = f"{damaged[0]} is damaged" if damaged else ""
        except DataError as error:
            fault = str(error)
        if fault:
            logger.warning("%s: %s; features of its documents are computed again.", path, fault)
            path.unlink(missing_ok=True)  # another process of this run may be about the same
    return frozenset(read_index(folder)["id"].astype(str))


def _is_whole(path: Path, checksum: str) -> bool:
    return path.is_file() and sha256(path) == checksum


def shards(folder: Path, rank: int) -> Iterator[str]:
    """Yield names for new shards of a process, after those that exist."""
    taken = [path.stem for path in (folder / INDEX).glob(f"rank{rank}-*.parquet")]
    number = 1 + max((int(stem.rsplit("-", 1)[1]) for stem in taken), default=-1)
    while True:
        yield f"rank{rank}-{number:05d}"
        number += 1


def index_rows(records: Sequence[Mapping[str, Any]], *, rank: int, shard: str, checksum: str) -> pd.DataFrame:
    """Return a part of the index: the metadata of each document, and where its features are."""
    table = pd.DataFrame(list(records))
    table["rank"], table["shard"], table["row"], table["sha256"] = rank, shard, np.arange(len(table)), checksum
    return table[list(COLUMNS)]


def shard_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a store's shards by file name, as its index holds them."""
    index = read_index(folder)
    pairs = index.drop_duplicates("shard")[["shard", "sha256"]]
    return {str(shard): str(checksum) for shard, checksum in pairs.itertuples(index=False)}
