"""Answers stored as they come, so that a run that was killed can continue.

The folder of a journal is named by a hash of everything that decides the answers: the model's files and options, and
the tasks with their data. Starting the same command again finds it; once all metrics are written it is removed. Each
process of a run appends to a file of its own and reads those of all, so that the number of processes may change.

Each line carries a checksum of its question and answer. A line with another checksum is ignored, and its question is
asked again.
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

from medmllm_plugins.results.file_names import ANSWERS, UNFINISHED
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.locking import LOCK, try_lock

_RUN: Final = "run.json"


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to one request.

    Attributes:
        text: the generated text.
        scores: log p(label | prompt, image) for each label in class order, in nats; ``None`` from models that give
            none, as all models but ours.
        label_tokens: number of tokens of each label.
        blank_scores: scores of the labels for the same question about a blank image, in nats.
        generated_tokens: number of tokens generated.
    """

    text: str
    scores: tuple[float, ...] | None = None
    label_tokens: tuple[int, ...] | None = None
    blank_scores: tuple[float, ...] | None = None
    generated_tokens: int = 0

    def to_list(self) -> list[Any]:
        """Return the fields as plain JSON, in their order."""
        return [self.text, self.scores, self.label_tokens, self.blank_scores, self.generated_tokens]

    @classmethod
    def from_list(cls, values: list[Any]) -> Reply:
        """Read what :meth:`to_list` returned.

        Raises:
            TypeError: a value has another type.
        """
        text, *lists, generated = values
        for numbers, kind in zip(lists, (float, int, float), strict=True):
            if numbers is not None and not (isinstance(numbers, list) and all(type(n) is kind for n in numbers)):
                raise TypeError(f"expected a list of {kind.__name__}, got {numbers!r}")
        if not isinstance(text, str) or type(generated) is not int:
            raise TypeError("expected a text and a number of tokens")
        scores, label_tokens, blank_scores = (None if numbers is None else tuple(numbers) for numbers in lists)
        return cls(text, scores, label_tokens, blank_scores, generated)


def hash_facts(facts: Mapping[str, Any]) -> str:
    """Return a short hash of everything that decides the answers, which names a journal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def checksum(key: str, reply: Reply) -> str:
    """Return the checksum of a line, over the question's name too, so that no answer serves another question."""
    return hashlib.sha256(json.dumps([key, *reply.to_list()]).encode()).hexdigest()[:16]


def _read_line(line: str) -> tuple[str, Reply] | None:
    """Return the name of a question and its answer; ``None`` for a line that is not as it was written."""
    try:
        record = json.loads(line)
        key, reply = record["key"], Reply.from_list(record["reply"])
        return (key, reply) if isinstance(key, str) and record["sum"] == checksum(key, reply) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def run_of(journal: Path) -> Path | None:
    """Return the folder of the run that began the journal in a folder, if it still exists."""
    try:
        folder = Path(json.loads((journal / _RUN).read_text(encoding="utf-8"))["folder"])
        return folder if folder.is_dir() else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


class Journal:
    """One process's part of a journal, and the answers that all parts held when it was opened.

    Attributes:
        folder: the journal's folder.
        known: answers by the name of their question.
        damaged: number of lines that were ignored.
    """

    def __init__(self, parent: Path, name: str, rank: int) -> None:
        """Open the journal of that name, or a numbered one while another run uses the first.

        Args:
            parent: the folder of run folders.
            name: see :func:`hash_facts`.
            rank: of this process.

        Raises:
            OSError: the folder cannot be written.
        """
        number = 1
        while True:
            self.folder = parent / UNFINISHED / (name if number == 1 else f"{name}-{number}")
            self.folder.mkdir(parents=True, exist_ok=True)
            # A file of its own is locked: on Windows, a locked file cannot be read by the other processes.
            self._lock: IO[str] = (self.folder / f"{LOCK}.{rank}").open("a")
            if try_lock(self._lock.fileno()):
                break
            self._lock.close()
            number += 1
        self._file: IO[str] = (self.folder / f"answers.{rank}.jsonl").open("a+", encoding="utf-8", newline="\n")
        self.damaged = 0
        self.known = self._read()
        if self.damaged and rank == 0:
            logger.warning(
                f"{self.folder}: {self.damaged} damaged line(s) in the journal of answers are ignored (their checksum "
                "differs). Their questions are asked again."
            )
        self._end_last_line()

    def _read(self) -> dict[str, Reply]:
        """Read the answers of all processes, and count the lines that are not as they were written."""
        answers: dict[str, Reply] = {}
        for path in sorted(self.folder.glob(ANSWERS)):
            *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
            for line in filter(None, lines):
                record = _read_line(line)
                if record is None:
                    self.damaged += 1
                else:
                    answers[record[0]] = record[1]
            # A line without its end was being written when the process died, which is not damage.
            if (record := _read_line(last)) is not None:
                answers[record[0]] = record[1]
        return answers

    def _end_last_line(self) -> None:
        """Complete or cut off the last line that a killed process left, so that the next answer begins a line."""
        with Path(self._file.name).open("rb+") as handle:
            content = handle.read()
            last = content[content.rfind(b"\n") + 1 :]
            if last and _read_line(last.decode("utf-8", errors="replace")) is None:
                handle.truncate(len(content) - len(last))
            elif last:
                handle.write(b"\n")

    def read_again(self) -> dict[str, Reply]:
        """Return the answers of all processes as they are now."""
        self.known = self._read()
        return self.known

    def add(self, replies: Mapping[str, Reply]) -> None:
        """Append answers and hand them to the operating system, where they outlive this process."""
        for key, reply in replies.items():
            self._file.write(json.dumps({"key": key, "reply": reply.to_list(), "sum": checksum(key, reply)}) + "\n")
        self._file.flush()

    @property
    def run(self) -> Path | None:
        """The folder of the run that began this journal, if it still exists."""
        return run_of(self.folder)

    @run.setter
    def run(self, folder: Path) -> None:
        write_whole(self.folder / _RUN, json.dumps({"folder": str(folder.absolute())}))

    def close(self) -> None:
        """Close the files, so that another run may continue with them."""
        self._file.close()
        self._lock.close()

    def remove(self) -> None:
        """Delete the answers: everything that depends on them is written."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
