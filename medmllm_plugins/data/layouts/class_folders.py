"""Data sets whose labels are folder names: listing, checking and grouping their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from medmllm_plugins.data.core.data_faults import Faults, relative
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.duplicates import join_groups
from medmllm_plugins.data.core.folds import grouped_folds
from medmllm_plugins.data.core.leaks import similar
from medmllm_plugins.data.readers.file_facts import FileFacts, picture_facts, scan_files
from medmllm_plugins.data.readers.pillow_images import SUFFIXES, read_rgb

_LITTER = frozenset({"__macosx", "desktop.ini", "thumbs.db"})


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file with what its place and name tell: identifier, label and source (patient, figure, preprint)."""

    id: str
    path: Path
    label: str
    source: str


FoldsOf: TypeAlias = Callable[[Sequence[LabelledFile], Sequence[str]], Sequence[Fold]]


def is_litter(path: Path) -> bool:
    """Return whether an operating system left a file or folder: hidden (``.DS_Store``), ``Thumbs.db`` and such."""
    return path.name.startswith(".") or path.name.lower() in _LITTER


def image_files(folder: Path, faults: Faults) -> list[Path]:
    """List the files of a class folder, which need not exist, that claim to be images, by name.

    Files of other types are left alone. A folder in the folder is a fault, as images in it would be lost unseen, and
    so is a folder without any image.
    """
    if not folder.is_dir():
        faults.add(f"{folder}: expected a class folder with images, got none")
        return []
    entries = sorted(path for path in folder.iterdir() if not is_litter(path))
    for path in entries:
        if path.is_dir():
            faults.add(f"{path}: expected images only, got a folder in a class folder")
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if not images:
        faults.add(f"{folder}: expected images, got none (empty class folder)")
    return images


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder by name, without litter."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path))


def repeated_ids(named: Iterable[tuple[str, str]]) -> list[str]:
    """Return faults about identifiers, compared without case, of more than one file; each file is there once."""
    holders: dict[str, list[str]] = defaultdict(list)
    for identifier, file in named:
        # One of two names that differ in case only is lost where a file system ignores case.
        holders[identifier.casefold()].append(file)
    return [
        f"{', '.join(files)}: expected one file per id, got {len(files)} files with one id"
        for files in holders.values()
        if len(files) > 1
    ]


def divide(files: Sequence[LabelledFile], groups: Sequence[str]) -> list[Fold]:
    """Return the fold of each file by :func:`medmllm_plugins.data.core.folds.grouped_folds` with seed 0."""
    return grouped_folds([file.id for file in files], [file.label for file in files], groups)


def checked_documents(
    files: Sequence[LabelledFile], folder: Path, faults: Faults, folds: FoldsOf = divide
) -> list[Document]:
    """Decode all files, group those that are good, and return them as documents.

    A group is what shares a source, a picture or a near-duplicate; it bears the first name of the joined sources.
    ``folds`` returns the folds of files and their groups. Faults are added to ``faults``.

    Raises:
        DataError: there is a fault; see :meth:`medmllm_plugins.data.core.data_faults.Faults.stop`.
    """
    for fault in repeated_ids((file.id, str(file.path)) for file in files):
        faults.add(fault)
    facts, unreadable = scan_files([file.path for file in files], lambda path: picture_facts(read_rgb(path)))
    for fault in unreadable:
        faults.file(fault)
    faults.stop()
    files = [file for file in files if file.path in facts]
    groups = joined_groups([file.source for file in files], [facts[file.path] for file in files])
    return [
        Document(file.id, relative(file.path, folder), file.label, group, fold)
        for file, group, fold in zip(files, groups, folds(files, groups), strict=True)
    ]


def joined_groups(groups: Sequence[str], facts: Sequence[FileFacts]) -> list[str]:
    """Return the group of each file after groups that share a picture, or a near-duplicate, are joined."""
    thumbnails = [fact.thumbnail for fact in facts if fact.thumbnail is not None]
    complete = thumbnails and len(thumbnails) == len(facts)
    return join_groups(groups, similar([fact.content for fact in facts], np.stack(thumbnails) if complete else None))
