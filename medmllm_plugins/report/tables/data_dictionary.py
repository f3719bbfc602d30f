"""The data dictionary beside the tables: what each column of each CSV file means, its type and its source."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import yaml

from medmllm_plugins.report.error_browser.document_rows import document_rows
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.tables.report_table import Column, Kind, Table
from medmllm_plugins.report.templating import environment, template_source, texts

_DOCUMENT_KINDS: Final[Mapping[str, Kind]] = {"correct": "count", "confidence": "share", "probability_*": "share"}
"""Kinds of the columns of the per-document file that are not text."""


@dataclass(frozen=True, slots=True)
class _Declared:
    """Content of ``templates/data_dictionary.yaml``."""

    kinds: Mapping[str, str]
    tables: Mapping[str, str]
    columns: Mapping[str, str]
    tables_columns: Mapping[str, Mapping[str, str]]


@functools.cache
def _declared() -> _Declared:
    return _Declared(**yaml.safe_load(template_source("data_dictionary.yaml")))


def about(table: str) -> str:
    """Return what a table is about and where its numbers are from; empty if nothing is declared."""
    return _declared().tables.get(table, "")


def meaning(table: str, column: str) -> tuple[str, str] | None:
    """Return the declared name of a column, which may stand for several (``probability_*``), and its meaning.

    ``None`` if nothing is declared.
    """
    declared = _declared()
    for meanings in (declared.tables_columns.get(table, {}), declared.columns):
        if column in meanings:
            return column, meanings[column]
        for pattern, words in meanings.items():
            if "*" in pattern and fnmatchcase(column, pattern):
                return pattern, words
    return None


def data_dictionary(files: Mapping[str, Table]) -> str:
    """Return the data dictionary as Markdown, given the tables by the names of their CSV files."""
    module = environment(autoescape=False).get_template("data_dictionary.md.jinja").module
    described = [(name, about(table.name) or table.title, _columns(table)) for name, table in sorted(files.items())]
    return str(module.dictionary(described, _declared().kinds)).strip() + "\n"  # type: ignore[attr-defined]  # a macro


def _columns(table: Table) -> list[tuple[str, str, str]]:
    """Return name, kind and meaning of the columns of a table; those of one pattern are one."""
    rows: dict[str, tuple[str, str, str]] = {}
    columns = table.csv_columns()
    with_interval = {column.name for column, suffix in columns if suffix}
    for column, suffix in columns:
        name, words = meaning(table.name, column.name) or (column.name, column.title)
        if not suffix:
            ending = " (with interval)" if column.name in with_interval else ""
            rows.setdefault(name, (name, column.kind, f"{words}{ending}"))
    return list(rows.values())


def documents_table(dataset: DatasetRuns) -> Table:
    """Return every answer to every task of a data set, for the CSV file; the page does not show it as a table."""
    documents = document_rows(dataset)
    columns = tuple(Column(name, name, _document_kind(name)) for name in documents.columns)
    title, note = texts("tables.txt.jinja", "documents", data_set=dataset.title)
    return Table(f"{dataset.name}.documents", title, columns, documents.rows, note=note)


def _document_kind(name: str) -> Kind:
    return next((kind for pattern, kind in _DOCUMENT_KINDS.items() if fnmatchcase(name, pattern)), "text")
