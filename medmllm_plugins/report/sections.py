"""Sections of the page: the tables, figures and matrices of one data set, grouped as a reader reads them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar

from medmllm_plugins.report.figures import answer_figures, attribution_figures, layer_figures, mapping_figures
from medmllm_plugins.report.figures.count_matrix import CountMatrix, agreement_matrices, confusion_matrices
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.overview import overview
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.run_pairs import ImageControl, image_controls, model_differences
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.tables import answer_tables, finding_tables, layer_tables
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.verdict import Verdict, verdicts

FigureJob: TypeAlias = Callable[[int], Drawing | None]
"""Draws a figure, given its number on the page."""
_T = TypeVar("_T", Table, Drawing)


class _Section:
    """Base class of the sections, which are dataclasses."""

    __slots__ = ()

    def _values(self, kind: type[_T]) -> list[_T]:
        values: list[_T] = []
        for entry in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, entry.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, kind):
                    values.append(item)
                elif isinstance(item, _Section):
                    values += item._values(kind)
        return values

    def tables(self) -> list[Table]:
        """Return the tables with rows, each of which is a CSV file."""
        return [table for table in self._values(Table) if table.rows]

    def drawings(self) -> list[Drawing]:
        """Return the figures."""
        return self._values(Drawing)


@dataclass(frozen=True, slots=True)
class AccuracySection(_Section):
    """How accurate the models are."""

    figure: Drawing | None
    metrics: Table
    differences: Table
    classes: Table
    findings: Table


@dataclass(frozen=True, slots=True)
class AnswersSection(_Section):
    """What the answers are: parsing, confusion, calibration and ranking."""

    parsing: Table
    unparsed: Table
    label_scores: Table
    confusion: tuple[CountMatrix, ...]
    confusion_figure: Drawing | None
    counts: Table
    reliability: Drawing | None
    roc: Drawing | None
    areas: Table


@dataclass(frozen=True, slots=True)
class SensitivitySection(_Section):
    """How accuracy depends on the order of options, the wording and the image."""

    figure: Drawing | None
    changes: Table
    positions: Table


@dataclass(frozen=True, slots=True)
class ModelCurves(_Section):
    """The layer curves of one model."""

    subject: Subject
    figure: Drawing


@dataclass(frozen=True, slots=True)
class ProbesSection(_Section):
    """Where the signal is lost: failure modes, layer curves and Feature Health."""

    modes: Table
    diagnosis: Table
    several_models: Drawing | None
    single_models: tuple[ModelCurves, ...]
    health: Drawing | None
    health_table: Table
    curves: Table


@dataclass(frozen=True, slots=True)
class MappingSection(_Section):
    """Semantic mapping: the probe of the last token and the answers."""

    agreement: tuple[CountMatrix, ...]
    agreement_figure: Drawing | None
    gains: Drawing | None
    table: Table
    lens: Drawing | None


@dataclass(frozen=True, slots=True)
class AttributionSection(_Section):
    """Checks of the attribution methods."""

    checks: Drawing | None
    randomisation: Drawing | None
    table: Table


@dataclass(frozen=True, slots=True)
class DatasetSection(_Section):
    """All that the page says about one data set.

    Attributes:
        dataset: the data set.
        sentence: the overview of its models.
        verdicts: the verdicts on its models.
        accuracy: how accurate the models are.
        answers: what the answers are.
        sensitivity: how accuracy depends on the question and the image.
        probes: where the signal is lost.
        mapping: semantic mapping.
        attribution: checks of the attribution methods.
    """

    dataset: DatasetRuns
    sentence: str
    verdicts: tuple[Verdict, ...]
    accuracy: AccuracySection
    answers: AnswersSection
    sensitivity: SensitivitySection
    probes: ProbesSection
    mapping: MappingSection
    attribution: AttributionSection

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; answers that could not be parsed are left out, since they may be long."""
        return {
            "dataset": self.dataset.name,
            "title": self.dataset.title,
            "sentence": self.sentence,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "tables": {table.stem: table.to_dict() for table in self.tables() if table is not self.answers.unparsed},
        }


