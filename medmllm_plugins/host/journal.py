"""Answers on disk as they come, so that a run that was killed goes on where it was.

A journal stands in a folder named by what would give the same answers: the model's files and options, and the tasks
with their data. Whoever starts the same command again finds it there; once all metrics are written it is removed. Each
process of a run has a file of its own and reads those of all, so that the number of processes may change in between.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

UNFINISHED: Final = ".unfinished"
_RUN: Final = "run.json"


@dataclass(frozen=True, slots=True)
class Answered:
    """A stored answer: the text handed to the host, and the number of tokens generated."""

    text: str
    tokens: int


def state(facts: Mapping[str, Any]) -> str:
    """A short name for everything that decides the answers."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Journal:
    """One process's part of a journal, and what all parts held when it was opened."""

    def __init__(self, parent: Path, name: str, rank: int) -> None:
        """Open the journal of that name, or a second one where another run holds the first.

        Args:
            parent: the folder of run folders.
            name: see :func:`state`.
            rank: of this process.

        Raises:
            OSError: the folder cannot be written.
        """
        number = 1
        while True:
            self.folder = parent / UNFINISHED / (name if number == 1 else f"{name}-{number}")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = (self.folder / f"answers.{rank}.jsonl").open("a+", encoding="utf-8")
            try:
                # The system lets go of the lock when the process dies, however it does.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                self._file.close()
                number += 1
        self.known = self._read()
        self._file.seek(0, 2)
        if self._file.tell():
            self._file.write("\n")  # what a killed process left of a line must not meet the next one

    def _read(self) -> dict[str, Answered]:
        found: dict[str, Answered] = {}
        for path in sorted(self.folder.glob("answers.*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    record = json.loads(line)
                    found[str(record["key"])] = Answered(str(record["text"]), int(record["tokens"]))
                except (ValueError, TypeError, KeyError):  # the line that was being written when the process died
                    continue
        return found

    def add(self, answers: Mapping[str, Answered]) -> None:
        """Store answers, and hand them to the system, where they outlive this process."""
        lines = [
            json.dumps({"key": key, "text": one.text, "tokens": one.tokens}) + "\n" for key, one in answers.items()
        ]
        self._file.write("".join(lines))
        self._file.flush()

    @property
    def run(self) -> Path | None:
        """The folder of the run that began this journal, if it is there still."""
        try:
            folder = Path(json.loads((self.folder / _RUN).read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return folder if folder.is_dir() else None

    @run.setter
    def run(self, folder: Path) -> None:
        (self.folder / _RUN).write_text(json.dumps({"folder": str(folder.absolute())}), encoding="utf-8")

    def close(self) -> None:
        """Let go of the file, so that another run may go on with it."""
        self._file.close()

    def remove(self) -> None:
        """Forget the answers: everything that was to come of them is written."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
