"""Tables of the runs and the data behind the page."""

from __future__ import annotations

import math

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import RunCollection
from medmllm_plugins.report.tables.report_table import Table, Value, read_columns
from medmllm_plugins.report.templating import texts
from medmllm_plugins.results.run_reader import RunFolder
from medmllm_plugins.utils.json_values import number


def runs_table(collection: RunCollection) -> Table:
    """Tabulate the runs behind the page."""
    pairs = [(subject, run) for subject in collection.subjects for run in subject.runs]
    rows = tuple(_run_row(run, subject.label) for subject, run in pairs)
    title, note = texts("tables.txt.jinja", "runs")
    datasets = [", ".join(dict.fromkeys(task.dataset for task in run.tasks)) for _, run in pairs]
    return Table(
        stem="runs",
        title=title,
        columns=read_columns("runs"),
        rows=rows,
        series=tuple(subject.number for subject, _ in pairs),
        note=note,
        origins=tuple((run.name, names) for (_, run), names in zip(pairs, datasets, strict=True)),
    )


def _run_row(run: RunFolder, model: str) -> tuple[Value, ...]:
    manifest = run.manifest
    return (
        run.name,
        model,
        ", ".join(task.name for task in run.tasks),
        _minute(manifest.started) or None,
        _minute(manifest.finished) or "not finished",
        cut(run.model.fingerprint or "", 13) or None,
        number(run.model.parameters),
        run.model.dtype or None,
        run.model.device or None,
        math.fsum(stage.seconds for stage in manifest.stages if known(stage.seconds)),
        max((stage.process_peak_bytes / 1e6 for stage in manifest.stages), default=0) or None,
    )


def data_table(collection: RunCollection) -> Table:
    """Tabulate the data behind the page: fingerprints, folds and leaks."""
    rows: dict[tuple[str, str], tuple[Value, ...]] = {}
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for dataset in collection.datasets:
        for result in sorted(dataset.results, key=lambda result: dataset.name not in result.run.folds):
            folds = result.run.folds.get(dataset.name)
            by_class = result.task.entry.counts.items()
            counts = folds.counts if folds else {name: sum(classes.values()) for name, classes in by_class}
            row: tuple[Value, ...] = (
                dataset.title,
                result.fingerprint or None,
                result.task.entry.folds_hash or (folds.digest if folds else None),
                *(counts.get(name) for name in ("train", "validation", "test")),
                *((folds.groups, folds.divided, folds.exposed) if folds else (None, None, None)),
            )
            rows.setdefault((dataset.name, result.fingerprint), row)
            runs.setdefault((dataset.name, result.fingerprint), {})[result.run.name] = None
    title, note = texts("tables.txt.jinja", "data")
    origins = tuple((", ".join(names), dataset) for (dataset, _), names in runs.items())
    return Table("data", title, read_columns("data"), tuple(rows.values()), note=note, origins=origins)


def _minute(timestamp: str | None) -> str:
    """Return date, hour and minute of a time stamp."""
    return (timestamp or "").replace("T", " ")[:16]
