"""Writing features to a store in a thread of its own, so that the model need not wait for the disk."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from torch import Tensor

from medmllm_plugins.features.store import halves, index_rows, shards
from medmllm_plugins.results.feature_store import INDEX, LENS, sha256

SHARD_ROWS: Final = 256
SHARD_BYTES: Final = 64 * 2**20
"""A shard is written once it has this many documents or bytes."""
WAITING: Final = 4
"""Most batches that may wait to be written; then the model waits."""


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """The features of one batch, on their way to the disk.

    Attributes:
        records: the metadata of each document, see :data:`medmllm_plugins.results.feature_store.COLUMNS`.
        stacks: tensors of one width each, laid together: (names in it, B, d) float32, in the order of ``names``.
        extra: further arrays by name, (B, …), which are not pooled features.
        copied: recorded on the devices once the stacks are in this process's memory; none on a CPU.
    """

    records: Sequence[Mapping[str, Any]]
    names: Sequence[Sequence[str]]
    stacks: Sequence[Tensor]
    extra: Mapping[str, npt.NDArray[Any]]
    copied: Sequence[Any] = ()


class Writer:
    """The thread, and the shard that it is filling."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Begin; the folder holds the store's header already."""
        self._folder, self._rank = folder, rank
        self._names = shards(folder, rank)
        self._queue: queue.Queue[FeatureBatch | None] = queue.Queue(maxsize=WAITING)
        self._records: list[Mapping[str, Any]] = []
        self._parts: dict[str, list[npt.NDArray[Any]]] = {}
        self._bytes = 0
        self._failure: BaseException | None = None
        self._written: list[str] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="medmllm-features", daemon=True)
        self._thread.start()

    def add(self, batch: FeatureBatch) -> None:
        """Queue the features of a batch and wait while the queue is full; raise what went wrong in writing."""
        self._raise()
        self._queue.put(batch)

    def durable(self) -> list[str]:
        """Return the ids of the documents whose features have reached the disk since the last call."""
        with self._lock:
            written, self._written = self._written, []
        return written

    def close(self) -> None:
        """Write what is left and end the thread; raise what went wrong in writing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._failure is not None:
                continue  # the queue is emptied all the same, so that no producer waits for ever
            try:
                self._take(batch)
            # Whatever went wrong is raised where features are handed over.
            except Exception as error:
                self._failure = error
        try:
            if self._failure is None:
                self._flush()
        except Exception as error:
            self._failure = error

    def _take(self, batch: FeatureBatch) -> None:
        for event in batch.copied:
            event.synchronize()
        for names, stack in zip(batch.names, batch.stacks, strict=True):
            for name, values in zip(names, stack.numpy(), strict=True):
                self._put(name, values)
        for name, values in batch.extra.items():
            self._put(name, values)
        self._records.extend(batch.records)
        if len(self._records) >= SHARD_ROWS or self._bytes >= SHARD_BYTES:
            self._flush()

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(values)
        self._bytes += values.nbytes // 2

    def _flush(self) -> None:
        if not self._records:
            return
        tensors: dict[str, npt.NDArray[Any]] = {}
        metadata = {}
        for name, parts in self._parts.items():
            whole = np.concatenate(parts)
            if name == LENS:
                tensors[name] = np.ascontiguousarray(whole, dtype=np.float32)
                continue
            tensors[name], exponent = halves(whole)
            if exponent:
                metadata[name] = str(exponent)
        stem = next(self._names)
        path = self._folder / f"{stem}.safetensors"
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, str(draft), metadata=metadata)
            draft.chmod(0o644)
            os.replace(draft, path)
            checksum = sha256(path)
            part = self._folder / INDEX / f"{stem}.parquet"
            index_rows(self._records, rank=self._rank, shard=path.name, checksum=checksum).to_parquet(draft)
            os.replace(draft, part)
        finally:
            draft.unlink(missing_ok=True)
        with self._lock:
            self._written.extend(str(record["id"]) for record in self._records)
        self._records, self._parts, self._bytes = [], {}, 0


def stacked(activations: Mapping[tuple[str, str], Tensor]) -> tuple[list[list[str]], list[Tensor], list[Any]]:
    """Lay tensors (B, d) of one width and device together and bring them into this process's memory.

    Returns:
        Names and tensors as in :class:`FeatureBatch`, and what to wait for before they are read.
    """
    groups: dict[tuple[torch.device, int], list[tuple[str, Tensor]]] = {}
    for (layer, pooling), value in activations.items():
        groups.setdefault((value.device, value.shape[-1]), []).append((f"{layer}/{pooling}", value))
    names, stacks, copied = [], [], []
    with torch.inference_mode():
        for (device, _), members in groups.items():
            whole = torch.stack([value for _, value in members])
            if device.type == "cuda":
                pinned = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=True)
                whole = pinned.copy_(whole, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(device))
                copied.append(event)
            names.append([name for name, _ in members])
            stacks.append(whole.cpu())
    return names, stacks, copied
