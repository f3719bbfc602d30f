"""Attributions on disk: maps as arrays, pictures, and one index over them.

``TASK/entries/`` has a JSON file for each document as soon as it is explained, so that an interrupted run can continue;
``maps/`` has the arrays, ``pictures/`` the PNG files. One process writes ``index.json`` with :func:`write_index`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmllm_plugins.attribution import map_images
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.checks.check_summary import summarise_checks, summary_key, to_csv
from medmllm_plugins.attribution.explanation_faults import fault_messages
from medmllm_plugins.attribution.maps import AttributionMap
from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.utils.atomic_files import write_whole

STOPPED = "stopped explaining"
"""Part of the warning about a process that did not explain all its documents."""

INDEX = "index.json"
FORMAT = 1


class AttributionStore:
    """The folder of one task's attributions, as written by one process."""

    def __init__(self, folder: Path, options: Mapping[str, Any], process: str = "0", *, again: bool = False) -> None:
        """Open the folder.

        Args:
            folder: Created where it does not exist.
            options: What is explained and how, including ``target``, ``baseline`` and ``steps``; documents that were
                explained with other options are explained again.
            process: Name of the process.
            again: Whether documents are explained again, keeping the earlier results of other methods.
        """
        self.folder = folder
        self._process, self._again = process, again
        self._state = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
        # Maps of one method at one layer are summarised together only if they share these settings.
        self._settings = {"mode": options["target"], "baseline": options["baseline"], "steps": options["steps"]}
        self._methods: list[dict[str, Any]] = []

    def begin(self, methods: list[dict[str, Any]]) -> None:
        """Set the methods' declarations, and delete what an earlier start explained with other options."""
        self._methods = methods
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
        return {str(entry["method"]) for entry in _read(self._entry(identifier))["entries"]}

    def original(self, identifier: str, picture: Image.Image) -> str:
        """Write the pictures shown, and return the file's name relative to the folder."""
        name = f"pictures/{stem(identifier)}.png"
        map_images.save(picture, self.folder / name)
        return name

    def map(
        self, identifier: str, method: str, layer: str, map_: AttributionMap, case: AttributionInput
    ) -> dict[str, Any]:
        """Write a map and its pictures, and return their part of the entry."""
        base = f"{stem(identifier)}.{method}.{layer}"
        arrays: dict[str, Any] = {"values": map_.values.astype(np.float32)}
        if map_.painted is not None:
            arrays["map"] = map_.painted.astype(np.float32)
        if map_.tokens is not None:
            arrays["tokens"] = map_.tokens.astype(np.float32)
        path = self.folder / "maps" / f"{base}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
        facts: dict[str, Any] = {"map": f"maps/{base}.npz", "heat": None, "overlay": None, "slices": 1, "scale": None}
        if map_.painted is not None:
            colours, overlay = f"pictures/{base}.heat.png", f"pictures/{base}.png"
            map_images.save(map_images.stack_vertically(map_images.colour_map(map_.painted)), self.folder / colours)
            map_images.save(map_images.overlay(map_images.originals(case), map_.painted), self.folder / overlay)
            facts |= {"heat": colours, "overlay": overlay, "slices": len(map_.painted)}
            facts["scale"] = list(map_images.colour_range(map_.painted))
        return facts

    def add(
        self, identifier: str, entries: Sequence[Mapping[str, Any]], faults: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Write the entries of an explained document, and what was left out of it."""
        path, new = self._entry(identifier), [(entry["method"], entry["layer"]) for entry in entries]
        before = _read(path) if self._again and path.is_file() else {"entries": [], "faults": []}
        old = [entry for entry in before["entries"] if (entry["method"], entry["layer"]) not in new]
        tried = {method["name"] for method in self._methods}
        old_faults = [fault for fault in before.get("faults", ()) if fault["method"] and fault["method"] not in tried]
        joined = [*old, *({**entry, **self._settings} for entry in entries)]
        self._write(path, {"state": self._state, "entries": joined, "faults": [*old_faults, *faults]})

    def finish(
        self,
        randomised: Mapping[tuple[str, str], Any],
        warnings: Sequence[str],
        faults: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Write the results for all documents of this process.

        Where documents are explained again, they join the earlier results; for the same method, layer and settings the
        last ones count.
        """
        path = self.folder / f"process-{self._process}.json"
        before = _read(path) if self._again and path.is_file() else {}
        levels = [
            {"method": method, "layer": layer, **self._settings, "levels": similarities}
            for (method, layer), similarities in randomised.items()
        ]
        tried = {method["name"] for method in self._methods}
        old_faults = [fault for fault in before.get("faults", ()) if fault["method"] not in tried]
        self._write(
            path,
            {
                "state": self._state,
                "methods": _joined(before.get("methods", ()), self._methods, lambda method: method["name"]),
                "randomised": _joined(before.get("randomised", ()), levels, summary_key),
                "warnings": list(dict.fromkeys((*before.get("warnings", ()), *warnings))),
                "faults": [*old_faults, *faults],
            },
        )

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
        self.finish({}, [f"Process {self._process} {STOPPED}: {why}"])

    def _entry(self, identifier: str) -> Path:
        return self.folder / "entries" / f"{stem(identifier)}.json"

    def _write(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


def write_index(folder: Path, task: str, model: str, labels: Sequence[str]) -> dict[str, Any]:
    """Write the index of what all processes explained.

    Args:
        folder: Folder of the task.
        task: Name of the task.
        model: Name of the model.
        labels: The classes.

    Returns:
        The content of ``index.json``.

    Raises:
        DataError: No document was explained.
    """
    try:
        index = _index(folder, task, model, labels)
    # Files that were damaged, or written by another program, may have any content.
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{folder}: expected attributions as a med_attr task writes them, got {one_line(error)[:300]}. Run the "
            "task again in a new folder."
        ) from error
    write_whole(folder / INDEX, json.dumps(index, ensure_ascii=False, indent=1) + "\n")
    return index


def _index(folder: Path, task: str, model: str, labels: Sequence[str]) -> dict[str, Any]:
    """Return the content of the index; see :func:`write_index`."""
    parts = [_read(path) for path in sorted(folder.glob("process-*.json"))]
    documents = [_read(path) for path in sorted((folder / "entries").glob("*.json"))]
    entries = [entry for document in documents for entry in document["entries"]]
    faults = [fault for part in (*documents, *parts) for fault in part.get("faults", ())]
    warnings = sorted({warning for part in parts for warning in part["warnings"]})
    if not entries:
        raise DataError(
            " ".join([f"{folder}: expected explained documents, got none.", *warnings, *fault_messages(faults)])
        )
    levels = [record for part in parts for record in part["randomised"]]
    rows = summarise_checks(entries, levels)
    return {
        "medmllm_attributions": FORMAT,
        "task": task,
        "model": model,
        "labels": list(labels),
        "methods": list({method["name"]: method for part in parts for method in part["methods"]}.values()),
        "entries": entries,
        "summary": rows,
        "faults": faults,
        "warnings": [*warnings, *fault_messages(faults)],
    }


def write_table(path: Path, index: Mapping[str, Any]) -> None:
    """Write the summary as CSV, a row for each method, layer and settings."""
    write_whole(path, to_csv(index["summary"]))


def stem(identifier: str) -> str:
    """Return a readable and unique file name for a document's id."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier)[:60].strip("._") or "document"
    return f"{plain}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"


def _joined(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]
) -> list[Mapping[str, Any]]:
    """Return both lists; of records with the same key, the later one."""
    return list({key(record): record for record in (*before, *now)}.values())


def _state_of(path: Path) -> Any:
    """Return the hash of the options a file was written with, or None for a damaged file, which is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["state"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a file of attributions, got {error}. Run the task again.") from error
