"""How many documents of a data set a result covers."""

from __future__ import annotations

from dataclasses import dataclass

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.run_collection import TaskResult
from medmllm_plugins.utils.json_values import number


@dataclass(frozen=True, slots=True)
class Coverage:
    """Documents that were evaluated, of those that the task asks about.

    Attributes:
        evaluated: documents behind the metrics.
        total: documents of the folds; ``None`` where it is not known.
        limited: whether ``--limit`` left documents out, so that those evaluated are the first ones.
    """

    evaluated: int
    total: int | None
    limited: bool

    @property
    def partial(self) -> bool:
        """Whether documents are missing."""
        return self.total is not None and self.evaluated < self.total


def coverage(result: TaskResult) -> Coverage:
    """Return how many documents a result covers."""
    evaluated = _evaluated(result)
    total = _total(result)
    limited = known(number(result.run.command.get("limit")))
    return Coverage(evaluated, total if total is not None and total >= evaluated else None, limited)


def _evaluated(result: TaskResult) -> int:
    entry = result.task.entry
    documents = {outcome.document or outcome.id for outcome in result.task.outcomes}
    if len(result.task.outcomes) >= result.question_count:
        return len(documents)
    # Fewer rows are on record than were scored.
    questions_each = (entry.questions or 0) / (entry.documents or 1)
    return round(result.question_count / questions_each) if questions_each >= 1 else result.question_count


def _total(result: TaskResult) -> int | None:
    """Return the documents of the folds that are scored; ``None`` where it is not known."""
    entry, settings = result.task.entry, result.task.settings
    probed = settings.features is not None  # it passes all folds through the model; the test fold is scored
    if not probed and result.task.repairs is None and entry.documents is not None:
        return entry.documents
    names = ("test",) if probed else settings.folds
    if (folds := result.run.folds.get(result.task.dataset)) is not None:
        return sum(folds.counts.get(name, 0) for name in names)
    if result.multilabel or not entry.counts:  # counts of findings are not counts of documents
        return None
    return sum(sum(entry.counts.get(name, {}).values()) for name in names)
