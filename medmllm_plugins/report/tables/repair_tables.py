"""Tables of repairs: what each change of a model costs and gains."""

from __future__ import annotations

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Row, Table, model_table


def repairs_table(dataset: DatasetRuns) -> Table:
    """Tabulate cost and gain of each repair, from cheap to expensive."""
    rows: list[Row] = []
    for result, study in dataset.repaired():
        for repair in study.repairs:
            notes = [word for word, applies in (("helps", repair.helps), ("none cheaper", repair.pareto)) if applies]
            shuffled = repair.shuffled_gain if known(repair.shuffled_gain) else None
            values = (
                *(repair.title, repair.stage, repair.parameters, round(repair.seconds), repair.documents),
                *(repair.accuracy, repair.gain, shuffled, repair.fixed, repair.broken, repair.parsed),
                *(study.ece, repair.ece, repair.setting or ", ".join(notes)),
            )
            rows.append((result, values))
    return model_table(dataset, "repairs", rows)


def transfers_table(dataset: DatasetRuns) -> Table:
    """Tabulate what each repair does where it was not fitted."""
    rows: list[Row] = [
        (result, (repair.title, transfer.task, transfer.n, transfer.before, transfer.after, transfer.gain))
        for result, study in dataset.repaired()
        for repair in study.repairs
        for transfer in repair.transfers
    ]
    return model_table(dataset, "transfers", rows)


def learning_table(dataset: DatasetRuns) -> Table:
    """Tabulate what each repair gains that was fitted on fewer documents."""
    rows: list[Row] = []
    for result, study in dataset.repaired():
        for repair in study.repairs:
            points = [(point.documents, point.gain) for point in repair.curve]
            if points:
                points.append((repair.documents, repair.gain))
            rows += [(result, (repair.title, documents, gain)) for documents, gain in points]
    return model_table(dataset, "learning", rows)
