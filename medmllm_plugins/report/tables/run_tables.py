"""Tables of the runs and the data behind the page."""

from __future__ import annotations

import math

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import RunCollection
from medmllm_plugins.report.tables.report_table import Column, Table, Value
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence, whole


def runs_table(gathered: RunCollection) -> Table:
    """The runs behind the page."""
    columns = (
        Column("Run folder", "run"),
        Column("Model", "model"),
        Column("Tasks", "tasks"),
        Column("Began", "started"),
        Column("Finished", "finished"),
        Column("Model files", "fingerprint"),
        Column("Parameters", "parameters", "count"),
        Column("Precision", "dtype"),
        Column("Device", "device"),
        Column("Time, s", "seconds", "count"),
        Column("Peak memory, MB", "memory", "count"),
    )
    rows: list[tuple[Value, ...]] = []
    owners: list[int | None] = []
    for subject in gathered.subjects:
        for run in subject.runs:
            stages = [mapping(one) for one in sequence(run.manifest.get("stages"))]
            peaks = [number(one.get("process_peak_bytes")) for one in stages]
            rows.append(
                (
                    run.name,
                    subject.label,
                    ", ".join(task.name for task in run.tasks),
                    _moment(run.manifest.get("started")) or None,
                    _moment(run.manifest.get("finished")) or "not finished",
                    cut(run.model.get("fingerprint") or "", 13) or None,
                    number(run.model.get("parameters")),
                    clean(run.model.get("dtype") or "") or None,
                    clean(run.model.get("device") or "") or None,
                    math.fsum(one for stage in stages if known(one := number(stage.get("seconds")))),
                    max((peak / 1e6 for peak in peaks if known(peak)), default=math.nan),
                )
            )
            owners.append(subject.number)
    return Table("runs", "The runs", columns, tuple(rows), tuple(owners))


def data_table(gathered: RunCollection) -> Table:
    """The data behind the page: fingerprints, folds and leaks."""
    columns = (
        Column("Data set", "dataset"),
        Column("Fingerprint", "fingerprint", "hash"),
        Column("Hash of the folds", "folds_hash", "hash"),
        Column("Train", "train", "count"),
        Column("Validation", "validation", "count"),
        Column("Test", "test", "count"),
        Column("Groups", "groups", "count"),
        Column("Divided groups", "divided", "count"),
        Column("Exposed test documents", "exposed", "count"),
    )
    rows: dict[tuple[str, str], tuple[Value, ...]] = {}
    for part in gathered.sets:
        for cell in sorted(part.cells, key=lambda cell: part.name not in cell.run.folds):
            told = cell.task.told
            folds = cell.run.folds.get(part.name)
            counts = folds.counts if folds else {name: _total(one) for name, one in mapping(told.get("counts")).items()}
            mark = clean(told.get("dataset_fingerprint") or "")
            row: tuple[Value, ...] = (
                part.title,
                mark or None,
                clean(told.get("folds_hash") or (folds.digest if folds else "")) or None,
                *(counts.get(name) for name in ("train", "validation", "test")),
                folds.groups if folds else None,
                folds.divided if folds else None,
                folds.exposed if folds else None,
            )
            rows.setdefault((part.name, mark), row)
    return Table(
        "data",
        "The data",
        columns,
        tuple(rows.values()),
        note="Equal fingerprints mean equal files and labels. Divided: groups with documents in more than one fold.",
    )


def _moment(told: object) -> str:
    """Date and minute of a time stamp."""
    return clean(told or "").replace("T", " ")[:16]


def _total(told: object) -> int:
    return sum(whole(one) or 0 for one in mapping(told).values())
