"""Models and reference classifiers side by side: accuracy, sorted, and the metrics table as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, known
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.templating import texts

COMPACT: Final = ("model", "accuracy", "balanced", "macro_f1", "mcc", "auroc", "parsed", "task")
"""Columns of the metrics on the page, accuracy first, which a phone has to show; the CSV file has all."""


@dataclass(frozen=True, slots=True, eq=False)
class ComparedModel:
    """A model or a reference classifier in the ranking.

    Attributes:
        result: its main result.
        guess: name and accuracy of the best constant answer to its questions; an empty name if it is unknown.
    """

    result: TaskResult
    accuracy: Estimate
    balanced: Estimate
    guess: tuple[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class ModelComparison:
    """The section "Models compared" of one data set.

    Attributes:
        models: models and reference classifiers, the most accurate first.
        table: the metrics of their main questions.
        other_tasks: the metrics of their other questions about the real image.
    """

    models: tuple[ComparedModel, ...]
    table: Table
    other_tasks: Table

    @property
    def ranked(self) -> bool:
        """Whether there is more than one model to rank; of a single one, the table says all."""
        return sum(not model.result.subject.reference for model in self.models) > 1


def compare_models(dataset: DatasetRuns, metrics: Table, results: Sequence[TaskResult]) -> ModelComparison:
    """Rank models and reference classifiers; tasks without the real image are controls and are not ranked.

    Args:
        dataset: the data set.
        metrics: the table of all metrics.
        results: the result of each of its rows.
    """
    main = {id(result) for result in dataset.main_results(blind=True)}
    models = [
        ComparedModel(result, result.metrics["accuracy"], result.metrics.get("balanced", UNKNOWN), result.guess)
        for result in dataset.main_results(blind=True)
        if known(result.metrics.get("accuracy"))
    ]
    models.sort(key=lambda model: (-model.accuracy.value, model.result.subject.number))
    order = {id(model.result): index for index, model in enumerate(models)}
    rows = [index for index, result in enumerate(results) if id(result) in main]
    rows.sort(key=lambda index: order.get(id(results[index]), len(order)))
    others = [index for index, result in enumerate(results) if id(result) not in main and result.task.image == "shown"]
    title, note = texts("tables.txt.jinja", "other_tasks", data_set=dataset.title)
    return ModelComparison(
        models=tuple(models),
        table=metrics.selection(columns=COMPACT, rows=rows, note=note),
        other_tasks=metrics.selection(columns=COMPACT, rows=others, title=title, note=note),
    )