@dataclass(frozen=True, slots=True, eq=False)
class SectionPlan:
    """A data set with what both its figures and its tables need."""

    dataset: DatasetRuns
    verdicts: Sequence[Verdict]
    controls: Sequence[ImageControl]

    @classmethod
    def of(cls, dataset: DatasetRuns) -> SectionPlan:
        """Compute verdicts and controls of a data set."""
        return cls(dataset, verdicts(dataset), image_controls(dataset))

    def figure_jobs(self) -> list[tuple[str, FigureJob]]:
        """Return the figures to draw, by name; those that take longest come first."""
        jobs: list[tuple[str, FigureJob]] = [
            (f"layers {index}", functools.partial(layer_figures.single_model, result, self.dataset))
            for index, (result, _) in enumerate(self.dataset.probed())
        ]
        for name, draw in (
            ("confusion", answer_figures.confusion),
            ("agreement", mapping_figures.agreement),
            ("reliability", answer_figures.reliability),
            ("roc", answer_figures.roc),
            ("gains", mapping_figures.gains),
            ("checks", attribution_figures.checks),
            ("layers", layer_figures.several_models),
            ("accuracy", answer_figures.accuracies),
            ("health", layer_figures.health),
            ("lens", mapping_figures.lens),
            ("randomisation", attribution_figures.randomisation),
        ):
            jobs.append((name, functools.partial(draw, self.dataset)))
        return [*jobs, ("sensitivity", functools.partial(answer_figures.sensitivity, self.dataset, self.controls))]

    def section(self, figures: Mapping[str, Drawing]) -> DatasetSection:
        """Build the section from the drawn figures."""
        dataset, pairs = self.dataset, model_differences(self.dataset)
        return DatasetSection(
            dataset=dataset,
            sentence=overview(dataset, self.verdicts, pairs),
            verdicts=tuple(self.verdicts),
            accuracy=AccuracySection(
                figure=figures.get("accuracy"),
                metrics=answer_tables.metrics_table(dataset, self.verdicts),
                differences=answer_tables.differences_table(dataset, pairs),
                classes=answer_tables.class_table(dataset),
                findings=finding_tables.findings_table(dataset),
            ),
            answers=_answers_section(dataset, figures),
            sensitivity=SensitivitySection(
                figure=figures.get("sensitivity"),
                changes=answer_tables.sensitivity_table(dataset, self.controls),
                positions=answer_tables.positions_table(dataset),
            ),
            probes=_probes_section(dataset, figures),
            mapping=MappingSection(
                agreement=tuple(agreement_matrices(dataset)),
                agreement_figure=figures.get("agreement"),
                gains=figures.get("gains"),
                table=layer_tables.mapping_table(dataset),
                lens=figures.get("lens"),
            ),
            attribution=AttributionSection(
                checks=figures.get("checks"),
                randomisation=figures.get("randomisation"),
                table=layer_tables.attribution_table(dataset),
            ),
        )


def _answers_section(dataset: DatasetRuns, figures: Mapping[str, Drawing]) -> AnswersSection:
    return AnswersSection(
        parsing=answer_tables.parsing_table(dataset),
        unparsed=answer_tables.unparsed_table(dataset),
        label_scores=answer_tables.label_scores_table(dataset),
        confusion=tuple(confusion_matrices(dataset)),
        confusion_figure=figures.get("confusion"),
        counts=finding_tables.counts_table(dataset),
        reliability=figures.get("reliability"),
        roc=figures.get("roc"),
        areas=answer_tables.roc_table(dataset),
    )


def _probes_section(dataset: DatasetRuns, figures: Mapping[str, Drawing]) -> ProbesSection:
    single_models = (
        (result.subject, figures.get(f"layers {index}")) for index, (result, _) in enumerate(dataset.probed())
    )
    return ProbesSection(
        modes=layer_tables.modes_table(dataset),
        diagnosis=layer_tables.diagnosis_table(dataset),
        several_models=figures.get("layers"),
        single_models=tuple(ModelCurves(subject, figure) for subject, figure in single_models if figure is not None),
        health=figures.get("health"),
        health_table=layer_tables.health_table(dataset),
        curves=layer_tables.curves_table(dataset),
    )
