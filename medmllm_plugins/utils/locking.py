"""Locks on files and folders that the operating system releases when their process ends, however it ends."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = ".lock"
_PAUSE: Final = 0.05
_WINDOWS: Final = os.name == "nt"


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; return whether no other process holds it.

    A file system without locks counts as one that no other process uses: refusing it would make it useless.
    """
    from filelock import lock_descriptor  # not at import time, which every command of lmms-eval pays for

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True


class FolderLock:
    """A lock on a folder, held between :meth:`acquire` and :meth:`release`, by way of a file in it."""

    def __init__(self, folder: Path) -> None:
        """Prepare the lock of a folder, which must exist when it is acquired."""
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock, waiting ``wait`` seconds for another process, and return whether it is held now.

        Raises:
            OSError: the folder cannot be written.
        """
        deadline = time.monotonic() + wait
        while self._descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            if try_lock(descriptor) and self._is_current(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
        return True

    def release(self) -> None:
        """Release the lock and remove its file; without effect where the lock is not held."""
        if self._descriptor is None:
            return
        if not _WINDOWS:  # while it is locked, so that no other process locks a file that is about to go
            self._remove()
        os.close(self._descriptor)
        self._descriptor = None
        if _WINDOWS:  # which removes no open file
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):  # the folder was removed meanwhile, or another process holds the lock by now
            self._path.unlink()

    def _is_current(self, descriptor: int) -> bool:
        """Return whether the locked file is still the one in the folder: the previous holder removes it."""
        try:
            in_folder, locked = os.stat(self._path), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return os.path.samestat(in_folder, locked)
