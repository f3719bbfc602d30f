"""The report of a collection of runs: figures drawn, tables filled, notes collected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from medmllm_plugins import __version__
from medmllm_plugins.report import methods_text
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.figures.gallery import Gallery, build_gallery
from medmllm_plugins.report.figures.parallel_figures import FailedFigure, draw_all
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.report_notes import Notes, collect_notes, note
from medmllm_plugins.report.run_collection import RunCollection
from medmllm_plugins.report.sections import DatasetSection, build_section
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.tables.run_tables import data_table, runs_table
from medmllm_plugins.utils.plain_text import listed, quantity


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report, before it is written."""

    collection: RunCollection
    title: str
    sections: tuple[DatasetSection, ...]
    gallery: Gallery
    notes: Notes
    methods: methods_text.Methods
    runs: Table
    data: Table

    def tables(self) -> list[Table]:
        """Return all tables with rows."""
        return [*(table for section in self.sections for table in section.filled_tables), self.runs, self.data]

    def drawings(self) -> list[Drawing]:
        """Return all figures."""
        return [drawing for section in self.sections for drawing in section.figures.values()]

    def sentences(self) -> list[str]:
        """Return the overview of each data set; with several data sets, after the title of each."""
        several = len(self.sections) > 1
        return [
            f"{section.dataset.title}: {section.sentence}" if several else section.sentence for section in self.sections
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: verdicts, tables, notes and methods."""
        return {
            "medmllm_report": 1,
            "version": __version__,
            "title": self.title,
            "datasets": [section.to_dict() for section in self.sections],
            "runs": self.runs.to_dict(),
            "data": self.data.to_dict(),
            "missing": list(self.notes.missing),
            "leaks": list(self.notes.leaks),
            "warnings": list(self.notes.warnings),
            "methods": list(self.methods.paragraphs),
            "references": list(self.methods.references),
        }


def build_report(collection: RunCollection) -> Report:
    """Draw all figures and fill all tables."""
    sections, problems = _draw_figures([build_section(dataset) for dataset in collection.datasets])
    notes = collect_notes(collection)
    drawings = [drawing for section in sections for drawing in section.figures.values()]
    letters = sorted({letter for drawing in drawings for letter in drawing.missing_letters})
    boxes = [note("missing_letters", letters=cut(" ".join(letters), 60))] if letters else []
    return Report(
        collection=collection,
        title=_title(collection),
        sections=tuple(sections),
        gallery=build_gallery(list(collection.results())),
        notes=replace(notes, missing=(*notes.missing, *problems), warnings=(*notes.warnings, *boxes)),
        methods=methods_text.methods(collection),
        runs=runs_table(collection),
        data=data_table(collection),
    )


def _draw_figures(sections: Sequence[DatasetSection]) -> tuple[list[DatasetSection], list[str]]:
    """Return the sections with their figures, and notes on those that could not be drawn."""
    numbers = itertools.count()
    jobs = [
        (index, name, partial(job, next(numbers)))
        for index, section in enumerate(sections)
        for name, job in section.figure_jobs().items()
    ]
    figures: list[dict[str, Drawing]] = [{} for _ in sections]
    problems: list[str] = []
    for (index, name, _), drawing in zip(jobs, draw_all([job for *_, job in jobs]), strict=True):
        if isinstance(drawing, FailedFigure):
            title = sections[index].dataset.title
            problems.append(note("figure_failed", data_set=title, figure=name, error=drawing.error))
        elif drawing is not None:
            figures[index][name] = drawing
    return [replace(section, figures=named) for section, named in zip(sections, figures, strict=True)], problems


def _title(collection: RunCollection) -> str:
    models = [subject.label for subject in collection.models or collection.subjects]
    datasets = [dataset.title for dataset in collection.datasets]
    who = listed(models) if len(models) <= 2 else quantity(len(models), "model")
    on = listed(datasets) if len(datasets) <= 2 else quantity(len(datasets), "data set")
    return f"{who} on {on}" if datasets else who
