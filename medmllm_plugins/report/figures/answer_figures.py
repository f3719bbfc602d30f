"""Confusion matrices as files for papers."""

from __future__ import annotations

from medmllm_plugins.report.figures.count_matrix import confusion_matrices, draw_matrices
from medmllm_plugins.report.figures.figure_style import SERIES, Drawing, finish
from medmllm_plugins.report.run_collection import DatasetRuns


def confusion(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw confusion matrices for papers; the page shows them as tables."""
    matrices = confusion_matrices(dataset)
    if not matrices:
        return None
    figure = draw_matrices(matrices, SERIES[0], column_axis="answered class", row_axis="true class")
    stem = f"{dataset.name}.confusion"
    return finish(figure, stem, number=figure_number, on_page=False, data_set=dataset.title, matrices=matrices)
