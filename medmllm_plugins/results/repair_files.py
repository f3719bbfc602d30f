"""Repairs as files: ``TASK.repair.json`` with everything, and a tidy table as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.metrics.intervals import Estimate, number
from medmllm_plugins.results.file_names import REPAIR_GAINS, REPAIRS
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.utils.atomic_files import csv_text, write_whole

GAIN_COLUMNS: Final = ("repair", "stage", "parameters", "metric", "on", "value", "low", "high")


def write_repairs(folder: Path, stem: str, study: RepairStudy) -> None:
    """Write a study of repairs into a run folder.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / f"{stem}{REPAIRS}", json.dumps(study.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / f"{stem}{REPAIR_GAINS}", csv_text(GAIN_COLUMNS, gain_rows(study)))


def gain_rows(study: RepairStudy) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table, with the columns :data:`GAIN_COLUMNS`; a repair named ``none`` is the model."""

    def row(name: str, stage: str, parameters: int, metric: str, on: str, figure: Estimate | float) -> tuple[Any, ...]:
        ends = figure.to_dict().values() if isinstance(figure, Estimate) else (number(figure), None, None)
        return (name, stage, parameters, metric, on, *ends)

    yield row("none", "", 0, "accuracy", study.task, study.accuracy)
    yield row("none", "", 0, "ece", study.task, study.ece)
    for repair in study.repairs:
        own = (repair.name, repair.stage, repair.parameters)
        yield row(*own, "accuracy", study.task, repair.accuracy)
        yield row(*own, "gain", study.task, repair.gain)
        yield row(*own, "validation_gain", study.task, repair.validation_gain)
        yield row(*own, "shuffled_gain", study.task, repair.shuffled_gain)
        yield row(*own, "over_shuffled", study.task, repair.over_shuffled)
        yield row(*own, "over_guess", study.task, repair.over_guess)
        yield row(*own, "ece", study.task, repair.ece)
        for transfer in repair.transfers:
            yield row(*own, "gain", transfer.task, transfer.gain)
        for point in repair.curve:
            yield row(*own, f"gain_from_{point.documents}", study.task, point.gain)
