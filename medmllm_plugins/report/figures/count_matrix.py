"""Matrices of counts: confusion matrices, and the class of a probe against the answered class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.summary import ConfusionMatrix, Summary
from medmllm_plugins.report.figures.figure_style import PAPER, panel_grid
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult


@dataclass(frozen=True, slots=True, eq=False)
class CountMatrix:
    """A matrix of counts of one model.

    Attributes:
        columns: names of the columns; the first are those of the rows.
        counts: (rows, columns) numbers of documents.
    """

    result: TaskResult
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Floats

    @property
    def shares(self) -> Floats:
        """Share of each row, (rows, columns)."""
        shares: Floats = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        return shares

    @property
    def agreeing(self) -> float:
        """Number of documents on the diagonal."""
        return float(np.trace(self.counts[:, : len(self.rows)]))

    def shaded_rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Return name, counts and percent of each row, for the page."""
        return [
            (name, [(int(count), round(100 * float(share), 1)) for count, share in zip(counts, shares, strict=True)])
            for name, counts, shares in zip(self.rows, self.counts, self.shares, strict=True)
        ]


def confusion_matrices(dataset: DatasetRuns) -> list[CountMatrix]:
    """Return the confusion matrix of each main result that has one: true class by answered class."""
    results = [result for result in dataset.main_results() if "accuracy" in result.metrics]
    return [matrix for result in results if (matrix := confusion_matrix(result)) is not None]


def confusion_matrix(result: TaskResult) -> CountMatrix | None:
    """Return the confusion matrix of a result, summed over variants; ``None`` without one."""
    total: Floats | None = None
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    for source in result.task.sources.values():
        if not isinstance(source, Summary):
            return None
        rows, columns = source.confusion.rows, source.confusion.columns
        counts = _counts(source.confusion)
        if counts is None or not rows:
            return None
        total = counts if total is None or total.shape != counts.shape else total + counts
    if total is None:
        return None
    # Kinds of unparsed answers get a column only if they occur.
    used = [index for index in range(len(rows), len(columns)) if total[:, index].any()]
    names = [columns[index].removeprefix("(").removesuffix(")").replace("_", " ") for index in used]
    columns_shown = [*range(min(len(rows), len(columns))), *used]
    return CountMatrix(result, list(rows), [*columns[: len(rows)], *names], total[:, columns_shown])


def _counts(matrix: ConfusionMatrix) -> Floats | None:
    """Return the counts of a matrix; ``None`` unless all are numbers of documents, as in a file that was damaged."""
    if [len(row) for row in matrix.counts] != [len(matrix.columns)] * len(matrix.rows):
        return None
    counts = np.array(matrix.counts, dtype=np.float64)
    return counts if (counts >= 0).all() else None


def agreement_matrices(dataset: DatasetRuns) -> list[CountMatrix]:
    """Return the probe's class by the answered class, for each result with a semantic mapping."""
    matrices = []
    for result, record in dataset.mapped():
        counts = np.array(record.pairs(), dtype=np.float64)
        labels = list(result.task.probing.labels) if result.task.probing else []
        if counts.ndim == 2 and counts.shape == (len(labels), len(labels) + 1):
            if counts[:, -1].any():
                matrices.append(CountMatrix(result, labels, [*labels, "not parsed"], counts))
            else:
                matrices.append(CountMatrix(result, labels, labels, counts[:, :-1]))
    return matrices


def draw_matrices(matrices: Sequence[CountMatrix], colour: str, *, column_axis: str, row_axis: str) -> Figure:
    """Draw matrices side by side, each cell shaded by its share of the row.

    Args:
        matrices: at least one.
        colour: colour of a cell with all documents of its row.
        column_axis: what the columns are.
        row_axis: what the rows are.
    """
    cmap = LinearSegmentedColormap.from_list("cells", [PAPER, colour])
    side = max(2.6, 0.42 * max(len(matrix.rows) for matrix in matrices) + 1.6)

    def draw(axes: Axes, index: int) -> None:
        matrix = matrices[index]
        shares = matrix.shares
        axes.pcolormesh(shares, cmap=cmap, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1)
        for (y, x), count in np.ndenumerate(matrix.counts):
            red, green, blue = cmap(shares[y, x])[:3]
            tone = legible((red, green, blue))
            axes.text(x + 0.5, y + 0.5, f"{int(count)}", ha="center", va="center", color=tone, fontsize=7.5)
        columns, rows = ([cut(name, 16) for name in names] for names in (matrix.columns, matrix.rows))
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right")
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_title(cut(matrix.result.subject.label, 32))
        axes.set_xlabel(column_axis)
        axes.set_ylabel(row_axis)

    return panel_grid(len(matrices), 3, draw, size=(side * 1.15, side))


def legible(background: tuple[float, float, float]) -> str:
    """Return black or white, whichever has more contrast on a colour; the contrast is at least 4.58."""
    light = luminance(background)
    return "white" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "black"


def luminance(colour: tuple[float, float, float]) -> float:
    """Return the relative luminance of an sRGB colour, as WCAG 2.2 defines it."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
