"""Tables of multi-label sets, which are asked one yes/no question a finding."""

from __future__ import annotations

from collections import Counter
from typing import Final

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DataPart
from medmllm_plugins.report.tables.answer_tables import DECIMALS, mains_of
from medmllm_plugins.report.tables.report_table import Column, Table, Value
from medmllm_plugins.utils.json_values import clean, mapping, sequence, whole

FINDING_METRICS: Final = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "balanced": "Balanced accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "Average precision",
    "parsed": "Parsed",
}
"""Metrics of a finding, in the order of columns."""


def findings_table(part: DataPart) -> Table:
    """Figures of each finding of a multi-label set, as each model's main task has them."""
    columns = (
        Column("Model", "model"),
        Column("Finding", "finding"),
        Column("Questions", "n", "count"),
        Column("Positives", "positives", "count"),
        *(Column(title, name, "decimal" if name in DECIMALS else "share") for name, title in FINDING_METRICS.items()),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in mains_of(part):
        for one in map(mapping, sequence(cell.task.metrics.get("per_finding"))):
            figures = [Estimate.from_dict(one.get(name)) for name in FINDING_METRICS]
            name = cut(one.get("finding") or "")
            rows.append((cell.subject.label, name, whole(one.get("n")), whole(one.get("positives")), *figures))
            owners.append(cell.subject.number)
    return Table(
        f"{part.name}.findings",
        f"{part.title}: each finding",
        columns,
        tuple(rows),
        tuple(owners),
        "F1, AUROC and average precision are of yes. Of a finding that no document has, or every one, only the share "
        "of parsed answers is defined.",
    )


def counts_table(part: DataPart) -> Table:
    """Who answered what about each finding: the confusion matrices of a multi-label set, one a row."""
    answered = {"yes": "yes", "no": "no", None: "not read"}
    cells = [(truth, answer) for truth in ("yes", "no") for answer in answered]
    words = {"yes": "There", "no": "Not there"}
    columns = (
        Column("Model", "model"),
        Column("Finding", "finding"),
        *(
            Column(f"{words[truth]}: {answered[answer]}", f"{truth}_{answer or 'unparsed'}", "count")
            for truth, answer in cells
        ),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for cell in mains_of(part):
        counted = Counter(
            (clean(one.finding), clean(one.label), None if one.predicted is None else clean(one.predicted))
            for one in cell.task.outcomes
            if one.finding
        )
        for finding in dict.fromkeys(name for name, _, _ in counted):
            counts = [counted[finding, truth, answer] for truth, answer in cells]
            rows.append((cell.subject.label, cut(finding), *counts))
            owners.append(cell.subject.number)
    return Table(
        f"{part.name}.counts",
        f"{part.title}: answers about each finding",
        columns,
        tuple(rows),
        tuple(owners),
        "Numbers of answers, by what is there and what was answered; of the answers that are on record.",
    )
