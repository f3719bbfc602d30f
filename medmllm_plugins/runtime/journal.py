"""Answers on disk as they come, so that a run that was killed goes on where it was.

A journal stands in a folder named by what would give the same answers: the model's files and options, and the tasks
with their data. Whoever starts the same command again finds it there; once all metrics are written it is removed. Each
process of a run has a file of its own and reads those of all, so that the number of processes may change in between.

Each line carries a checksum of its question and answer. A line that does not go with its checksum is not used, and its
question is asked again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from loguru import logger

from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.locking import try_lock

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


def checksum(key: str, answer: Answered) -> str:
    """Return the checksum of a line, over the question's name too, so that no answer serves another question."""
    text = json.dumps([key, answer.text, answer.tokens])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_line(line: str) -> tuple[str, Answered] | None:
    """Return the name of a question and its answer; ``None`` where the line is not as it was written."""
    try:
        record = json.loads(line)
        key, answer = record["key"], Answered(record["text"], record["tokens"])
        whole = isinstance(key, str) and isinstance(answer.text, str) and type(answer.tokens) is int
        return (key, answer) if whole and record["sum"] == checksum(key, answer) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def run_of(journal: Path) -> Path | None:
    """Return the folder of the run that began the journal in a folder, if it is there still."""
    try:
        folder = Path(json.loads((journal / _RUN).read_text(encoding="utf-8"))["folder"])
        return folder if folder.is_dir() else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


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
            if try_lock(self._file.fileno()):
                break
            self._file.close()
            number += 1
        self.damaged = 0
        self.known = self._read()
        if self.damaged and rank == 0:
            logger.warning(
                f"{self.folder}: {self.damaged} damaged line(s) in the journal of answers are not used (their checksum "
                "is another); what they answered is asked again."
            )
        self._end_last_line()

    def _read(self) -> dict[str, Answered]:
        """Read the answers of all processes, and count the lines that are not as they were written."""
        answers: dict[str, Answered] = {}
        for path in sorted(self.folder.glob("answers.*.jsonl")):
            *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
            for line in filter(None, lines):
                record = _read_line(line)
                if record is None:
                    self.damaged += 1
                else:
                    answers[record[0]] = record[1]
            # A line without its end was being written when the process died, which is nothing to speak of.
            if (record := _read_line(last)) is not None:
                answers[record[0]] = record[1]
        return answers

    def _end_last_line(self) -> None:
        """See that the next answer begins a line: what a killed process left of one is completed or cut off."""
        with Path(self._file.name).open("rb+") as handle:
            content = handle.read()
            last = content[content.rfind(b"\n") + 1 :]
            if last and _read_line(last.decode("utf-8", errors="replace")) is None:
                handle.truncate(len(content) - len(last))
            elif last:
                handle.write(b"\n")

    def add(self, answers: Mapping[str, Answered]) -> None:
        """Store answers, and hand them to the system, where they outlive this process."""
        records = [
            {"key": key, "text": answer.text, "tokens": answer.tokens, "sum": checksum(key, answer)}
            for key, answer in answers.items()
        ]
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()

    @property
    def run(self) -> Path | None:
        """The folder of the run that began this journal, if it is there still."""
        return run_of(self.folder)

    @run.setter
    def run(self, folder: Path) -> None:
        write_whole(self.folder / _RUN, json.dumps({"folder": str(folder.absolute())}))

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
