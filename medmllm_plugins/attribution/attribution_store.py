"""Attributions on disk: maps as arrays, pictures to look at, one index over them.

``TASK/entries/`` has a JSON file for each document as soon as it is explained, so that a broken run goes on; ``maps/``
the arrays, ``pictures/`` the PNG files. :func:`write_index` makes ``index.json`` and the table of them, on one process.
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
"""What the index says of a process whose documents were not explained, or not all of them."""

INDEX = "index.json"
FORMAT = 1


class AttributionStore:
    """The folder of one task's attributions, as one process fills it."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], process: str = "0", *, again: bool = False) -> None:
        """Open it.

        Args:
            folder: made where it is not there.
            asked: what is explained and how, ``target``, ``baseline`` and ``steps`` among it; documents that were
                explained otherwise are explained anew.
            process: its name.
            again: whether documents are explained again, so that what other methods said of them before stays.
        """
        self.folder = folder
        self._process, self._again = process, again
        self._state = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        # What maps of one method at one layer must have in common to be counted together.
        self._how = {"mode": asked["target"], "baseline": asked["baseline"], "steps": asked["steps"]}
        self._methods: list[dict[str, Any]] = []

    def begin(self, methods: list[dict[str, Any]]) -> None:
        """Note the methods' declarations, and forget what an earlier start explained in another way."""
        self._methods = methods
        if not self._again:
            for path in (*self.folder.glob("entries/*.json"), *self.folder.glob("process-*.json")):
                with suppress(FileNotFoundError):  # another process of this run is about the same
                    if _state_of(path) != self._state:
                        path.unlink()

    def has(self, identifier: str) -> bool:
        """Whether a document was explained by an earlier start, in the same way."""
        path = self._entry(identifier)
        return not self._again and path.is_file() and _state_of(path) == self._state

    def methods(self, identifier: str) -> set[str]:
        """Which methods gave maps of a document that was explained."""
        return {str(one["method"]) for one in _read(self._entry(identifier))["entries"]}

    def original(self, identifier: str, picture: Image.Image) -> str:
        """Write the pictures that were shown; returns the file's name below the folder."""
        name = f"pictures/{stem(identifier)}.png"
        map_images.save(picture, self.folder / name)
        return name

    def map(
        self, identifier: str, method: str, layer: str, one: AttributionMap, case: AttributionInput
    ) -> dict[str, Any]:
        """Write a map and its pictures; returns what its entry tells of them."""
        base = f"{stem(identifier)}.{method}.{layer}"
        held: dict[str, Any] = {"values": one.values.astype(np.float32)}
        if one.painted is not None:
            held["map"] = one.painted.astype(np.float32)
        if one.tokens is not None:
            held["tokens"] = one.tokens.astype(np.float32)
        path = self.folder / "maps" / f"{base}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **held)
        facts: dict[str, Any] = {"map": f"maps/{base}.npz", "heat": None, "overlay": None, "slices": 1, "scale": None}
        if one.painted is not None:
            heat, both = f"pictures/{base}.heat.png", f"pictures/{base}.png"
            map_images.save(map_images.stack_vertically(map_images.colour_map(one.painted)), self.folder / heat)
            map_images.save(map_images.overlay(map_images.originals(case), one.painted), self.folder / both)
            facts |= {"heat": heat, "overlay": both, "slices": len(one.painted)}
            facts["scale"] = list(map_images.colour_range(one.painted))
        return facts

    def keep(
        self, identifier: str, entries: Sequence[Mapping[str, Any]], faults: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Note that a document is explained, and what of it was left out."""
        path, new = self._entry(identifier), [(one["method"], one["layer"]) for one in entries]
        before = _read(path) if self._again and path.is_file() else {"entries": [], "faults": []}
        kept = [one for one in before["entries"] if (one["method"], one["layer"]) not in new]
        tried = {one["name"] for one in self._methods}
        past = [one for one in before.get("faults", ()) if one["method"] and one["method"] not in tried]
        now = [{**one, **self._how} for one in entries]
        self._write(path, {"state": self._state, "entries": [*kept, *now], "faults": [*past, *faults]})

    def finish(
        self,
        randomised: Mapping[tuple[str, str], Any],
        warnings: Sequence[str],
        faults: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Write what holds for all of this process's documents.

        Where documents are explained again it joins what was found the times before: of the same method, layer and
        settings the last holds.
        """
        path = self.folder / f"process-{self._process}.json"
        before = _read(path) if self._again and path.is_file() else {}
        levels = [
            {"method": method, "layer": layer, **self._how, "levels": found}
            for (method, layer), found in randomised.items()
        ]
        tried = {one["name"] for one in self._methods}
        past = [one for one in before.get("faults", ()) if one["method"] not in tried]
        self._write(
            path,
            {
                "state": self._state,
                "methods": _joined(before.get("methods", ()), self._methods, lambda one: one["name"]),
                "randomised": _joined(before.get("randomised", ()), levels, summary_key),
                "warnings": list(dict.fromkeys((*before.get("warnings", ()), *warnings))),
                "faults": [*past, *faults],
            },
        )

    def is_finished(self, identifiers: Sequence[str]) -> bool:
        """Whether an earlier start explained these documents in the same way, and made all checks on them."""
        path = self._finished()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            same = content == {"state": self._state, "documents": list(identifiers)}
        except (OSError, ValueError, RecursionError):
            return False
        return same and all(map(self.has, identifiers))

    def note_finished(self, identifiers: Sequence[str]) -> None:
        """Note that these documents are explained and all checks are made."""
        self._write(self._finished(), {"state": self._state, "documents": list(identifiers)})

    def _finished(self) -> Path:
        return self.folder / f"finished-{self._process}.json"

    def fail(self, why: str) -> None:
        """Note that this process's documents were not explained, or not all of them."""
        self.finish({}, [f"Process {self._process} {STOPPED}: {why}"])

    def _entry(self, identifier: str) -> Path:
        return self.folder / "entries" / f"{stem(identifier)}.json"

    def _write(self, path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")


def write_index(folder: Path, task: str, model: str, labels: Sequence[str]) -> dict[str, Any]:
    """Make the index of what all processes explained, and the table beside the folder.

    Args:
        folder: the task's.
        task: its name.
        model: the model's name.
        labels: the classes.

    Returns:
        The index, as it stands in ``index.json``.

    Raises:
        DataError: nothing was explained.
    """
    try:
        index = _index(folder, task, model, labels)
    # What another program, or a fault, left in the files may have any shape.
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
    entries = [entry for one in documents for entry in one["entries"]]
    faults = [fault for one in (*documents, *parts) for fault in one.get("faults", ())]
    warnings = sorted({warning for part in parts for warning in part["warnings"]})
    if not entries:
        raise DataError(
            " ".join([f"{folder}: expected explained documents, found none.", *warnings, *fault_messages(faults)])
        )
    levels = [one for part in parts for one in part["randomised"]]
    rows = summarise_checks(entries, levels)
    return {
        "medmllm_attributions": FORMAT,
        "task": task,
        "model": model,
        "labels": list(labels),
        "methods": list({one["name"]: one for part in parts for one in part["methods"]}.values()),
        "entries": entries,
        "summary": rows,
        "faults": faults,
        "warnings": [*warnings, *fault_messages(faults)],
    }


def write_table(path: Path, index: Mapping[str, Any]) -> None:
    """Write the summary as CSV, a row for each method, layer and settings."""
    write_whole(path, to_csv(index["summary"]))


def stem(identifier: str) -> str:
    """A file name for a document's id: readable, and of its own for each."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier)[:60].strip("._") or "document"
    return f"{plain}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"


def _joined(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]
) -> list[Mapping[str, Any]]:
    """Both lists, the later of what has the same key."""
    return list({key(one): one for one in (*before, *now)}.values())


def _state_of(path: Path) -> Any:
    """How a file's documents were explained; ``None`` of a damaged file, whose documents are explained again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["state"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a file of attributions, found {error}; run the task again.") from error
