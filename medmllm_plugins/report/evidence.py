"""What the sections on models, probabilities and robustness show of one data set, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from medmllm_plugins.report.changed_questions import ChangedQuestion, changed_questions
from medmllm_plugins.report.figures import (
    accuracy_figure,
    referral_figure,
    reliability_figure,
    robustness_figures,
    roc_figure,
)
from medmllm_plugins.report.figures.figure_style import Drawing
from medmllm_plugins.report.model_comparison import ModelComparison, compare_models
from medmllm_plugins.report.probability_checks import ProbabilityCheck, probability_checks
from medmllm_plugins.report.run_collection import DatasetRuns
from medmllm_plugins.report.subgroups import Subgroups, subgroups
from medmllm_plugins.report.subjects import Subject
from medmllm_plugins.report.tables import answer_tables, probability_tables
from medmllm_plugins.report.tables.report_table import Table


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Models compared, checks of probabilities, changed questions and subgroups of one data set.

    Attributes:
        without_scores: models whose answers have no label scores, so that their probabilities cannot be checked.
    """

    comparison: ModelComparison
    checks: tuple[ProbabilityCheck, ...]
    without_scores: tuple[Subject, ...]
    changes: tuple[ChangedQuestion, ...]
    subgroups: Subgroups

    @property
    def class_figures(self) -> list[tuple[Subject, str]]:
        """Models whose classes have ROC curves of their own below the first panel, with the names of the figures."""
        checks = [check for check in self.checks if check.curves]
        if not checks or roc_figure.view_of(checks) == "classes":
            return []
        subjects = [check.result.subject for check in checks if len(check.curves) > 2]
        return [(subject, f"roc {subject.number}") for subject in subjects]

    def first_rows(self, table: Table) -> list[int]:
        """Return the rows of the table of ROC curves that are about the positive class of the data set."""
        positive = {check.result.subject.number: check.positive for check in self.checks}
        return [
            index
            for index, (row, number) in enumerate(zip(table.rows, table.series, strict=True))
            if row[1] == positive.get(number)
        ]

    def other_rows(self, table: Table) -> list[int]:
        """Return the other rows of the table of ROC curves; none for two classes, of which one mirrors the other."""
        first = set(self.first_rows(table))
        two = {check.result.subject.number for check in self.checks if check.positive and len(check.curves) == 2}
        return [index for index, number in enumerate(table.series) if index not in first and number not in two]


def collect_evidence(dataset: DatasetRuns, metrics: Table) -> Evidence:
    """Compute the evidence of a data set; ``metrics`` is its table of metrics."""
    checks = probability_checks(dataset)
    checked = {check.result.subject.number for check in checks}
    scored = [result for result in dataset.main_results() if "accuracy" in result.metrics]
    return Evidence(
        comparison=compare_models(dataset, metrics, answer_tables.metrics_results(dataset)),
        checks=tuple(checks),
        without_scores=tuple(result.subject for result in scored if result.subject.number not in checked),
        changes=tuple(changed_questions(dataset)),
        subgroups=subgroups(dataset),
    )


def evidence_tables(dataset: DatasetRuns, evidence: Evidence) -> dict[str, Table]:
    """Return the tables by name."""
    return {
        "calibration": probability_tables.calibration_table(dataset, evidence.checks),
        "roc": probability_tables.roc_table(dataset, evidence.checks),
        "sensitivity": answer_tables.sensitivity_table(dataset, evidence.changes),
        "subgroups": answer_tables.subgroups_table(dataset, evidence.subgroups),
    }


def evidence_figures(dataset: DatasetRuns, evidence: Evidence) -> dict[str, Callable[[int], Drawing | None]]:
    """Return the figures to draw, by name."""
    names = {name for _, name in evidence.class_figures}
    return {
        "reliability": partial(reliability_figure.reliability, dataset, evidence.checks),
        "roc": partial(roc_figure.roc, dataset, evidence.checks),
        "referral": partial(referral_figure.referrals, dataset, evidence.checks),
        "accuracy": partial(accuracy_figure.accuracies, dataset, evidence.comparison),
        "sensitivity": partial(robustness_figures.changed_question_figure, dataset, evidence.changes),
        "subgroups": partial(robustness_figures.subgroup_figure, dataset, evidence.subgroups),
        **{
            name: partial(roc_figure.roc_of_classes, dataset, check)
            for check in evidence.checks
            if (name := f"roc {check.result.subject.number}") in names
        },
    }
