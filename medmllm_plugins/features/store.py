"""Writing a feature store: header, index, shard names and seal; see :mod:`medmllm_plugins.results.feature_store`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.feature_store import (
    COLUMNS,
    INDEX,
    SEAL,
    STORE,
    Header,
    checksums,
    read_index,
    read_index_part,
    sha256,
)
from medmllm_plugins.utils.atomic_files import write_whole

logger = logging.getLogger(__name__)
Half = npt.NDArray[np.float16]


def halves(values: npt.NDArray[np.float32]) -> tuple[Half, int]:
    """Return values as float16, divided by a power of two where they are too large for it.

    Returns:
        The values, and the exponent; NaN and infinity stay what they are.
    """
    largest = float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
    exponent = max(0, int(np.ceil(np.log2(largest / 60000.0)))) if largest > 60000.0 else 0
    with np.errstate(over="ignore"):
        return np.ldexp(values, -exponent).astype(np.float16), exponent


def write_header(folder: Path, header: Header) -> None:
    """Write ``store.json``; every process writes the same."""
    (folder / INDEX).mkdir(parents=True, exist_ok=True)
    write_whole(folder / STORE, json.dumps(header.to_dict(), indent=2, ensure_ascii=False) + "\n")


def seal(folder: Path) -> None:
    """Write the list of the store's files, once it is complete."""
    write_whole(folder / SEAL, json.dumps(checksums(folder), indent=2) + "\n")


def stored_ids(folder: Path) -> frozenset[str]:
    """Return the ids of the documents whose features are on disk as they were written.

    A part of the index that is damaged, or whose shard is missing or has another checksum, counts as never written.
    """
    if not (folder / INDEX).is_dir():
        return frozenset()
    for path in sorted((folder / INDEX).glob("*.parquet")):
        try:
            part = read_index_part(path)
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
    table = pd.DataFrame([{"attributes": "{}", **record} for record in records])
    table["rank"], table["shard"], table["row"], table["sha256"] = rank, shard, np.arange(len(table)), checksum
    return table[list(COLUMNS)]
