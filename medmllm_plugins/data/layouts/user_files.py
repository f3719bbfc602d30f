"""The images or volumes below a user's folder: listed, and found again by what a table calls them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from medmllm_plugins.data.core.data_faults import relative
from medmllm_plugins.data.layouts.class_folders import is_litter
from medmllm_plugins.data.readers.dicom_kinds import kind_without_pictures
from medmllm_plugins.data.readers.image_reader import ARRAY, is_picture, may_be_dicom
from medmllm_plugins.data.readers.pillow_images import SUFFIXES
from medmllm_plugins.errors import DataError, shown

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ARRAY)
"""Endings of files that hold a volume each; DICOM files are known by :func:`may_be_dicom`."""
_ENDINGS = (*VOLUME_ENDINGS, *sorted(SUFFIXES), ".dcm", ".dicom", ".ima")


class NotFound(Exception):
    """Nothing, or more than one thing, answers to a table's cell; the text completes ``expected …, got …``."""


class WithoutPicture(Exception):
    """A table's cell means a DICOM object without pictures; the text is its kind."""


def without_ending(path: str) -> str:
    """Return a path without the ending that tells its format; an identifier such as ``1.2.840`` keeps its dots."""
    lower = path.lower()
    ending = next((ending for ending in _ENDINGS if lower.endswith(ending)), "")
    return path[: -len(ending)] if ending else path


@dataclass(frozen=True)
class UserFiles:
    """What lies below a folder, litter and other kinds of files left out.

    Attributes:
        files: files that claim to be an image, or in a set of volumes a volume, in the order of their paths.
        series: in a set of volumes, folders that hold DICOM files, to these files, which are among ``files`` too.
        outside: those of ``files``, and links to folders, that lead out of the folder.
        closed: folders that cannot be listed.
        without_pictures: DICOM objects that hold no picture, such as reports and plans, and their kinds.
    """

    folder: Path
    files: tuple[Path, ...]
    series: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    outside: frozenset[Path] = frozenset()
    closed: tuple[Path, ...] = ()
    without_pictures: dict[Path, str] = field(default_factory=dict)

    def find(self, cell: str) -> Path:
        """Return the file or series folder that a table's cell means.

        In this order: its path below the folder, with or without its ending, and with or without the folder's own
        name before it; an absolute path; and for a bare name, the one file of that name in any subfolder. Backslashes
        are taken for slashes where nothing has the name as it stands.

        Raises:
            NotFound: nothing answers, several do, or the path leads out of the folder.
            WithoutPicture: it is a DICOM object that holds none.
        """
        keys = [cell] if "\\" not in cell else [cell, PureWindowsPath(cell).as_posix()]
        for key in keys:
            plain = self._below(key)
            for candidate in (plain, plain.removeprefix(f"{self.folder.name}/")):
                for index in self._indexes[:2]:
                    if paths := index.get(candidate):
                        return self._single(paths, cell)
        name = keys[-1]
        if "/" not in name:
            for index in self._indexes[2:]:
                if paths := index.get(name):
                    return self._single(paths, cell)
        raise NotFound(self._why_not(PurePosixPath(self._below(keys[-1]))))

    def _single(self, paths: list[Path], cell: str) -> Path:
        paths = [path for path in paths if path not in self.without_pictures] or paths
        if len(paths) > 1:
            listed = ", ".join(relative(path, self.folder) for path in paths[:3])
            more = ", …" if len(paths) > 3 else ""
            raise NotFound(f"{len(paths)} files that {shown(cell)} may mean ({listed}{more}); write the whole path")
        path = paths[0]
        if path in self.without_pictures:
            raise WithoutPicture(self.without_pictures[path])
        if path in self.outside or any(file in self.outside for file in self.series.get(path, ())):
            raise NotFound("a link that leads out of the folder")
        return path

    def _below(self, cell: str) -> str:
        """Return the cell as a path below the folder."""
        path = PurePosixPath(cell)
        if ".." in path.parts:
            raise NotFound("a path that climbs out of a folder (..)")
        if path.is_absolute() or PureWindowsPath(cell).drive:
            for base in (self.folder, Path(os.path.realpath(self.folder))):
                if path.is_relative_to(base.as_posix()):
                    return path.relative_to(base.as_posix()).as_posix()
            raise NotFound("an absolute path outside the folder")
        return path.as_posix()

    def _why_not(self, relative_path: PurePosixPath) -> str:
        path = self.folder / relative_path
        try:
            if not path.exists():
                return "a link to nothing" if path.is_symlink() else "none"
        except (OSError, ValueError):  # a name too long, or with a zero byte
            return "none"
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            return "a link that leads out of the folder"
        return "a folder" if path.is_dir() else "a file of another kind, or left out by the pattern"

    @cached_property
    def _indexes(self) -> tuple[dict[str, list[Path]], ...]:
        """Paths by relative path, relative path without ending, name, and name without ending."""
        indexes: tuple[dict[str, list[Path]], ...] = ({}, {}, {}, {})
        for path in (*self.files, *self.series, *self.without_pictures):
            below = relative(path, self.folder)
            stems = (below, path.name) if path in self.series else (without_ending(below), without_ending(path.name))
            for index, key in zip(indexes, (below, stems[0], path.name, stems[1]), strict=True):
                index.setdefault(key, []).append(path)
        return indexes


def list_files(folder: Path, pattern: str | None, dimensions: int) -> UserFiles:
    """List what a set of images or volumes may hold.

    Links to folders are not followed: what lies inside is listed at its own place, and what lies outside does not
    belong to the set.

    ``pattern`` is a glob below an absolute folder, such as ``"scans/**/*.png"``; a series folder matches itself or by
    all of its files. ``None`` is for everything.

    Raises:
        DataError: the pattern is absolute, climbs or is none.
    """
    matched = None if pattern is None else _matched(folder, pattern)
    root = os.path.realpath(folder)
    files: list[Path] = []
    series: dict[Path, tuple[Path, ...]] = {}
    outside: set[Path] = set()
    closed: list[Path] = []
    without: dict[Path, str] = {}
    for here, folders, names in _walk(folder, closed):
        for name in folders:
            path = here / name
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                outside.add(path)
        slices = []
        for name in names:
            path = here / name
            dicom = dimensions == 3 and _is_dicom_volume(path)
            if matched is not None and path not in matched and not (dicom and here in matched):
                continue
            if dimensions == 2 and not is_picture(path):
                continue
            if dimensions == 3 and not dicom and not name.lower().endswith(VOLUME_ENDINGS):
                continue
            if _is_dicom_volume(path) and (kind := kind_without_pictures(path)) is not None:
                without[path] = kind
                continue
            files.append(path)
            if dicom:
                slices.append(path)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                outside.add(path)
        if slices and here != folder:
            series[here] = tuple(slices)
    return UserFiles(folder, tuple(files), series, frozenset(outside), tuple(closed), without)


def _is_dicom_volume(path: Path) -> bool:
    return not path.name.lower().endswith(VOLUME_ENDINGS) and may_be_dicom(path)


def _matched(folder: Path, pattern: str) -> set[Path]:
    if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
        raise DataError(f"Expected `pattern` to be a pattern below the folder, got {pattern!r}.")
    try:
        return set(folder.glob(pattern))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise DataError(f'Expected `pattern` to be a pattern such as "**/*.png", got {pattern!r}: {error}.') from None


def _walk(folder: Path, closed: list[Path]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield folders with their subfolders and files, by name and without litter."""
    for here, folders, names in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not is_litter(Path(name)))
        yield Path(here), folders, sorted(name for name in names if not is_litter(Path(name)) and name != "DICOMDIR")
