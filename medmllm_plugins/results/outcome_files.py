"""Outcomes on disk: what was scored, row by row, so that runs can be compared without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.file_names import MANIFEST, METRICS, OUTCOMES, file_stem
from medmllm_plugins.results.manifest import Manifest, read_manifest
from medmllm_plugins.results.metric_files import check_metrics_version
from medmllm_plugins.results.recomputation import Classes, disagreements, format_differences
from medmllm_plugins.results.seal import SealCheck, check_seal, describe
from medmllm_plugins.utils.atomic_files import write_whole

AGAIN: Final = "Start the same command again: it keeps the answers so far and continues."
UNSEALED: Final = (
    "Either the run was stopped while it finished (start the same command again), or the seal was removed."
)
NO_SEAL: Final = SealCheck(False, "", {})
_NAMED: Final = 20


def write_outcomes(path: Path, outcomes: Sequence[Outcome], answers: Mapping[str, str] | None = None) -> None:
    """Write outcomes, and what the model wrote by id, as JSON lines in the order of ids, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    lines = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.id):
        answer = {} if answers is None else {"answer": answers[outcome.id]}
        lines.append(json.dumps({**outcome.to_dict(), **answer}, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def read_outcomes(path: Path, classes: Classes | None = None, count: int | None = None) -> list[Outcome]:
    """Read outcomes back.

    Args:
        path: the file.
        classes: the classes that they may have; not checked where ``None``.
        count: how many there must be; not checked where ``None``.

    Raises:
        DataError: the file cannot be read; a line of it is damaged, repeats an id, or holds a class or scores that do
            not go with ``classes``; or there are fewer or more lines than ``count``. The message names file and line.
    """
    try:
        # Not splitlines, which also breaks at line separators that may stand in an answer.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected outcomes as JSON lines, got {error}.") from error
    outcomes, checker = [], LineChecker(classes)
    for position, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise DataError(f"expected keys and values, got {shown(record)}")
            outcomes.append(checker.check(Outcome.from_dict(record), position))
        except (ValueError, TypeError, DataError, RecursionError) as error:
            raise DataError(f"{path}, line {position}: {error}") from error
    if count is not None and len(outcomes) != count:
        raise DataError(
            f"{path}: expected {count:,} scored answers, as manifest.json says, got {len(outcomes):,}. Copy the run "
            "folder again, or run the task again."
        )
    return outcomes


class LineChecker:
    """What must hold of each line of a file of outcomes beside those before it."""

    def __init__(self, classes: Classes | None) -> None:
        """Begin a file whose outcomes may have these classes; they are not checked where ``None``."""
        self._classes = classes
        self._line_of: dict[str, int] = {}

    def check(self, outcome: Outcome, line: int) -> Outcome:
        """Return the outcome of a line.

        Raises:
            DataError: its id was there before, or its classes or scores do not go with those of the task.
        """
        first = self._line_of.setdefault(outcome.id, line)
        if first != line:
            raise DataError(f"expected every id once, got {shown(outcome.id)} again (first in line {first}).")
        if self._classes is None:
            return outcome
        answers = self._classes.answers
        for role, label in (("label", outcome.label), ("predicted", outcome.predicted)):
            if label is not None and label not in answers:
                raise DataError(f"expected `{role}` to be one of {_listed(answers)}, got {shown(label)}.")
        if outcome.scores is not None and len(outcome.scores) != len(answers):
            raise DataError(f"expected {len(answers)} scores, one a class, got {len(outcome.scores)}.")
        if self._classes.kind == "multilabel" and outcome.finding not in self._classes.labels:
            findings = _listed(self._classes.labels)
            raise DataError(f"expected `finding` to be one of {findings}, got {shown(outcome.finding)}.")
        return outcome


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return text if len(text) <= 150 else text[:149] + "…"


def read_answers(path: Path) -> dict[str, str]:
    """Return the answers by id from a file that :func:`read_outcomes` reads; rows without an answer are left out.

    Raises:
        OSError: the file cannot be read.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {str(record["id"]): str(record["answer"]) for record in records if "answer" in record}


@dataclass(frozen=True, slots=True)
class RunResults:
    """What a run folder holds, compared with its seal.

    Attributes:
        warnings: sentences on what does not agree in the folder, and does not touch manifest and outcomes.
    """

    folder: Path
    manifest: Manifest
    outcomes: dict[str, list[Outcome]]
    warnings: tuple[str, ...] = ()
    seal: SealCheck = NO_SEAL

    def require_sealed(self, *parts: str) -> None:
        """See that files are as they were sealed, where the folder is sealed.

        Args:
            parts: names relative to the folder; one that ends in ``/`` means all files below it.

        Raises:
            DataError: some are not; the message names them.
        """
        if differing := self.seal.among(*parts):
            raise DataError(
                f"{self.folder}: expected the files that were sealed when the run finished, got other ones: "
                f"{describe(differing)}. Copy the run folder again, or run the task again."
            )


def load_run(folder: Path) -> RunResults:
    """Read a run folder whose figures are about to be used.

    Raises:
        DataError: the folder is no run folder, a file in it is damaged or of a newer version, or its manifest or
            outcomes are not those that were sealed when the run finished.
    """
    manifest = read_manifest(folder)
    run = RunResults(folder, manifest, {}, seal=check_seal(folder))
    run.require_sealed(MANIFEST, *(f"{file_stem(task)}{OUTCOMES}" for task in manifest.tasks))
    warnings = _state(run)
    for task, entry in manifest.tasks.items():
        path = folder / f"{file_stem(task)}{OUTCOMES}"
        if path.is_file():
            metrics = _metrics(folder / f"{file_stem(task)}{METRICS}")
            classes = Classes.of_task(entry, metrics)
            outcomes = read_outcomes(path, classes, entry.evaluated)
            run.outcomes[task] = outcomes
            warnings += _disagreements(path.with_name(f"{file_stem(task)}{METRICS}"), metrics, outcomes, classes)
    return replace(run, warnings=tuple(warnings))


def _state(run: RunResults) -> list[str]:
    """Say what is unfinished or differs, of a folder whose manifest and outcomes may be used."""
    if not run.manifest.finished:
        return [f"{run.folder}: the run is not finished. {AGAIN}"]
    if not run.seal.sealed:
        return [f"{run.folder}: its files cannot be checked: {run.seal.fault} {UNSEALED}"]
    if run.seal.differing:
        return [
            f"{run.folder}: files differ from the seal of the finished run: {describe(run.seal.differing)}. What is "
            "computed here does not rest on them."
        ]
    return []


def _metrics(path: Path) -> dict[str, Any]:
    """Return the metrics on file; empty for a file that cannot be read, since the answers are what counts.

    Raises:
        DataError: the file is of a newer version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    try:
        check_metrics_version(content)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    return content


def _disagreements(path: Path, metrics: dict[str, Any], outcomes: list[Outcome], classes: Classes | None) -> list[str]:
    if not metrics or classes is None or not outcomes:
        return []
    try:
        differences = disagreements(metrics, outcomes, classes)
    except (DataError, OptionError) as error:
        return [f"{path}: its figures cannot be checked: {error}"]
    if not differences:
        return []
    return [
        f"{path} does not agree with the scored answers beside it: {format_differences(differences)}. "
        "The answers are used."
    ]
