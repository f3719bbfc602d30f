"""Data sets whose labels are folder names: listing, checking and grouping their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmllm_plugins.data.duplicates import join_groups, near_duplicates
from medmllm_plugins.data.images import SUFFIXES, ImageFacts, scan_images
from medmllm_plugins.data.spec import DatasetSpec
from medmllm_plugins.errors import DataError

FAULTS_SHOWN = 20
"""So many faults are named in an error; of the rest, the number."""

_LITTER = frozenset({"__macosx", "desktop.ini", "thumbs.db"})


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file with what its place and name tell: identifier, label and source (patient, figure, preprint)."""

    id: str
    path: Path
    label: str
    source: str


def is_litter(path: Path) -> bool:
    """Whether an operating system left the file or folder: hidden (``.DS_Store``, ``._x``), ``Thumbs.db`` and such."""
    return path.name.startswith(".") or path.name.lower() in _LITTER


def image_files(folder: Path, faults: list[str]) -> list[Path]:
    """List the files of a class folder that claim to be images, by name.

    Files of other types are left alone. A folder in the folder is a fault, as images in it would be lost unseen, and
    so is a folder without any image.

    Args:
        folder: the class folder; need not exist.
        faults: what is wrong is added here.
    """
    if not folder.is_dir():
        faults.append(f"{folder}: expected a class folder with images, found none")
        return []
    entries = sorted(path for path in folder.iterdir() if not is_litter(path))
    faults.extend(
        f"{path}: expected images only, found a folder in a class folder" for path in entries if path.is_dir()
    )
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if not images:
        faults.append(f"{folder}: expected images, found none (empty class folder)")
    return images


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder by name, without litter."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path))


def scan(files: Sequence[LabelledFile], faults: list[str]) -> dict[Path, ImageFacts]:
    """Decode all files and look for two with one identifier.

    Args:
        files: what was listed.
        faults: what is wrong is added here.

    Returns:
        Facts of the good images by path.
    """
    faults.extend(repeated_ids((file.id, str(file.path)) for file in files))
    facts, unreadable = scan_images([file.path for file in files])
    faults.extend(unreadable)
    return facts


def repeated_ids(named: Iterable[tuple[str, str]]) -> list[str]:
    """Faults for identifiers, compared without case, that stand for more than one file.

    Args:
        named: identifier and file, once per file.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    for identifier, file in named:
        # One of two names that differ in case only is lost where a file system ignores case.
        holders[identifier.casefold()].append(file)
    return [
        f"{', '.join(files)}: expected one file per id, found {len(files)} files with one id"
        for files in holders.values()
        if len(files) > 1
    ]


def joined_sources(files: Sequence[LabelledFile], facts: dict[Path, ImageFacts]) -> list[str]:
    """Group files by source, then join sources that share a picture or a near-duplicate.

    Args:
        files: good files.
        facts: what :func:`scan` returned for them.

    Returns:
        The group of each file: of joined sources, the name that sorts first.
    """
    pairs = [(int(i), int(j)) for i, j in near_duplicates(np.stack([facts[file.path].thumbnail for file in files]))]
    first_with: dict[str, int] = {}
    for index, file in enumerate(files):
        pairs.append((first_with.setdefault(facts[file.path].pixels, index), index))
    return join_groups([file.source for file in files], pairs)


def raise_faults(spec: DatasetSpec, folder: str, faults: Sequence[str]) -> None:
    """Raise all faults as one error, or do nothing when there is none.

    Args:
        spec: the data set.
        folder: where it was looked for.
        faults: one line each; the first :data:`FAULTS_SHOWN` are shown, and the total.

    Raises:
        DataError: there is a fault.
    """
    if not faults:
        return
    shown = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
    more = f"\n  ... and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
    mend = f"\nMend these, or get the set again from {spec.download}." if spec.download else ""
    noun = "fault" if len(faults) == 1 else "faults"
    raise DataError(f"{spec.title}: {len(faults)} {noun} in {folder}:\n{shown}{more}{mend}")
