"""Figures of the answers: accuracy, confusion, reliability, ROC, and dependence on order, wording and image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.report.figures.count_matrix import confusion_matrices, draw_matrices
from medmllm_plugins.report.figures.figure_style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    SeriesMarks,
    error_bar,
    finish,
    panel_grid,
    series_style,
)
from medmllm_plugins.report.formatting import cut
from medmllm_plugins.report.roc_curves import roc_curves
from medmllm_plugins.report.run_collection import DatasetRuns, TaskResult
from medmllm_plugins.report.run_pairs import ImageControl
from medmllm_plugins.report.tables.answer_tables import variant_accuracies
from medmllm_plugins.utils.json_values import clean

_MAX_CURVES = 24
"""Number of curves that differ in colour and dashes."""
_LEGEND_ROWS = 12
"""Number of names below each other in a legend next to a panel."""
_HALVES = (0, 0.5, 1)
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 3))}
_GUESS_LABELS = {"majority_class": "most common class", "always_no": "always no"}


def _main_results(dataset: DatasetRuns, *, blind: bool = False) -> list[TaskResult]:
    return [result for result in dataset.main_results(blind=blind) if "accuracy" in result.metrics]


def accuracies(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw accuracy and balanced accuracy of all subjects with intervals, and the accuracy of guessing."""
    results = _main_results(dataset, blind=True)
    if not results:
        return None
    # Narrow, with names above the rows: a phone shows the whole scale, and the text is large enough.
    figure = Figure(figsize=(3.9, 1.05 + 0.46 * len(results)), layout="constrained")
    axes, marks = figure.subplots(), SeriesMarks()
    for row, result in enumerate(results):
        series = result.subject.number
        name = axes.text(
            0.01,
            row - 0.3,
            cut(result.subject.label, 48),
            transform=axes.get_yaxis_transform(),
            verticalalignment="center",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
        marks(series, name)
        colour, sign = series_style(series)["color"], series_style(series)["marker"]
        for shift, key, label, face in (
            (0.02, "accuracy", "accuracy", colour),
            (0.26, "balanced", "balanced accuracy", PAPER),
        ):
            estimate = result.metrics.get(key)
            if estimate is not None and known(estimate):
                options = {"fmt": sign, "color": colour, "markerfacecolor": face, "elinewidth": 1.2}
                bar = error_bar(axes, estimate, row + shift, label=None if row else label, **options)
                marks(series, bar.get_children())
    _guess_lines(axes, marks, results, INK)
    axes.set_yticks([])
    axes.set_ylim(len(results) - 0.5, -0.55)
    axes.set_xlim(0, 101)
    axes.set_xlabel("percent")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    rows = [(result.subject.label, result.metrics["accuracy"].value, result.guess[1]) for result in results]
    return finish(figure, f"{dataset.name}.accuracy", number=figure_number, data_set=dataset.title, rows=rows)


def _guess_lines(axes: Axes, marks: SeriesMarks, results: Sequence[TaskResult], colour: str) -> None:
    """Draw the accuracy of guessing: one line if it is the same for all rows, else a stroke for each row."""
    guesses = [result.guess for result in results]
    options = {"color": colour, "linewidth": 1, **_DASHED}
    if len(different := {guess for guess in guesses if guess[0]}) == 1:
        ((name, value),) = different
        axes.axvline(100 * value, label=_GUESS_LABELS[name], **options)
        return
    labelled: set[str] = set()
    for row, (result, (name, value)) in enumerate(zip(results, guesses, strict=True)):
        if name:
            label = None if name in labelled else _GUESS_LABELS[name]
            labelled.add(name)
            line = axes.plot([100 * value] * 2, [row - 0.45, row + 0.45], label=label, **options)
            marks(result.subject.number, line)


def confusion(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw confusion matrices for papers; the page shows them as tables."""
    matrices = confusion_matrices(dataset)
    if not matrices:
        return None
    figure = draw_matrices(matrices, SERIES[0], column_axis="answered class", row_axis="true class")
    stem = f"{dataset.name}.confusion"
    return finish(figure, stem, number=figure_number, on_page=False, data_set=dataset.title, matrices=matrices)


def reliability(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw reliability diagrams of the label scores, one panel per model."""
    results = [(result, bins) for result in _main_results(dataset) if (bins := _bins(result))]
    if not results:
        return None

    def draw(axes: Axes, index: int) -> None:
        result, bins = results[index]
        confidences = [confidence for confidence, _, _ in bins]
        most = max(count for *_, count in bins)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, **_DASHED)
        axes.bar(confidences, [0.16 * count / most for *_, count in bins], width=0.045, color=MUTED, alpha=0.35)
        line = {name: value for name, value in series_style(result.subject.number).items() if name != "linestyle"}
        axes.plot(confidences, [correct for _, correct, _ in bins], **line)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_xticks(_HALVES)
        axes.set_yticks(_HALVES)
        error = result.metrics.get("ece")
        below = f"\ncalibration error {error.value:.3f}" if error is not None and known(error) else ""
        axes.set_title(cut(result.subject.label, 26) + below)

    figure = panel_grid(
        len(results),
        4 if len(results) > 4 else 3,
        draw,
        size=(2.5, 2.6),
        titles=("probability of the top class", "share that is correct"),
        owners=[result.subject.number for result, _ in results],
    )
    errors = [(result.subject.label, result.metrics["ece"].value) for result, _ in results if "ece" in result.metrics]
    return finish(figure, f"{dataset.name}.reliability", number=figure_number, data_set=dataset.title, errors=errors)


def _bins(result: TaskResult) -> list[tuple[float, float, int]]:
    """Return confidence, accuracy and count of each bin with answers."""
    summary = result.task.summary
    bins = summary.reliability if isinstance(summary, Summary) else ()
    values = [(bin_.confidence, bin_.accuracy, bin_.n) for bin_ in bins]
    return [(x, y, count) for x, y, count in values if x is not None and y is not None and count > 0]


def roc(dataset: DatasetRuns, figure_number: int) -> Drawing | None:
    """Draw ROC curves of each class against the others, one panel per model."""
    results = [(result, curves) for result in _main_results(dataset) if (curves := roc_curves(result))]
    if not results:
        return None
    names = list(dict.fromkeys(curve.name for _, curves in results for curve in curves))
    shown = names[:_MAX_CURVES]
    labelled: set[str] = set()

    def draw(axes: Axes, index: int) -> None:
        result, curves = results[index]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, **_DASHED)
        for curve in curves:
            if curve.name in shown:
                # Panels may have different classes: a name is in the legend where it first appears.
                label = cut(curve.name, 24) if curve.name not in labelled else None
                labelled.add(curve.name)
                line = series_style(names.index(curve.name)) | {"marker": None}
                axes.plot(curve.x, curve.y, linewidth=1.4, label=label, **line)
        axes.set_xlim(-0.01, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xticks(_HALVES)
        axes.set_yticks(_HALVES)
        mean_area = sum(curve.area for curve in curves) / len(curves)
        axes.set_title(f"{cut(result.subject.label, 26)}\nmean area {mean_area:.3f}")

    next_to_panels = len(results) < 3
    columns = -(-len(shown) // _LEGEND_ROWS) if next_to_panels else 4
    figure = panel_grid(
        len(results),
        4 if len(results) > 4 else 3,
        draw,
        size=(2.5 + (1.5 * columns / len(results) if next_to_panels else 0), 2.6),
        titles=("1 − specificity", "sensitivity"),
        owners=[result.subject.number for result, _ in results],
        below=0 if next_to_panels else 0.18 * -(-len(shown) // columns),
    )
    figure.legend(loc="outside right upper" if next_to_panels else "outside lower center", ncols=columns)
    return finish(
        figure,
        f"{dataset.name}.roc",
        number=figure_number,
        data_set=dataset.title,
        models=[(result.subject.label, curves) for result, curves in results],
        findings=any(outcome.finding for result, _ in results for outcome in result.task.outcomes),
        varied=any(result.task.varied for result, _ in results),
        shown=len(shown),
        total=len(names),
    )


def sensitivity(dataset: DatasetRuns, controls: Sequence[ImageControl], figure_number: int) -> Drawing | None:
    """Draw accuracy under each order and wording, and without the real image, one row per task."""
    rows = _sensitivity_rows(dataset, controls)
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 1.1 + 0.32 * len(rows)), layout="constrained")
    axes, marks, labelled = figure.subplots(), SeriesMarks(), False
    for row, (result, _, values) in enumerate(rows):
        series = result.subject.number
        usual = dataset.counterpart(result)
        shown = usual.metrics.get("accuracy") if usual is not None else None
        if shown is not None and known(shown):
            label = None if labelled else "the same question as it is usually asked"
            labelled = True
            ends = [row - 0.34, row + 0.34]
            marks(series, axes.plot([100 * shown.value] * 2, ends, color=INK, linewidth=1.6, label=label))
        control, line = result.task.image != "shown", series_style(series)
        for value in values:
            estimate = value if len(values) == 1 else Estimate(value.value, float("nan"), float("nan"))
            face = PAPER if control else line["color"]
            options = {"fmt": line["marker"], "color": line["color"], "markerfacecolor": face}
            marks(series, error_bar(axes, estimate, row, alpha=1 if control else 0.8, **options).get_children())
    _guess_lines(axes, marks, [result for result, *_ in rows], MUTED)
    labels = [f"{cut(result.subject.label, 30)}, {cut(what, 44)}" for result, what, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    marks.row_names(axes, [result.subject.number for result, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.set_xlabel("accuracy, percent")
    axes.grid(visible=False, axis="y")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3)
    ranges = [
        (result.subject.label, what, [value.value for value in values if known(value)]) for result, what, values in rows
    ]
    stem = f"{dataset.name}.sensitivity"
    return finish(figure, stem, number=figure_number, data_set=dataset.title, rows=ranges)


def _sensitivity_rows(
    dataset: DatasetRuns, controls: Sequence[ImageControl]
) -> list[tuple[TaskResult, str, list[Estimate]]]:
    """Return the tasks, what they change, and the accuracy of each variant."""
    rows: list[tuple[TaskResult, str, list[Estimate]]] = []
    for result in dataset.results:
        if result.task.scored and result.task.varied and (variants := variant_accuracies(result)):
            what = "orders" if result.task.varied == "order" else "wordings"
            rows.append((result, f"{len(variants)} {what}", list(variants.values())))
    for control in controls:
        if "accuracy" in control.result.metrics:
            accuracy = control.result.metrics["accuracy"]
            rows.append((control.result, f"image {control.result.task.image}", [accuracy]))
    rows.sort(key=lambda row: row[0].subject.number)
    for attribute in ("protocol", "name"):
        # Rows with the same description get their protocol, or else the task's name.
        counts = Counter((result.subject.number, what) for result, what, _ in rows)
        for index, (result, what, values) in enumerate(rows):
            if counts[result.subject.number, what] > 1:
                more = result.task.settings.protocol if attribute == "protocol" else result.task.name
                rows[index] = (result, f"{what}, {clean(more).replace('_', ' ')}", values)
    return rows
