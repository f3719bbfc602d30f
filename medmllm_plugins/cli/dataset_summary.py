"""A data set in numbers, for ``medmllm task new`` and ``medmllm datasets --check``."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.layouts.table_entries import entries
from medmllm_plugins.data.layouts.user_table import size
from medmllm_plugins.data.loading.dataset import Dataset


def describe(data: Dataset) -> list[str]:
    """Return lines about a data set with the layout ``table``: files, groups, folds, classes and sizes."""
    spec, documents = data.spec, data.documents
    noun = "volumes" if spec.dimensions == 3 else "images"
    kinds = Counter(_kind(data.folder / document.image) for document in documents)
    sources = {entry.id: entry.source for entry in entries(spec, data.folder, Faults(spec.title, ""))}
    before = len({sources[document.id] for document in documents})
    after = len({document.group for document in documents})
    column, folds = spec.options.get("group_column"), spec.options.get("fold_column")
    same = "identical volumes" if spec.dimensions == 3 else "near-duplicate images"
    joined = f"{before - after} joined to others by {same}" if before > after else f"none joined by {same}"
    return [
        f"{noun:<10} {len(documents)} ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})",
        f"groups     {after} ({f'column {column!r}' if column else f'one for each of the {noun}'}; {joined})",
        f"folds      {f'column {folds!r}' if folds else 'made here, no group divided'}; hash {data.folds_hash[:16]}",
        *counts_table(data),
        *_sizes(data),
    ]


def counts_table(data: Dataset) -> list[str]:
    """Return the number of documents by class and fold, as lines of text."""
    counts = data.counts()
    rows = [["class", *FOLDS]]
    rows += [[label, *(str(counts[fold][label]) for fold in FOLDS)] for label in data.spec.labels]
    rows.append(["all", *(str(sum(document.fold == fold for document in data.documents)) for fold in FOLDS)])
    width = max(len(row[0]) for row in rows)
    return [f"{'':<10} {row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]


def _sizes(data: Dataset) -> list[str]:
    headers = [size(data.spec, data.folder, document) for document in data.documents]
    axes = ("width", "height") if data.spec.dimensions == 2 else ("slices", "rows", "columns")
    sizes = zip(axes, zip(*(shape for shape, _ in headers), strict=True), strict=True)
    lines = ["size       " + ", ".join(f"{axis} {_range(values)}" for axis, values in sizes) + " (min–median–max)"]
    if data.spec.dimensions == 3:
        spacings = zip(axes, zip(*(spacing for _, spacing in headers), strict=True), strict=True)
        parts = ", ".join(f"between {axis} {_range(values)}" for axis, values in spacings)
        lines.append(f"spacing    {parts} mm (min–median–max)")
    return lines


def _range(values: Sequence[float]) -> str:
    three = [f"{value:.4g}" for value in (min(values), statistics.median_low(values), max(values))]
    return three[0] if len(set(three)) == 1 else "–".join(three)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "DICOM folders"
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower() or "without ending"
