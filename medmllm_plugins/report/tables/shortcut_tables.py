"""Tables of shortcuts: the class read from parts of the image, folds that differ, and other columns of the data."""

from __future__ import annotations

from collections.abc import Iterator

from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.tables.report_table import Row, Table, model_table
from medmllm_plugins.results.shortcut_records import ShortcutReport


def _reports(dataset: DatasetRuns) -> Iterator[tuple[TaskResult, ShortcutReport]]:
    for result, probing in dataset.probed():
        if probing.shortcuts is not None:
            yield result, probing.shortcuts


def shortcuts_table(dataset: DatasetRuns) -> Table:
    """Tabulate what each set of features tells of class and fold."""
    rows: list[Row] = []
    for result, report in _reports(dataset):
        for check in report.checks:
            warned = [f"class readable ({' and '.join(check.readable)})"] if check.readable else []
            warned += ["folds differ"] if check.shifted else []
            warned += ["class read less well in the test fold"] if check.dropped else []
            figures = (check.within_train, check.to_test, check.drop, check.p_drop, check.shift, check.p_shift)
            rows.append((result, (check.layer, check.pooling, *figures, ", ".join(warned) or None)))
    return model_table(dataset, "shortcuts", rows)


def masked_table(dataset: DatasetRuns) -> Table:
    """Tabulate the accuracies of the stages' ends and of the answers with the border of the images masked."""
    rows: list[Row] = [
        (result, (check.layer, check.pooling or None, check.n, check.shown, check.masked, check.drop))
        for result, report in _reports(dataset)
        for check in report.masked
    ]
    return model_table(dataset, "masked", rows)


def nuisances_table(dataset: DatasetRuns) -> Table:
    """Tabulate the other columns of the data: what they tell of the class, and where a model shows them."""
    rows: list[Row] = []
    for result, report in _reports(dataset):
        for column in report.nuisances:
            best = max(column.points, key=lambda point: point.balanced.value, default=None)
            site = (best.layer, best.pooling, best.balanced) if best else (None, None, None)
            facts = (column.column, len(column.counts) or None, column.class_from_column, column.p)
            rows.append((result, (*facts, *site, column.chance, column.within)))
        if (together := report.columns_together) is not None:
            facts = ("all together", None, together.class_from_columns, together.p)
            rows.append((result, (*facts, None, None, None, None, None)))
    return model_table(dataset, "nuisances", rows)
