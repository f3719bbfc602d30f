"""Checks of large data sets are remembered, so that a hundred thousand files are decoded once and not before each run.

What is kept is a fold manifest for each state of a folder: names, sizes, times and modes of all of its files, the
declaration and this package's version. Anything that changes makes a new state, which is checked in full.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from medmllm_plugins import __version__
from medmllm_plugins.data.core import fold_manifest
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.user_dirs import cache_folder

logger = logging.getLogger(__name__)

LARGE = 2000
"""Number of files from which on the checks of a data set are remembered."""


def state(spec: DatasetSpec, folder: Path, on_error: str) -> str | None:
    """Return a checksum of everything that a check depends on; ``None`` for a folder that is not large."""
    digest = hashlib.sha256(repr((__version__, spec, on_error, str(folder))).encode())
    files = 0
    for path, stat in _files(folder):
        digest.update(repr((path, stat.st_size, stat.st_mtime_ns, stat.st_mode)).encode())
        files += 1
    return digest.hexdigest() if files >= LARGE else None


def recall(name: str, key: str | None) -> tuple[str, tuple[Document, ...]] | None:
    """Return the fingerprint and documents read when the folder was in this state, or ``None``."""
    path = _path(name, key)
    if path is None or not path.is_file():
        return None
    try:
        head, documents = fold_manifest.read(path)
    except DataError as error:
        logger.warning("%s; the data set is checked again.", error)
        return None
    return str(head["fingerprint"]), documents


def remember(name: str, key: str | None, fingerprint: str, documents: tuple[Document, ...]) -> None:
    """Keep what was found, readable to this user alone; a folder that cannot be written is only logged."""
    path = _path(name, key)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, fold_manifest.to_json(name, fingerprint, documents), private=True)
    except OSError as error:
        logger.warning("The check of %s is not remembered: %s", name, error)


def _path(name: str, key: str | None) -> Path | None:
    folder = cache_folder()
    return None if folder is None or key is None else folder / "checks" / f"{name}-{key[:32]}.json"


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            try:
                yield os.path.relpath(path, folder), os.stat(path)
            except OSError:
                yield os.path.relpath(path, folder), os.stat_result((0,) * 10)
