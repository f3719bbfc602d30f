"""Outcomes on disk: what was scored, row by row, so that runs can be compared without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.files import write_whole
from medmllm_plugins.metrics.outcomes import Outcome

SUFFIX = ".outcomes.jsonl"


def write_outcomes(path: Path, outcomes: Sequence[Outcome], answers: Mapping[str, str] | None = None) -> None:
    """Write outcomes as JSON lines in the order of their ids, whole or not at all.

    Args:
        path: the file.
        outcomes: what was scored.
        answers: what the model wrote, by id; told beside each outcome.

    Raises:
        OSError: the file cannot be written.
    """
    lines = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.id):
        told = {} if answers is None else {"answer": answers[outcome.id]}
        lines.append(json.dumps({**outcome.to_dict(), **told}, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def read_outcomes(path: Path) -> list[Outcome]:
    """Read outcomes back.

    Raises:
        DataError: the file cannot be read, or a line of it is damaged; the message names it.
    """
    try:
        # Not splitlines, which also breaks at line separators that may stand in an answer.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected outcomes as JSON lines, found {error}.") from error
    found = []
    for position, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise DataError(f"expected keys and values, found {record!r}")
            found.append(Outcome.from_dict(record))
        except (ValueError, TypeError, DataError) as error:
            raise DataError(f"{path}, line {position}: {error}") from error
    return found


def read_answers(path: Path) -> dict[str, str]:
    """What the model wrote, by id, of a file that :func:`read_outcomes` reads; rows without an answer are left out.

    Raises:
        OSError: the file cannot be read.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {str(record["id"]): str(record["answer"]) for record in records if "answer" in record}


@dataclass(frozen=True, slots=True)
class RunResults:
    """What a run folder tells.

    Attributes:
        folder: the folder.
        manifest: its manifest.
        outcomes: outcomes by task.
    """

    folder: Path
    manifest: dict[str, Any]
    outcomes: dict[str, list[Outcome]]


def file_stem(task: str) -> str:
    """A task's name as a part of file names: arguments behind it are joined by ``+``."""
    return task.replace(":", "+")


def load_run(folder: Path) -> RunResults:
    """Read a run folder.

    Raises:
        DataError: the folder is no run folder, or a file in it is damaged.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tasks = manifest["tasks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: expected a run folder with a manifest.json, found {error}. Name the folder that the log of an "
            "evaluation ends with."
        ) from error
    found = {}
    for task in tasks:
        path = folder / f"{file_stem(task)}{SUFFIX}"
        if path.is_file():
            found[task] = read_outcomes(path)
    return RunResults(folder, manifest, found)
