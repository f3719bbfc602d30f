"""Locks on folders that the operating system releases when their process dies, however it does."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = ".lock"
_PAUSE: Final = 0.05


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process alone; ``False`` where another holds it.

    A file system that offers no locks counts as one on which nobody else is at work.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not offered here; refusing would make such a file system useless
        return True
    return True


class FolderLock:
    """A lock on a folder, held between :meth:`acquire` and :meth:`release`, by way of a file in it."""

    def __init__(self, folder: Path) -> None:
        """Prepare the lock of a folder, which must be there when it is acquired."""
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock.

        Args:
            wait: seconds to wait for another process that holds it.

        Returns:
            Whether it is held now.

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
        """Let go of the folder, and remove the file; without effect where the lock is not held."""
        if self._descriptor is not None:
            with suppress(OSError):  # the folder was removed meanwhile
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_current(self, descriptor: int) -> bool:
        """Whether the file that was locked is still the one in the folder: who held it before removes it."""
        try:
            there, held = os.stat(self._path), os.fstat(descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
