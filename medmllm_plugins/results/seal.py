"""The seal of a run folder: size and SHA-256 of every file in it, written last.

Who reads the folder later compares its files with the seal. It finds files that were damaged, edited or lost; it is no
signature, and whoever edits a file on purpose can write another seal.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.file_names import (
    ANCHORS,
    ATTRIBUTION_CHECKS,
    ATTRIBUTIONS,
    FEATURES,
    FOLDS,
    INDEX,
    MANIFEST,
    METRICS,
    OUTCOMES,
    PROBE_CURVES,
    PROBE_EFFECTS,
    PROBES,
)
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.locking import FolderLock

SEAL: Final = "seal.json"
VERSION: Final = 1
_READ: Final = (METRICS, OUTCOMES, PROBES, FOLDS, f"/{INDEX}", MANIFEST)
"""Ends of the names of files that readers take figures from."""
_ENDS: Final = (
    METRICS, OUTCOMES, FOLDS, PROBES, MANIFEST, ".metrics.csv", ".per_class.csv", ".confusion.csv",
    ".label_scores.csv", ".per_finding.csv", ".variants.csv", PROBE_CURVES, PROBE_EFFECTS, ANCHORS, ATTRIBUTION_CHECKS,
)  # fmt: skip
"""Ends of the names of all files that a run writes beside the two folders."""
_FOLDERS: Final = (FEATURES, ATTRIBUTIONS)
_LARGE: Final = ".safetensors"
"""Shards of features: many gigabytes, whose checksums are compared where they are read."""
_WAIT: Final = 30.0
_NAMED: Final = 5

Entry = dict[str, Any]
"""``size`` in bytes and ``sha256`` in hexadecimal."""


@dataclass(frozen=True, slots=True)
class SealCheck:
    """How a folder's files compare with its seal.

    Attributes:
        sealed: whether there is a seal that can be read.
        differing: names of files that are not as they were sealed, by what is wrong with them.
    """

    sealed: bool
    fault: str
    differing: Mapping[str, str]

    def among(self, *parts: str) -> dict[str, str]:
        """Return what differs of files whose name is one of ``parts``, or begins with one that ends in ``/``."""
        return {name: fault for name, fault in self.differing.items() if _is_among(name, parts)}


def describe(differing: Mapping[str, str]) -> str:
    """List the first five files with what is wrong with them."""
    names = [f"{name} ({fault})" for name, fault in list(differing.items())[:_NAMED]]
    more = len(differing) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def write_seal(
    folder: Path, known: Mapping[str, str] | None = None, earlier: Mapping[str, Entry] | None = None
) -> None:
    """Seal a folder, now that everything else in it is written.

    Args:
        folder: the run folder.
        known: SHA-256 of files that need not be read for it again, by name relative to the folder.
        earlier: entries to take over from an earlier seal as they are, by name.

    Raises:
        OSError: the folder cannot be read or written.
    """
    earlier = earlier or {}
    entries = {name: _entry(folder, name, (known or {}).get(name)) for name in _names(folder) if name not in earlier}
    _write(folder, {**entries, **earlier})


def update_seal(folder: Path, written: Sequence[str]) -> None:
    """Take files into the seal that were written after the folder was sealed; all others keep their entries.

    Args:
        folder: the run folder; without a seal nothing is done.
        written: names relative to the folder; one that ends in ``/`` means all files below it.

    Raises:
        DataError: another process holds the folder, or its seal cannot be read.
        OSError: the folder cannot be written.
    """
    with _resealing(folder) as entries:
        if entries is not None:
            unchanged = {name: entry for name, entry in entries.items() if not _is_among(name, written)}
            new = {name: _entry(folder, name) for name in _names(folder) if _is_among(name, written)}
            _write(folder, {**unchanged, **new})


def take_out_of_seal(folder: Path, parts: Sequence[str]) -> None:
    """Take files out of the seal that are about to be written again, so that a command may be stopped meanwhile.

    Left in, those that it had replaced would look damaged, and no command would read any of them. Files that readers
    take figures from stay sealed until :func:`update_seal`: they are replaced whole, at the end.

    Args:
        folder: the run folder; without a seal nothing is done.
        parts: as for :func:`update_seal`, which is to take them in again.

    Raises:
        DataError: another process holds the folder, or its seal cannot be read.
        OSError: the folder cannot be written.
    """
    with _resealing(folder) as entries:
        if entries is not None:
            _write(
                folder,
                {
                    name: entry
                    for name, entry in entries.items()
                    if f"/{name}".endswith(_READ) or not _is_among(name, parts)
                },
            )


@contextmanager
def _resealing(folder: Path) -> Iterator[dict[str, Entry] | None]:
    """Hold a folder and give the entries of its seal; ``None`` where it has no seal."""
    if not (folder / SEAL).exists():
        yield None
        return
    lock = FolderLock(folder)
    if not lock.acquire(_WAIT):
        raise DataError(
            f"{folder}: expected a folder that no other process is writing to, got one in use. Wait until that process "
            "has ended, and start this command again."
        )
    try:
        entries, fault = read_seal(folder)
        if fault:
            raise DataError(f"{folder / SEAL}: {fault} Run the evaluation again to get a folder that can be checked.")
        yield entries
    finally:
        lock.release()


def _is_among(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or (part.endswith("/") and name.startswith(part)) for part in parts)


def read_seal(folder: Path) -> tuple[dict[str, Entry], str]:
    """Return the entries of a folder's seal by name, and why there are none; empty where there are."""
    path = folder / SEAL
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["medmllm_seal"] != VERSION:
            return {}, f"expected version {VERSION} of the seal, got {str(content['medmllm_seal'])[:20]}."
        entries = {}
        for name, entry in content["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError("a file outside the folder")
            entries[name] = {"size": int(entry["size"]), "sha256": str(entry["sha256"])}
        return entries, ""
    except FileNotFoundError:
        return {}, f"expected {SEAL}, which is written when a run finishes, got no such file."
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        return {}, f"expected {SEAL} with size and checksum of every file, got {type(error).__name__}."


def check_seal(folder: Path, hashed: Callable[[str], bool] | None = None) -> SealCheck:
    """Compare a folder's files with its seal: the size of each, and the checksum of all but shards of features.

    Args:
        folder: the run folder.
        hashed: whether the checksum of a file is compared, by its name; of all but the shards where ``None``.
    """
    entries, fault = read_seal(folder)
    if fault:
        return SealCheck(False, fault, {})
    differing = {}
    for name, entry in entries.items():
        path = folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                differing[name] = "it is no file"
            elif path.stat().st_size != entry["size"]:
                differing[name] = f"{entry['size']:,} bytes were sealed, {path.stat().st_size:,} are there"
            elif (hashed(name) if hashed else not name.endswith(_LARGE)) and _sha256(path) != entry["sha256"]:
                differing[name] = "its content is another"
        except FileNotFoundError:
            differing[name] = "it is missing"
        except OSError as error:
            differing[name] = f"it cannot be read: {error.strerror}"
    for name in _names(folder):
        if name not in entries and f"/{name}".endswith(_READ):
            differing[name] = "it was added later"
    return SealCheck(True, "", differing)


def _write(folder: Path, entries: Mapping[str, Entry]) -> None:
    content = {"medmllm_seal": VERSION, "files": dict(sorted(entries.items()))}
    write_whole(folder / SEAL, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _entry(folder: Path, name: str, known: str | None = None) -> Entry:
    path = folder / name
    return {"size": path.stat().st_size, "sha256": known or _sha256(path)}


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of a run's files, as far as they are there.

    What somebody else keeps in the folder is left alone, and so are hidden files: drafts, locks and journals.
    """
    for path in sorted(folder.glob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name.endswith(_ENDS):
            yield path.name
    for below in _FOLDERS:
        for root, folders, files in os.walk(folder / below):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith("."):
                    yield Path(root, name).relative_to(folder).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:  # in blocks
        return hashlib.file_digest(handle, "sha256").hexdigest()
