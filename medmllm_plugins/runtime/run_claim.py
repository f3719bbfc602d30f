"""Which folder a run writes into: one that no other process uses, and in which no earlier results are lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from loguru import logger

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.file_names import ANSWERS, MANIFEST, UNFINISHED
from medmllm_plugins.results.manifest import Manifest, read_manifest
from medmllm_plugins.runtime.journal import run_of
from medmllm_plugins.utils.locking import FolderLock

_MODEL: Final = (
    "name", "pretrained", "fingerprint", "dtype", "load_in", "peft", "system", "max_new_tokens", "device_map", "method"
)  # fmt: skip
_COMMAND: Final = ("model", "limit", "num_fewshot", "gen_kwargs", "baseline")


@dataclass(frozen=True, slots=True)
class Claim:
    """A folder that is this run's.

    Attributes:
        earlier: the manifest that was in it, whose results stay; an empty one where there was none.
    """

    folder: Path
    lock: FolderLock
    earlier: Manifest


def claim_folder(wanted: Path, manifest: Manifest, journal: Path | None, *, resumed: bool) -> Claim:
    """Claim a folder, or the first of ``wanted-2``, ``wanted-3``, … that is free; a warning says why.

    A folder is free where no other process uses it, and where nothing in it would be lost: no results of the same
    tasks, none of another model or of other arguments, and no unfinished run of another command.

    Args:
        wanted: the folder; made where it is not there.
        manifest: of the run that is about to write.
        journal: folder of the journal of its answers.
        resumed: whether the folder is that of an earlier start of the same run.

    Raises:
        OSError: the folder cannot be written.
    """
    first_reason = ""
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        reason = "is in use by another process"
        if lock.acquire():
            earlier = _earlier_manifest(folder)
            # Journals are in the folder that was asked for, also those of runs that got a numbered one.
            journals = {folder / UNFINISHED, wanted / UNFINISHED, *([] if journal is None else [journal.parent])}
            reason = "" if resumed and number == 1 else _reason(folder, earlier, manifest, journal, journals)
            if not reason:
                if first_reason:
                    logger.warning(f"{wanted} {first_reason}: the files of this run go to {folder}.")
                return Claim(folder, lock, earlier or Manifest())
            lock.release()
        first_reason = first_reason or reason
    raise AssertionError("never reached: count() is endless")


def _earlier_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in a folder: an empty one where there is none, ``None`` where it cannot be read."""
    if not (folder / MANIFEST).exists():
        return Manifest()
    try:
        return read_manifest(folder)
    except DataError:
        return None


def _reason(
    folder: Path, earlier: Manifest | None, manifest: Manifest, journal: Path | None, journals: Iterable[Path]
) -> str:
    """Say why a run may not write into a folder; empty where it may."""
    if earlier is None:
        return f"holds a {MANIFEST} that cannot be read"
    scored = [task for task, entry in earlier.tasks.items() if entry.metrics is not None]
    if again := [task for task in scored if task in manifest.tasks]:
        return f"holds results of {again[0]} already"
    if scored and not _alike(earlier, manifest):
        return f"holds results of {scored[0]} by another model or with other arguments"
    if any(path != journal and _points_here(path, folder) for parent in journals for path in parent.glob("*")):
        return "holds an unfinished run of another command"
    return ""


def _alike(earlier: Manifest, manifest: Manifest) -> bool:
    """Return whether two runs may share a manifest, which has one model and one command line."""
    left, right = earlier.shareable(), manifest.shareable()
    for part, names in (("model", _MODEL), ("command", _COMMAND), ("versions", ("medmllm-plugins",))):
        sides = [content[part] or {} for content in (left, right)]
        if any(_json(sides[0].get(name)) != _json(sides[1].get(name)) for name in names):
            return False
    return _json(left["seed"]) == _json(right["seed"])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _points_here(journal: Path, folder: Path) -> bool:
    run = run_of(journal)
    answered = any(path.stat().st_size for path in journal.glob(ANSWERS))
    return answered and run is not None and run.resolve() == folder.resolve()
