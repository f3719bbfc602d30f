"""Tables of multi-label sets, which are asked one yes/no question per finding."""

from __future__ import annotations

from collections import Counter

from medmllm_plugins.metrics.intervals import UNKNOWN
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.report.display_names import DECIMALS, FINDING_METRICS
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Column, Row, Table, model_table
from medmllm_plugins.utils.json_values import clean


def findings_table(dataset: DatasetRuns) -> Table:
    """Tabulate the metrics of each finding in each model's main task."""
    columns = (
        Column("Finding", "finding"),
        Column("Questions", "n", "count"),
        Column("Positives", "positives", "count"),
        *(Column(title, name, "decimal" if name in DECIMALS else "share") for name, title in FINDING_METRICS.items()),
    )
    rows: list[Row] = []
    for result in dataset.main_results():
        summary = result.task.summary
        for row in summary.per_finding if isinstance(summary, FindingsSummary) else ():
            values = (getattr(row, name) or UNKNOWN for name in FINDING_METRICS)
            rows.append((result, (cut(row.finding), row.n, row.positives, *values)))
    return model_table(dataset, "findings", rows, columns)


def counts_table(dataset: DatasetRuns) -> Table:
    """Tabulate the answers about each finding: the confusion matrices of a multi-label set, one per row."""
    answers = {"yes": "yes", "no": "no", None: "unparsed"}
    titles = {"yes": "Present", "no": "Absent"}
    pairs = [(truth, answer) for truth in titles for answer in answers]
    columns = (
        Column("Finding", "finding"),
        *(
            Column(f"{titles[truth]}: {answers[answer]}", f"{truth}_{answers[answer]}", "count")
            for truth, answer in pairs
        ),
    )
    rows: list[Row] = []
    for result in dataset.main_results():
        counts = Counter(
            (clean(outcome.finding), clean(outcome.label), outcome.predicted and clean(outcome.predicted))
            for outcome in result.task.outcomes
            if outcome.finding
        )
        for finding in dict.fromkeys(name for name, _, _ in counts):
            rows.append((result, (cut(finding), *(counts[finding, truth, answer] for truth, answer in pairs))))
    return model_table(dataset, "counts", rows, columns)
