"""What is wrong with a data set, collected and raised as one error, or skipped file by file where the user says so."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.user_dirs import cache_folder

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

FAULTS_SHOWN = 20
"""Faults that an error lists; if there are more, a file holds all."""
LONGEST_SHOWN = 600
"""Longest text of one fault in an error, in characters."""


class Faults:
    """Collects faults while a layout reads a data set.

    A fault of the set as a whole (a missing folder, an unknown label) is always an error. A fault of one file is an
    error too, unless ``on_error`` is ``"skip"``: then the file is left out and listed.

    Attributes:
        skipped: faults of the files left out so far, one line each.
        warnings: sentences about what is doubtful although it can be read.
    """

    def __init__(self, title: str, location: str, *, download: str = "", on_error: OnError = "raise") -> None:
        """Create a collector without faults."""
        self.on_error = on_error
        self.skipped: list[str] = []
        self.warnings: list[str] = []
        self._title, self._location, self._download = title, location, download
        self._errors: list[str] = []

    def add(self, fault: str) -> None:
        """Note a fault of the set as a whole."""
        self._errors.append(fault)

    def file(self, fault: str) -> None:
        """Note a fault of one file, which begins with the file's path."""
        (self.skipped if self.on_error == "skip" else self._errors).append(fault)

    def warn(self, warning: str) -> None:
        """Note something doubtful, in a whole sentence."""
        self.warnings.append(warning)

    def stop(self) -> None:
        """Raise all faults as one error, or go on when there is none.

        Raises:
            DataError: there is a fault that is not to be skipped; the first :data:`FAULTS_SHOWN` are shown, with the
                total and, where there are more, the file that lists all.
        """
        if not self._errors:
            return
        lines = [_cut(fault) for fault in self._errors[:FAULTS_SHOWN]]
        shown = "\n".join(f"  {line}" for line in lines)
        more = ""
        if len(self._errors) > FAULTS_SHOWN:
            more = f"\n  ... and {len(self._errors) - FAULTS_SHOWN} more; {_listed_in(self._title, self._errors)}"
        elif lines != self._errors:
            more = f"\n  ... cut; {_listed_in(self._title, self._errors)}"
        fix = f"\nCorrect these, or get the set again from {self._download}." if self._download else ""
        noun = "fault" if len(self._errors) == 1 else "faults"
        raise DataError(f"{self._title}: {len(self._errors)} {noun} in {self._location}:\n{shown}{more}{fix}")

    def report(self) -> None:
        """Log the files that were left out."""
        if self.skipped:
            shown = "\n".join(f"  {fault}" for fault in self.skipped[:FAULTS_SHOWN])
            more = len(self.skipped) - FAULTS_SHOWN
            rest = f"\n  ... and {more} more; the manifest of a run lists all of them" if more > 0 else ""
            logger.warning("%s: %d files left out (on_error=skip):\n%s%s", self._title, len(self.skipped), shown, rest)


def _cut(fault: str) -> str:
    """Return a fault as an error shows it; one that lists others, as of a table, may be long."""
    return fault if len(fault) <= LONGEST_SHOWN else fault[: LONGEST_SHOWN - 1] + "…"


def _listed_in(title: str, faults: Sequence[str]) -> str:
    """Write all faults to a file outside the data set and say where it is.

    The file is in the cache folder and replaces an earlier list of the same set. Only the user may read it, because
    files may be named after patients.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:60] or "data-set"
    folder = cache_folder()
    try:
        if folder is None:
            path = Path(tempfile.mkdtemp(prefix="medmllm-")) / f"{name}.faults.txt"
        else:
            path = folder / "faults" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, as several threads may list the same set; only the user may read it.
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{fault}\n" for fault in faults)
        os.replace(draft, path)
    except OSError as error:
        return f"they could not be written to a file ({error})"
    return f"all of them are in {path}"


def relative(path: Path, folder: Path) -> str:
    """Return a path below a folder as documents name it: relative, in POSIX form."""
    return path.relative_to(folder).as_posix()
