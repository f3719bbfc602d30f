"""Metrics of a task as files: ``TASK.metrics.json`` with everything, and tidy tables as CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.intervals import Estimate, number
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.metrics.prompt_variants import VariantsSummary
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.metrics.summary import METRICS_FORMAT, Summary
from medmllm_plugins.utils.atomic_files import csv_text, write_whole
from medmllm_plugins.utils.record import check_version

Table: TypeAlias = tuple[Sequence[str], list[list[Any]]]
"""Names of columns, and rows."""


def read_metrics(content: Mapping[str, Any]) -> AnySummary:
    """Read the content of ``TASK.metrics.json``, as far as it can be read.

    Raises:
        DataError: the content is of a newer version.
    """
    kind: type[AnySummary] = Summary
    if content.get("kind") == "multilabel":
        kind = FindingsSummary
    elif "variants" in content:
        kind = VariantsSummary
    return kind.from_dict({METRICS_FORMAT: kind.VERSION, **content})


def check_metrics_version(content: Mapping[str, Any]) -> None:
    """Refuse the content of a ``TASK.metrics.json`` of a newer version.

    Raises:
        DataError: the message lacks the file's path, which the caller adds.
    """
    check_version({METRICS_FORMAT: 0, **content}, METRICS_FORMAT, Summary.VERSION)


def write_metrics(folder: Path, stem: str, summary: AnySummary) -> list[Path]:
    """Write the metrics of a task, each file whole or not at all; an undefined number is an empty CSV cell.

    Args:
        folder: made if it does not exist.
        stem: first part of the file names.
        summary: the metrics.

    Returns:
        ``STEM.metrics.json``, ``STEM.metrics.csv`` and, by the kind of task, further tables (see :func:`tables`).

    Raises:
        OptionError: ``stem`` is not a plain file name.
        OSError: the folder cannot be written.
    """
    if not stem or Path(stem).name != stem:
        raise OptionError(f"Expected argument `stem` to be a plain file name without folders, got {stem!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"metrics.json": json.dumps(summary.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"}
    texts |= {f"{name}.csv": csv_text(*table) for name, table in tables(summary).items()}
    for name, text in texts.items():
        write_whole(folder / f"{stem}.{name}", text)
    return [folder / f"{stem}.{name}" for name in texts]


def tables(summary: AnySummary) -> dict[str, Table]:
    """Return the tables of a task by name: ``metrics``, and what its kind has besides.

    ``per_class``, ``confusion`` and ``label_scores`` (with label scores) of a multi-class task, ``per_finding`` of a
    multi-label one, ``variants`` of one that asks in several ways.
    """
    estimates = dict(summary.metrics)
    if isinstance(summary, FindingsSummary):
        estimates["exact_match"] = summary.exact_match
        rows = [[row.finding, row.n, row.positives, *_wide(row.metrics().values())] for row in summary.per_finding]
        names = [] if not summary.per_finding else summary.per_finding[0].metrics()
        return {
            "metrics": _long(estimates),
            "per_finding": (["finding", "n", "positives", *_ends(names)], rows),
        }
    if isinstance(summary, VariantsSummary):
        names = ("accuracy", "balanced", "parsed")
        rows = [[name, *_wide(variant.metrics[key] for key in names)] for name, variant in summary.variants.items()]
        return {"metrics": _long(estimates), "variants": (["variant", *_ends(names)], rows)}
    estimates["accuracy_on_parsed"] = summary.accuracy_on_parsed
    if summary.sensitivity is not None and summary.specificity is not None:
        estimates |= {"sensitivity": summary.sensitivity, "specificity": summary.specificity}
    return {"metrics": _long(estimates, summary.baselines), **_class_tables(summary)}


def _class_tables(summary: Summary) -> dict[str, Table]:
    per_class = [
        [
            row.label,
            row.n,
            row.n_groups,
            *_wide((row.sensitivity, row.specificity)),
            number(row.precision),
            number(row.f1),
        ]
        for row in summary.per_class
    ]
    by_form = [
        [form, name, *_wide((value,))]
        for form, metrics in summary.label_scores.items()
        for name, value in metrics.items()
    ]
    matrix = summary.confusion
    tables: dict[str, Table] = {
        "per_class": (["label", "n", "n_groups", *_ends(("sensitivity", "specificity")), "precision", "f1"], per_class),
        "confusion": (
            ["true", *matrix.columns],
            [[label, *counts] for label, counts in zip(matrix.rows, matrix.counts, strict=True)],
        ),
    }
    return tables | ({"label_scores": (["form", "metric", "value", "low", "high"], by_form)} if by_form else {})


def _long(estimates: Mapping[str, Estimate], baselines: Mapping[str, Mapping[str, float]] | None = None) -> Table:
    """Return a table with a row for each metric, and a column for each baseline."""
    by_baseline = baselines or {}
    rows = [
        [name, *_wide((value,)), *(scores.get(name) for scores in by_baseline.values())]
        for name, value in estimates.items()
    ]
    return ["metric", "value", "low", "high", *by_baseline], rows


def _wide(estimates: Any) -> list[float | None]:
    return [end for value in estimates for end in value.to_dict().values()]


def _ends(names: Any) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
