"""Sections of the page: the tables, figures and matrices of each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

from medmllm_plugins.report.base_models import tuned_models
from medmllm_plugins.report.figures import (
    answer_figures,
    attribution_figures,
    intervention_figures,
    layer_figures,
    mapping_figures,
)
from medmllm_plugins.report.figures.count_matrix import CountMatrix, agreement_matrices, confusion_matrices
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.overview import overview
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.run_pairs import ImageControl, image_controls, model_differences
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.tables import (
    answer_tables,
    finding_tables,
    layer_tables,
    patch_tables,
    repair_tables,
    shortcut_tables,
)
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.verdict import Verdict, verdicts

FigureJob: TypeAlias = Callable[[int], Drawing | None]
"""Draws a figure, given its number on the page."""
FIGURES: Final[dict[str, Callable[[DatasetRuns, int], Drawing | None]]] = {
    "confusion": answer_figures.confusion,
    "agreement": mapping_figures.agreement,
    "reliability": answer_figures.reliability,
    "roc": answer_figures.roc,
    "gains": mapping_figures.gains,
    "checks": attribution_figures.checks,
    "layers": layer_figures.several_models,
    "accuracy": answer_figures.accuracies,
    "health": layer_figures.health,
    "interventions": intervention_figures.interventions,
    "lens": mapping_figures.lens,
    "randomisation": attribution_figures.randomisation,
}
"""Figures of a data set by name; those that take longest come first."""
_TABLES: Final[Mapping[str, Callable[[DatasetRuns], Table]]] = {
    "classes": answer_tables.class_table,
    "findings": finding_tables.findings_table,
    "parsing": answer_tables.parsing_table,
    "unparsed": answer_tables.unparsed_table,
    "label_scores": answer_tables.label_scores_table,
    "finding_counts": finding_tables.counts_table,
    "roc": answer_tables.roc_table,
    "positions": answer_tables.positions_table,
    "modes": layer_tables.modes_table,
    "diagnosis": layer_tables.diagnosis_table,
    "stages": layer_tables.stages_table,
    "anchors": layer_tables.anchors_table,
    "shortcuts": shortcut_tables.shortcuts_table,
    "masked": shortcut_tables.masked_table,
    "nuisances": shortcut_tables.nuisances_table,
    "twins": patch_tables.twins_table,
    "patches": patch_tables.patches_table,
    "interchange": patch_tables.interchange_table,
    "knockout": patch_tables.knockout_table,
    "steering": patch_tables.steering_table,
    "interventions": patch_tables.interventions_table,
    "repairs": repair_tables.repairs_table,
    "transfers": repair_tables.transfers_table,
    "learning": repair_tables.learning_table,
    "health": layer_tables.health_table,
    "curves": layer_tables.curves_table,
    "mapping": layer_tables.mapping_table,
    "attributions": layer_tables.attribution_table,
}


@dataclass(frozen=True, slots=True)
class DatasetSection:
    """All that the page says about one data set.

    Attributes:
        tables: all tables by name; one without rows is not shown.
        confusion: true and answered classes.
        agreement: classes of the probe and answered classes.
        figures: the figures by name, as far as there is something to draw; ``"layers 0"`` is of the first probed model.
    """

    dataset: DatasetRuns
    sentence: str
    verdicts: Sequence[Verdict]
    tables: Mapping[str, Table]
    controls: Sequence[ImageControl]
    confusion: Sequence[CountMatrix]
    agreement: Sequence[CountMatrix]
    figures: Mapping[str, Drawing] = field(default_factory=dict)

    def figure_jobs(self) -> dict[str, FigureJob]:
        """Return the figures to draw, by name; those that take longest come first."""
        return {
            **{
                f"layers {index}": partial(layer_figures.single_model, result, self.dataset)
                for index, (result, _) in enumerate(self.dataset.probed())
            },
            **{name: partial(draw, self.dataset) for name, draw in FIGURES.items()},
            "sensitivity": partial(answer_figures.sensitivity, self.dataset, self.controls),
        }

    @property
    def filled_tables(self) -> list[Table]:
        """Tables with rows, each of which is a CSV file."""
        return [table for table in self.tables.values() if table.rows]

    @property
    def layer_figures(self) -> list[tuple[Subject, Drawing]]:
        """Layer curves of each probed model."""
        subjects = {f"layers {index}": result.subject for index, (result, _) in enumerate(self.dataset.probed())}
        return [(subject, self.figures[name]) for name, subject in subjects.items() if name in self.figures]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; answers that could not be parsed are left out, since they may be long."""
        unparsed = self.tables["unparsed"]
        return {
            "dataset": self.dataset.name,
            "title": self.dataset.title,
            "sentence": self.sentence,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "tables": {table.stem: table.to_dict() for table in self.filled_tables if table is not unparsed},
        }


def build_section(dataset: DatasetRuns) -> DatasetSection:
    """Build the section of a data set, without its figures."""
    pairs, controls = model_differences(dataset), image_controls(dataset)
    judged = verdicts(dataset)
    return DatasetSection(
        dataset=dataset,
        sentence=overview(dataset, judged, pairs),
        verdicts=judged,
        tables={
            "metrics": answer_tables.metrics_table(dataset, judged),
            "differences": answer_tables.differences_table(dataset, pairs),
            "bases": answer_tables.bases_table(dataset, tuned_models(dataset, pairs)),
            "sensitivity": answer_tables.sensitivity_table(dataset, controls),
            **{name: tabulate(dataset) for name, tabulate in _TABLES.items()},
        },
        controls=controls,
        confusion=confusion_matrices(dataset),
        agreement=agreement_matrices(dataset),
    )
