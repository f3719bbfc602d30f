"""Open regular files only, and find data files that a header names, which must lie below the header's folder."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from medmllm_plugins.errors import DataError, shown


def open_regular(path: Path, what: str = "a file") -> BinaryIO:
    """Open a file or the target of a link; a pipe, a device or a folder is an error and never waited for.

    ``what`` completes the message "expected …".

    Raises:
        DataError: it is missing, cannot be opened or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular(path)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name is none"
        raise DataError(f"{path}: expected {what}, got one that cannot be read ({reason}).") from error
    opened = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):  # replaced in between
        opened.close()
        raise _not_regular(path)
    return opened


def head(path: Path, count: int) -> bytes:
    """Read the first bytes of a file.

    Raises:
        DataError: it is missing, cannot be opened or is empty.
    """
    with open_regular(path) as opened:
        content = opened.read(count)
    if not content:
        raise DataError(f"{path}: expected a volume or picture, got an empty file (0 bytes). Get the file again.")
    return content


def size_of(opened: BinaryIO) -> int:
    """Return the length of an open file in bytes."""
    return os.fstat(opened.fileno()).st_size


def data_file_below(header: Path, name: str) -> Path:
    """Return the data file that a detached header names, if it lies below the header's folder.

    ``name`` is what the header states, relative to its folder, in POSIX form.

    Returns:
        The path with symbolic links resolved.

    Raises:
        DataError: the name is empty, absolute, climbs (``..``), means several files, or leads by a symbolic link
            out of the folder; or there is no regular file of that name.
    """
    problem = _name_problem(name)
    folder = os.path.realpath(header.parent)
    path = Path(os.path.realpath(os.path.join(folder, name))) if not problem else header
    if not problem and not path.is_relative_to(folder):
        problem = "a link that leads out of it"
    # os.path answers no where a name is too long; Path raises.
    if not problem and not os.path.isfile(path):
        problem = "something else than a file" if os.path.exists(path) else "none there"
    if problem:
        raise DataError(
            f"{header}: expected a header whose data file lies in the header's folder or below, got {shown(name)}: "
            f"{problem}. Move the data file beside its header and correct the name."
        )
    return path


def _name_problem(name: str) -> str:
    if not name.strip() or not name.isprintable():
        return "no name"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith(("\\", "~")):
        return "an absolute path"
    if ".." in PurePosixPath(name).parts or ".." in PureWindowsPath(name).parts:
        return "a path that climbs out of a folder (..)"
    if name.split()[0].upper() == "LIST" or re.search(r"%[-+0-9.]*[a-zA-Z]", name):
        return "a list or pattern of several files, which is not read"
    return ""


def _not_regular(path: Path) -> DataError:
    return DataError(f"{path}: expected a file, got a folder, pipe or device. Name a regular file.")
