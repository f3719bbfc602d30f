"""Sections of the page: the tables, figures and matrices of each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

from medmllm_plugins.report.answer.first_screen import Answer, build_answer
from medmllm_plugins.report.base_models import tuned_models
from medmllm_plugins.report.error_browser.browsed_answers import ErrorBrowser, error_browsers
from medmllm_plugins.report.evidence import Evidence, collect_evidence, evidence_figures, evidence_tables
from medmllm_plugins.report.figures import (
    answer_figures,
    attribution_figures,
    dot_strip,
    health_figure,
    intervention_figures,
    ladder,
    layer_figures,
    mapping_figures,
)
from medmllm_plugins.report.figures.count_matrix import CountMatrix, agreement_matrices, confusion_matrices
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.formatting import first_sentence
from medmllm_plugins.report.intervention_curves import intervention_evidence
from medmllm_plugins.report.ladders import Ladder, ladders
from medmllm_plugins.report.overview import overview
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.run_pairs import ImageControl, image_controls, model_differences
from medmllm_plugins.report.tables import (
    answer_tables,
    finding_tables,
    layer_tables,
    patch_tables,
    repair_tables,
    shortcut_tables,
)
from medmllm_plugins.report.tables.map_check_grid import CheckGrid, check_grid
from medmllm_plugins.report.tables.report_table import Table
from medmllm_plugins.report.verdict import Verdict, verdicts
from medmllm_plugins.results.report_records import DatasetRecord

FigureJob: TypeAlias = Callable[[int], Drawing | None]
"""Draws a figure, given its number on the page."""
FIGURES: Final[dict[str, Callable[[DatasetRuns, int], Drawing | None]]] = {
    "confusion": answer_figures.confusion,
    "agreement": mapping_figures.agreement,
    "gains": mapping_figures.gains,
    "checks": attribution_figures.checks,
    "health": health_figure.health,
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
_EVIDENCE: Final = (
    *("modes", "diagnosis", "stages", "anchors", "shortcuts", "masked", "nuisances", "twins", "patches", "interchange"),
    *("knockout", "steering", "interventions", "repairs", "transfers", "learning"),
)
"""Tables that stand behind the ladders."""


@dataclass(frozen=True, slots=True)
class DatasetSection:
    """All that the page says about one data set.

    Attributes:
        answer: what the first screen says.
        tables: all tables by name; one without rows is not shown.
        evidence: what the sections on models, probabilities and robustness show.
        confusion: true and answered classes.
        agreement: classes of the probe and answered classes.
        browsers: answers document by document, of the main results.
        map_checks: which checks the attribution maps pass.
        ladders: what is known of the class after each stage, for each model.
        figures: the figures by name, as far as there is something to draw; ``"layers 0"`` is of the first probed model,
            ``"ladder 0"`` the first ladder.
    """

    dataset: DatasetRuns
    answer: Answer
    sentence: str
    verdicts: Sequence[Verdict]
    tables: Mapping[str, Table]
    controls: Sequence[ImageControl]
    evidence: Evidence
    confusion: Sequence[CountMatrix]
    agreement: Sequence[CountMatrix]
    browsers: Sequence[ErrorBrowser]
    map_checks: CheckGrid
    ladders: Sequence[Ladder]
    figures: Mapping[str, Drawing] = field(default_factory=dict)

    def figure_jobs(self) -> dict[str, FigureJob]:
        """Return the figures to draw, by name; those that take longest come first."""
        return {
            **{
                f"layers {index}": partial(layer_figures.single_model, result, self.dataset)
                for index, (result, _) in enumerate(self.dataset.probed())
            },
            **{
                f"ladder {index}": partial(ladder.ladder, content, f"{self.dataset.name}.ladder.{index + 1}")
                for index, content in enumerate(self.ladders)
            },
            **{
                f"interventions {evidence.subject.number}": partial(
                    intervention_figures.interventions, evidence, self.dataset
                )
                for evidence in intervention_evidence(self.dataset)
            },
            **{name: partial(draw, self.dataset) for name, draw in FIGURES.items()},
            **evidence_figures(self.dataset, self.evidence),
            "strip": partial(dot_strip.dot_strip, self.dataset.name, self.dataset.title, self.answer.strip),
        }

    @property
    def filled_tables(self) -> list[Table]:
        """Tables with rows, each of which is a CSV file."""
        return [table for table in self.tables.values() if table.rows]

    @property
    def intervention_figures(self) -> list[tuple[int, Drawing]]:
        """Number of each model whose states were exchanged, and its figure."""
        numbers = [subject.number for subject in self.dataset.subjects]
        return [
            (number, self.figures[name]) for number in numbers if (name := f"interventions {number}") in self.figures
        ]

    @property
    def evidence_tables(self) -> list[Table]:
        """Tables behind the ladders; that which compares models is left out if there is one."""
        tables = [self.tables[name] for name in _EVIDENCE]
        return [table for table in tables if len(table.rows) > (table is self.tables["modes"])]

    @property
    def layer_charts(self) -> list[tuple[Ladder, Drawing]]:
        """The layer chart of each probed task with the ladder that leads to it."""
        pairs = ((content, self.figures.get(f"layers {index}")) for index, content in enumerate(self.ladders))
        return [(content, drawing) for content, drawing in pairs if content.chart and drawing is not None]

    @property
    def ladder_figures(self) -> list[tuple[Ladder, Drawing | None]]:
        """Each ladder with its figure."""
        return [(content, self.figures.get(f"ladder {index}")) for index, content in enumerate(self.ladders)]

    @property
    def shortcut_warnings(self) -> list[str]:
        """First sentence of each warning of shortcuts and nuisance; the appendix has them whole."""
        reports = [probing.shortcuts for _, probing in self.dataset.probed() if probing.shortcuts is not None]
        return list(dict.fromkeys(first_sentence(warning) for report in reports for warning in report.warnings))

    def record(self) -> DatasetRecord:
        """Return the section as ``report.json`` has it; answers that could not be parsed are left out as too long."""
        unparsed = self.tables["unparsed"]
        return DatasetRecord(
            dataset=self.dataset.name,
            title=self.dataset.title,
            headline=self.answer.headline,
            trust=tuple(chip.record() for chip in self.answer.chips),
            next_steps=tuple(step.record() for step in self.answer.steps),
            sentence=self.sentence,
            verdicts=tuple(verdict.record() for verdict in self.verdicts),
            tables={table.stem: table.record() for table in self.filled_tables if table is not unparsed},
        )


def build_section(dataset: DatasetRuns) -> DatasetSection:
    """Build the section of a data set, without its figures."""
    pairs, controls = model_differences(dataset), image_controls(dataset)
    judged = verdicts(dataset)
    metrics = answer_tables.metrics_table(dataset, judged)
    evidence = collect_evidence(dataset, metrics)
    return DatasetSection(
        dataset=dataset,
        answer=build_answer(dataset, judged, pairs, controls),
        sentence=overview(dataset, judged, pairs),
        verdicts=judged,
        tables={
            "metrics": metrics,
            "differences": answer_tables.differences_table(dataset, pairs),
            "bases": answer_tables.bases_table(dataset, tuned_models(dataset, pairs)),
            **evidence_tables(dataset, evidence),
            **{name: tabulate(dataset) for name, tabulate in _TABLES.items()},
        },
        controls=controls,
        evidence=evidence,
        confusion=confusion_matrices(dataset),
        agreement=agreement_matrices(dataset),
        browsers=error_browsers(dataset),
        map_checks=check_grid(dataset),
        ladders=ladders(dataset, judged),
    )
