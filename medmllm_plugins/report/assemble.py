"""The report of a collection of runs: figures drawn, tables filled, notes collected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from medmllm_plugins import __version__
from medmllm_plugins.report import methods_text
from medmllm_plugins.report.error_browser.browser_data import BrowserView, browser_views
from medmllm_plugins.report.error_browser.document_pictures import page_pictures
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.figures.gallery import BUDGET, Gallery, build_gallery
from medmllm_plugins.report.figures.parallel_figures import FailedFigure, draw_all
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.report_notes import Notes, collect_notes, note
from medmllm_plugins.report.run_collection import RunCollection
from medmllm_plugins.report.sections import DatasetSection, build_section
from medmllm_plugins.report.tables.data_dictionary import documents_table
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.tables.run_tables import data_table, runs_table
from medmllm_plugins.results.report_records import ReportRecord
from medmllm_plugins.utils.plain_text import listed, quantity


@dataclass(frozen=True, slots=True)
class Report:
    """A finished report, before it is written."""

    collection: RunCollection
    title: str
    sections: tuple[DatasetSection, ...]
    gallery: Gallery
    browsers: tuple[BrowserView, ...]
    notes: Notes
    methods: methods_text.Methods
    runs: Table
    data: Table
    documents: tuple[Table, ...]
    """Every answer on each data set, for the CSV files; the page shows them in the error browser."""

    def tables(self) -> list[Table]:
        """Return all tables with rows, each of which is a CSV file."""
        shown = [table for section in self.sections for table in section.filled_tables]
        return [*shown, *(table for table in self.documents if table.rows), self.runs, self.data]

    def drawings(self) -> list[Drawing]:
        """Return all figures."""
        return [drawing for section in self.sections for drawing in section.figures.values()]

    def headlines(self) -> list[str]:
        """Return the headline of each data set; with several data sets, after the title of each."""
        if len(self.sections) == 1:
            return [self.sections[0].answer.headline]
        return [f"{section.dataset.title}: {section.answer.headline}" for section in self.sections]

    def record(self, files: Sequence[str] = ()) -> ReportRecord:
        """Return the content of ``report.json``; ``files`` are the tables and figures beside it."""
        return ReportRecord(
            version=__version__,
            title=self.title,
            datasets=tuple(section.record() for section in self.sections),
            runs=self.runs.record(),
            data=self.data.record(),
            missing=tuple(self.notes.missing),
            leaks=tuple(self.notes.leaks),
            warnings=tuple(self.notes.warnings),
            methods=tuple(self.methods.paragraphs),
            references=tuple(self.methods.references),
            files=tuple(files),
        )


def build_report(collection: RunCollection, *, images: bool = True) -> Report:
    """Draw all figures and fill all tables; without ``images``, no picture of a document or map is on the page."""
    sections, problems = _draw_figures([build_section(dataset) for dataset in collection.datasets])
    notes = collect_notes(collection)
    drawings = [drawing for section in sections for drawing in section.figures.values()]
    letters = sorted({letter for drawing in drawings for letter in drawing.missing_letters})
    boxes = [note("missing_letters", letters=cut(" ".join(letters), 60))] if letters else []
    browsers = _browsers(sections, images)
    left = BUDGET - sum(view.pictures.characters for view in browsers)
    return Report(
        collection=collection,
        title=_title(collection),
        sections=tuple(sections),
        gallery=build_gallery(list(collection.results()), left, images=images),
        browsers=browsers,
        notes=replace(notes, missing=(*notes.missing, *problems), warnings=(*notes.warnings, *boxes)),
        methods=methods_text.methods(collection),
        runs=runs_table(collection),
        data=data_table(collection),
        documents=tuple(documents_table(section.dataset) for section in sections),
    )


def _browsers(sections: Sequence[DatasetSection], images: bool) -> tuple[BrowserView, ...]:
    """Return the error browsers of all sections with their pictures."""
    browsers = [(index, browser) for index, section in enumerate(sections) for browser in section.browsers]
    return browser_views(browsers, page_pictures([browser for _, browser in browsers], images=images))


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
            drawing = drawing.drawing
        if drawing is not None:
            figures[index][name] = drawing
    return [replace(section, figures=named) for section, named in zip(sections, figures, strict=True)], problems


def _title(collection: RunCollection) -> str:
    models = [subject.label for subject in collection.models or collection.subjects]
    datasets = [dataset.title for dataset in collection.datasets]
    who = listed(models) if len(models) <= 2 else quantity(len(models), "model")
    on = listed(datasets) if len(datasets) <= 2 else quantity(len(datasets), "data set")
    return f"{who} on {on}" if datasets else who
