"""Attributions on disk: maps as arrays, pictures, and one index over them.

``TASK/entries/`` has a JSON file for each document as soon as it is explained, so that an interrupted run can continue;
``maps/`` has the arrays, ``pictures/`` the PNG files. One process writes ``index.json`` with :func:`gather_index`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from medmllm_plugins.attribution import map_images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.checks.check_summary import summarise_checks, summary_key
from medmllm_plugins.attribution.explanation_faults import fault_messages
from medmllm_plugins.attribution.maps import AttributionMap
from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.results.attribution_files import write_index
from medmllm_plugins.results.attribution_records import (
    AttributionEntry,
    AttributionFault,
    AttributionIndex,
    AttributionMethod,
    ExplainedDocument,
    ProcessCascade,
    ProcessResults,
)
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.record import Record

STOPPED = "stopped explaining"
"""Part of the warning about a process that did not explain all its documents."""

_Content = TypeVar("_Content", bound=Record)


class AttributionStore:
    """The folder of one task's attributions, as written by one process."""

    def __init__(self, folder: Path, options: Mapping[str, Any], process: str = "0", *, again: bool = False) -> None:
        """Open the folder.

        Documents that were explained with other options are explained again; ``again`` explains all of them again and
        keeps the earlier results of other methods.
        """
        self.folder = folder
        self._process, self._again = process, again
        self._state = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
        self._methods: tuple[AttributionMethod, ...] = ()

    def begin(self, methods: Sequence[AttributionMethod]) -> None:
        """Set the methods, and delete what an earlier start explained with other options."""
        self._methods = tuple(methods)
        if not self._again:
            for path in (*self.folder.glob("entries/*.json"), *self.folder.glob("process-*.json")):
                with suppress(FileNotFoundError):  # another process of this run deletes the same files
                    if _state_of(path) != self._state:
                        path.unlink()

    def has(self, identifier: str) -> bool:
        """Return whether an earlier start explained the document with the same options."""
        path = self._entry(identifier)
        return not self._again and path.is_file() and _state_of(path) == self._state

    def methods(self, identifier: str) -> set[str]:
        """Return the names of the methods that gave maps of an explained document."""
        return {entry.method for entry in _read(ExplainedDocument, self._entry(identifier)).entries}

    def original(self, identifier: str, picture: Image.Image) -> Path:
        """Write the pictures shown, and return the file's path relative to the folder."""
        name = Path("pictures", f"{stem(identifier)}.png")
        map_images.save(picture, self.folder / name)
        return name

    def map(
        self, identifier: str, method: str, layer: str, map_: AttributionMap, case: AttributionInput
    ) -> dict[str, Any]:
        """Write a map and its pictures, and return the fields of the entry that describe these files."""
        base = f"{stem(identifier)}.{method}.{layer}"
        arrays: dict[str, Any] = {"values": map_.values.astype(np.float32)}
        if map_.painted is not None:
            arrays["map"] = map_.painted.astype(np.float32)
        if map_.tokens is not None:
            arrays["tokens"] = map_.tokens.astype(np.float32)
        path = Path("maps", f"{base}.npz")
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(self.folder / path, **arrays)
        if map_.painted is None:
            return {"map": path}
        heat, overlay = Path("pictures", f"{base}.heat.png"), Path("pictures", f"{base}.png")
        map_images.save(map_images.stack_vertically(map_images.colour_map(map_.painted)), self.folder / heat)
        map_images.save(map_images.overlay(map_images.originals(case), map_.painted), self.folder / overlay)
        scale = map_images.colour_range(map_.painted)
        return {"map": path, "heat": heat, "overlay": overlay, "slices": len(map_.painted), "scale": scale}

    def add(
        self, identifier: str, entries: Sequence[AttributionEntry], faults: Sequence[AttributionFault] = ()
    ) -> None:
        """Write the entries of an explained document, and what was left out of it."""
        path, new = self._entry(identifier), [(entry.method, entry.layer) for entry in entries]
        before = self._before(ExplainedDocument, path)
        old = [entry for entry in before.entries if (entry.method, entry.layer) not in new]
        old_faults = [fault for fault in before.faults if fault.method and not self._is_tried(fault.method)]
        document = ExplainedDocument(state=self._state, entries=(*old, *entries), faults=(*old_faults, *faults))
        self._write(path, document.to_dict())

    def finish(
        self,
        randomised: Sequence[ProcessCascade],
        warnings: Sequence[str],
        faults: Sequence[AttributionFault] = (),
    ) -> None:
        """Write the results for all documents of this process.

        Where documents are explained again, they join the earlier results; for the same method, layer and settings the
        last ones count.
        """
        path = self.folder / f"process-{self._process}.json"
        before = self._before(ProcessResults, path)
        old_faults = [fault for fault in before.faults if not self._is_tried(fault.method)]
        results = ProcessResults(
            state=self._state,
            methods=_last_of_each((*before.methods, *self._methods), lambda method: method.name),
            randomised=_last_of_each((*before.randomised, *randomised), summary_key),
            warnings=tuple(dict.fromkeys((*before.warnings, *warnings))),
            faults=(*old_faults, *faults),
        )
        self._write(path, results.to_dict())

    def _is_tried(self, name: str) -> bool:
        return name in {method.name for method in self._methods}

    def _before(self, kind: type[_Content], path: Path) -> _Content:
        """Return the earlier content of a file, to which documents that are explained again are added."""
        return _read(kind, path) if self._again and path.is_file() else kind.from_dict({})

    def is_finished(self, identifiers: Sequence[str]) -> bool:
        """Return whether an earlier start explained these documents with the same options, and made all checks."""
        path = self._finished()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            same = content == {"state": self._state, "documents": list(identifiers)}
        except (OSError, ValueError, RecursionError):
            return False
        return same and all(map(self.has, identifiers))

    def note_finished(self, identifiers: Sequence[str]) -> None:
        """Record that these documents are explained and all checks are made."""
        self._write(self._finished(), {"state": self._state, "documents": list(identifiers)})

    def _finished(self) -> Path:
        return self.folder / f"finished-{self._process}.json"

    def fail(self, why: str) -> None:
        """Record that this process did not explain all its documents."""
        self.finish((), [f"Process {self._process} {STOPPED}: {why}"])

    def _entry(self, identifier: str) -> Path:
        return self.folder / "entries" / f"{stem(identifier)}.json"

    def _write(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


def gather_index(folder: Path, task: str, model: str, labels: Sequence[str]) -> AttributionIndex:
    """Gather what all processes explained into one index, and write it.

    Raises:
        DataError: No document was explained, or a file is damaged.
    """
    parts = [_read(ProcessResults, path) for path in sorted(folder.glob("process-*.json"))]
    documents = [_read(ExplainedDocument, path) for path in sorted((folder / "entries").glob("*.json"))]
    entries = [entry for document in documents for entry in document.entries]
    faults = [
        *(fault for document in documents for fault in document.faults),
        *(f for part in parts for f in part.faults),
    ]
    warnings = sorted({warning for part in parts for warning in part.warnings})
    if not entries:
        raise DataError(
            " ".join([f"{folder}: expected explained documents, got none.", *warnings, *fault_messages(faults)])
        )
    index = AttributionIndex(
        task=task,
        model=model,
        labels=tuple(labels),
        methods=_last_of_each([method for part in parts for method in part.methods], lambda method: method.name),
        entries=tuple(entries),
        summary=summarise_checks(entries, [cascade for part in parts for cascade in part.randomised]),
        faults=tuple(faults),
        warnings=(*warnings, *fault_messages(faults)),
    )
    write_index(folder, index)
    return index


def stem(identifier: str) -> str:
    """Return a readable and unique file name for a document's id."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier)[:60].strip("._") or "document"
    return f"{plain}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"


def _last_of_each(records: Sequence[_Content], key: Callable[[_Content], Any]) -> tuple[_Content, ...]:
    """Return the records; of those with the same key, the last."""
    return tuple({key(record): record for record in records}.values())


def _state_of(path: Path) -> Any:
    """Return the hash of the options a file was written with, or None for a damaged file, which is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["state"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(kind: type[_Content], path: Path) -> _Content:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "state" not in content:
            raise ValueError("another content")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected attributions as a med_attr task writes them, got {one_line(error)[:300]}. Run the task "
            "again in a new folder."
        ) from error
    return kind.from_dict(content)
