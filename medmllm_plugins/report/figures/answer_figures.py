"""Figures of the answers: metrics, confusion, reliability, ROC, and what other orders and words do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.intervals import Estimate, known
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.ranking import log_odds
from medmllm_plugins.report.figures.count_matrix import Matrix, matrices
from medmllm_plugins.report.figures.figure_style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Drawing,
    Marks,
    colour,
    dash,
    finish,
    grid,
    marker,
)
from medmllm_plugins.report.formatting import cut, percent
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.report.tables.answer_tables import Control, variant_accuracies
from medmllm_plugins.report.verdict import blind_baseline
from medmllm_plugins.utils.json_values import clean, mapping, number, sequence
from medmllm_plugins.utils.plain_text import listed

_MOST_CLASSES = 24
"""So many curves differ in colour and dashes."""
_BESIDE = 12
"""So many names of a legend stand below each other beside a panel."""
_HALVES = (0, 0.5, 1)


def accuracies(part: DataPart, figure_number: int) -> Drawing | None:
    """Accuracy and balanced accuracy of everyone with intervals, beside the blind baseline."""
    cells = mains(part, blind=True)
    if not cells:
        return None
    # Narrow, with the names above the rows: on a phone the whole scale is seen, and the text is large enough.
    figure = Figure(figsize=(3.9, 1.05 + 0.46 * len(cells)), layout="constrained")
    axes, marks = figure.subplots(), Marks()
    for row, cell in enumerate(cells):
        place = cell.subject.number
        name_of = axes.text(
            0.01,
            row - 0.3,
            cut(cell.subject.label, 48),
            transform=axes.get_yaxis_transform(),
            verticalalignment="center",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
        marks(place, name_of)
        for shift, name, face in ((0.02, "accuracy", colour(place)), (0.26, "balanced", PAPER)):
            found = cell.metrics.get(name)
            if not known(found) or found is None:
                continue
            label = {"accuracy": "accuracy", "balanced": "balanced accuracy"}[name] if row == 0 else None
            drawn = axes.errorbar(
                100 * found.value,
                row + shift,
                xerr=ends(found, 100),
                fmt=marker(place),
                color=colour(place),
                markerfacecolor=face,
                capsize=2,
                elinewidth=1.2,
                label=label,
            )
            marks(place, drawn.get_children())
    _blind_lines(axes, marks, cells, INK)
    axes.set_yticks([])
    axes.set_ylim(len(cells) - 0.5, -0.55)
    axes.set_xlim(0, 101)
    axes.set_xlabel("percent")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    told = [
        f"{cell.subject.label} {percent(cell.metrics['accuracy'].value)} (blind answer "
        f"{percent(blind_baseline(cell)[1])})"
        for cell in cells
    ]
    return finish(
        figure,
        f"{part.name}.accuracy",
        f"{part.title}: how good",
        "Filled: accuracy; open: balanced accuracy; bars: 95 % intervals from a bootstrap over groups. Dashed: what a "
        "blind answer reaches, for each row on its own where their questions differ.",
        f"Accuracy on {part.title}: {listed(told)}.",
        number=figure_number,
    )


def _blind_lines(axes: Axes, marks: Marks, cells: Sequence[Cell], tone: str) -> None:
    """What a blind answer reaches: one line where all rows agree, else a stroke for each row."""
    found = [blind_baseline(cell) for cell in cells]
    look: dict[str, Any] = {"color": tone, "linestyle": (0, (4, 3)), "linewidth": 1}
    if len(told := {one for one in found if one[0]}) == 1:
        ((name, value),) = told
        axes.axvline(100 * value, label=name.replace("_", " "), **look)
        return
    labels: set[str] = set()
    for place, (cell, (name, value)) in enumerate(zip(cells, found, strict=True)):
        if name:
            label = None if name in labels else name.replace("_", " ")
            labels.add(name)
            drawn = axes.plot([100 * value] * 2, [place - 0.45, place + 0.45], label=label, **look)
            marks(cell.subject.number, drawn)


def confusion(part: DataPart, figure_number: int) -> Drawing | None:
    """Confusion matrices for papers; the page shows them as tables."""
    found = [(cell, *matrix) for cell in mains(part) if (matrix := confusion_of(cell)) is not None]
    if not found:
        return None
    shown = [Matrix(cell.subject.label, rows, columns, counts) for cell, rows, columns, counts in found]
    figure = matrices(shown, SERIES[0], across="answered", down="true")
    told = [f"{cell.subject.label}, {int(np.trace(counts[:, : len(rows)]))} right" for cell, rows, _, counts in found]
    return finish(
        figure,
        f"{part.name}.confusion",
        f"{part.title}: confusion matrices",
        "Rows: true class; columns: answered class. Shade: share of the row.",
        f"Confusion matrices on {part.title}: {listed(told)}.",
        on_page=False,
        number=figure_number,
    )


def confusion_of(cell: Cell) -> tuple[list[str], list[str], Floats] | None:
    """Names of rows and columns and the counts of a cell, summed over variants; ``None`` without them."""
    told = cell.task.metrics
    sources = [told] if told.get("confusion") else list(mapping(told.get("variants")).values())
    total: Floats | None = None
    rows: list[str] = []
    columns: list[str] = []
    for one in sources:
        matrix = mapping(mapping(one).get("confusion"))
        rows, columns = ([clean(name) for name in sequence(matrix.get(key))] for key in ("rows", "columns"))
        try:
            counts = np.array(matrix.get("counts"), dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return None
        if counts.shape != (len(rows), len(columns)) or not rows or not _are_counts(counts):
            return None
        total = counts if total is None or total.shape != counts.shape else total + counts
    if total is None:
        return None
    # Of the answers that were not parsed only kinds that occur are worth a column.
    kept = [place for place in range(len(columns)) if place < len(rows) or total[:, place].any()]
    return rows, [*columns[: len(rows)], *(_kind(columns[place]) for place in kept[len(rows) :])], total[:, kept]


def _are_counts(found: Floats) -> bool:
    """Whether all are numbers of documents: JSON may hold ``null`` and ``Infinity`` in their place."""
    return bool(np.isfinite(found).all() and (found >= 0).all())


def _kind(name: str) -> str:
    """What an answer that was not parsed is called: ``(out_of_list)`` is ``out of list``."""
    return name.removeprefix("(").removesuffix(")").replace("_", " ")


def reliability(part: DataPart, figure_number: int) -> Drawing | None:
    """Reliability diagrams of the label scores, a panel a model."""
    found = [(cell, bins) for cell in mains(part) if (bins := _bins(cell))]
    if not found:
        return None

    def draw(axes: Axes, place: int) -> None:
        cell, bins = found[place]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        most = max(count for *_, count in bins)
        axes.bar(
            [confidence for confidence, _, _ in bins],
            [0.16 * count / most for *_, count in bins],
            width=0.045,
            color=MUTED,
            alpha=0.35,
        )
        axes.plot(
            [confidence for confidence, _, _ in bins],
            [right for _, right, _ in bins],
            color=colour(cell.subject.number),
            marker=marker(cell.subject.number),
        )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_xticks(_HALVES)
        axes.set_yticks(_HALVES)
        error = cell.metrics.get("ece")
        below = f"\ncalibration error {error.value:.3f}" if error is not None and known(error) else ""
        axes.set_title(cut(cell.subject.label, 26) + below)

    figure = grid(
        len(found),
        4 if len(found) > 4 else 3,
        draw,
        size=(2.5, 2.6),
        titles=("probability of the top class", "share that is right"),
        owners=[cell.subject.number for cell, _ in found],
    )
    told = [
        f"{cell.subject.label}, calibration error {cell.metrics['ece'].value:.3f}"
        for cell, _ in found
        if "ece" in cell.metrics
    ]
    return finish(
        figure,
        f"{part.name}.reliability",
        f"{part.title}: reliability",
        "On the dashed line, probabilities mean what they say; below it, the model is too sure. Grey bars: how many "
        "answers are in each bin.",
        f"Reliability diagrams of the label scores on {part.title}: {listed(told)}.",
        number=figure_number,
    )


def _bins(cell: Cell) -> list[tuple[float, float, int]]:
    told = [mapping(one) for one in sequence(cell.task.metrics.get("reliability"))]
    triples = [(number(one.get("confidence")), number(one.get("accuracy")), number(one.get("n"))) for one in told]
    return [(x, y, int(n)) for x, y, n in triples if known(x) and known(y) and n > 0]


def roc(part: DataPart, figure_number: int) -> Drawing | None:
    """ROC curves one class against the others, a panel a model."""
    found = [(cell, curves) for cell in mains(part) if (curves := roc_of(cell))]
    if not found:
        return None
    names = list(dict.fromkeys(name for _, curves in found for name, *_ in curves))
    shown = names[:_MOST_CLASSES]
    told_of: set[str] = set()
    varied = any(cell.task.varied for cell, _ in found)

    def draw(axes: Axes, place: int) -> None:
        cell, curves = found[place]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for name, x, y, _, _ in curves:
            if name not in shown:
                continue
            at = names.index(name)
            # Panels may have other classes: a name is in the legend from where it first appears.
            label = cut(name, 24) if name not in told_of else None
            told_of.add(name)
            axes.plot(x, y, color=colour(at), linestyle=dash(at), linewidth=1.4, label=label)
        axes.set_xlim(-0.01, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xticks(_HALVES)
        axes.set_yticks(_HALVES)
        areas = [area for *_, area, _ in curves]
        axes.set_title(f"{cut(cell.subject.label, 26)}\nmean area {sum(areas) / len(areas):.3f}")

    beside = len(found) < 3
    columns = -(-len(shown) // _BESIDE) if beside else 4
    figure = grid(
        len(found),
        4 if len(found) > 4 else 3,
        draw,
        size=(2.5 + (1.5 * columns / len(found) if beside else 0), 2.6),
        titles=("1 − specificity", "sensitivity"),
        owners=[cell.subject.number for cell, _ in found],
        below=0 if beside else 0.18 * -(-len(shown) // columns),
    )
    figure.legend(loc="outside right upper" if beside else "outside lower center", ncols=columns)
    told = [
        f"{cell.subject.label}, {listed([f'{name} {area:.3f}' for name, _, _, area, _ in curves])}"
        for cell, curves in found
    ]
    findings = any(one.finding for cell, _ in found for one in cell.task.outcomes)
    what = "Each finding, yes against no" if findings else "Each class against all others"
    left = (
        f" Drawn are the first {len(shown)} of {len(names)}, since more curves cannot be told apart; mean areas are "
        "over all, and the areas of all stand in the table."
        if len(names) > len(shown)
        else ""
    )
    return finish(
        figure,
        f"{part.name}.roc",
        f"{part.title}: ROC of each {'finding' if findings else 'class'}",
        f"{what}, ranked by the log-odds of its label score.{left}"
        + (" Where a task asks in several orders or wordings: the mean curve over these." if varied else ""),
        f"ROC curves on {part.title}, areas: {'; '.join(told)}.",
        number=figure_number,
    )


def roc_of(cell: Cell) -> list[tuple[str, Floats, Floats, float, int]]:
    """ROC of each class of a cell: name, 1 - specificity, sensitivity, area, number of positives.

    Of a multi-label set these are the findings; empty without label scores. Of a task that asks in several ways the
    curves are means over these, as its metrics are: scores under one order of the options do not rank against those
    under another.
    """
    if not cell.task.outcomes or any(one.scores is None for one in cell.task.outcomes):
        return []
    by_variant: dict[str, list[Outcome]] = {}
    for one in cell.task.outcomes:
        by_variant.setdefault(one.variant, []).append(one)
    each = [_rocs(cell, rows) for rows in by_variant.values()]
    names = dict.fromkeys(name for found in each for name in found)
    return [(name, *_mean_curve([found[name] for found in each if name in found])) for name in names]


def _rocs(cell: Cell, rows: Sequence[Outcome]) -> dict[str, tuple[Floats, Floats, int]]:
    """1 - specificity, sensitivity and number of positives of each class among rows that were asked in one way."""
    scores: dict[str, Floats] = {}
    positive: dict[str, np.ndarray] = {}
    if cell.multilabel:
        for finding in dict.fromkeys(clean(one.finding) for one in rows):
            mine = [one for one in rows if clean(one.finding) == finding]
            if {len(one.scores or ()) for one in mine} != {2}:
                return {}
            scores[finding] = log_odds(np.array([one.scores for one in mine], dtype=np.float64))[:, 0]
            positive[finding] = np.array([one.label == "yes" for one in mine])
    else:
        labels = cell.task.labels
        if {len(one.scores or ()) for one in rows} != {len(labels)} or len(labels) < 2:
            return {}
        odds = log_odds(np.array([one.scores for one in rows], dtype=np.float64))
        for place, label in enumerate(labels):
            scores[label] = odds[:, place]
            positive[label] = np.array([clean(one.label) == label for one in rows])
    return {name: curve for name in scores if (curve := _curve(scores[name], positive[name])) is not None}


def _curve(score: Floats, positive: np.ndarray) -> tuple[Floats, Floats, int] | None:
    """``None`` where there are no positives, or nothing else."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    ranked, hit = score[order], positive[order]
    # Equal scores make one step, or ties would be counted in our favour.
    ends_of_ties = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    y = np.concatenate([[0.0], np.cumsum(hit)[ends_of_ties] / hit.sum()])
    x = np.concatenate([[0.0], np.cumsum(~hit)[ends_of_ties] / (~hit).sum()])
    return x, y, int(positive.sum())


def _mean_curve(curves: Sequence[tuple[Floats, Floats, int]]) -> tuple[Floats, Floats, float, int]:
    """The mean sensitivity at each specificity, thinned; its area is the mean of the areas."""
    x, y, count = curves[0]
    if len(curves) > 1:
        places = np.unique(np.concatenate([one for one, _, _ in curves]))
        # A curve climbs where it stands still: it has two heights there, and both count.
        low, high = (
            np.mean([_height(one, other, places, side) for one, other, _ in curves], axis=0) for side in (0, 1)
        )
        x, y = np.repeat(places, 2), np.stack([low, high], axis=1).ravel()
    area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
    keep = np.ones(len(x), dtype=bool)
    # Inner points of a straight stretch say nothing and weigh.
    keep[1:-1] = ~((np.diff(x)[:-1] == 0) & (np.diff(x)[1:] == 0) | (np.diff(y)[:-1] == 0) & (np.diff(y)[1:] == 0))
    return x[keep], y[keep], area, count


def _height(x: Floats, y: Floats, places: Floats, side: int) -> Floats:
    """Height of a curve at places: where it climbs upright, at the foot (side 0) or at the top (side 1)."""
    found: Floats = np.interp(places, x, y)
    own = np.isin(places, x)
    at = np.searchsorted(x, places[own], "right" if side else "left") - side
    found[own] = y[at]
    return found


def sensitivity(part: DataPart, blind: Sequence[Control], figure_number: int) -> Drawing | None:
    """Accuracy under each order and wording, and under the blind controls, a line a task."""
    rows: list[tuple[Cell, str, list[Estimate]]] = []
    for cell in part.cells:
        if cell.task.scored and cell.task.varied and (each := variant_accuracies(cell)):
            what = "orders" if cell.task.varied == "order" else "wordings"
            rows.append((cell, f"{len(each)} {what}", list(each.values())))
    rows += [
        (control, f"image {control.task.image}", [control.metrics["accuracy"]])
        for control, *_ in blind
        if "accuracy" in control.metrics
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: row[0].subject.number)
    for more in (lambda cell: str(cell.task.told.get("protocol") or "closed_set"), lambda cell: cell.task.name):
        # What is done in two protocols is called the same: then these tell rows apart, or else the tasks' names.
        alike = Counter((cell.subject.number, what) for cell, what, _ in rows)
        rows = [
            (
                cell,
                f"{what}, {clean(more(cell)).replace('_', ' ')}" if alike[cell.subject.number, what] > 1 else what,
                one,
            )
            for cell, what, one in rows
        ]
    figure = Figure(figsize=(7.2, 1.1 + 0.32 * len(rows)), layout="constrained")
    axes, marks, labelled = figure.subplots(), Marks(), False
    for place, (cell, _, values) in enumerate(rows):
        at = cell.subject.number
        usual = part.held_against(cell)
        shown = usual.metrics.get("accuracy") if usual is not None else None
        if shown is not None and known(shown):
            label = None if labelled else "the same question as it is usually asked"
            labelled = True
            drawn = axes.plot(
                [100 * shown.value] * 2, [place - 0.34, place + 0.34], color=INK, linewidth=1.6, label=label
            )
            marks(at, drawn)
        blind_row = cell.task.image != "shown"
        for reached in values:
            drawn_values = axes.errorbar(
                100 * reached.value,
                place,
                xerr=ends(reached, 100) if len(values) == 1 else None,
                fmt=marker(at),
                color=colour(at),
                markerfacecolor=PAPER if blind_row else colour(at),
                capsize=2,
                alpha=1 if blind_row else 0.8,
            )
            marks(at, drawn_values.get_children())
    _blind_lines(axes, marks, [cell for cell, *_ in rows], MUTED)
    axes.set_yticks(range(len(rows)), [f"{cut(cell.subject.label, 30)}, {cut(what, 44)}" for cell, what, _ in rows])
    marks.names(axes, [cell.subject.number for cell, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.set_xlabel("accuracy, percent")
    axes.grid(visible=False, axis="y")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3)
    told = [f"{cell.subject.label}, {what}: {_range(values)}" for cell, what, values in rows]
    return finish(
        figure,
        f"{part.name}.sensitivity",
        f"{part.title}: other orders, other words, no image",
        "A dot for each order or wording; open: a blind control, where the image is grey or another group's. The "
        "upright stroke is the same question as it is usually asked, where that was run.",
        f"Accuracy on {part.title} under changed questions. {'; '.join(told)}.",
        number=figure_number,
    )


def _range(values: Sequence[Estimate]) -> str:
    known_values = [one.value for one in values if known(one)]
    if not known_values:
        return "not known"
    low, high = min(known_values), max(known_values)
    return percent(low) if low == high else f"{percent(low)} to {percent(high)}"


def ends(found: Estimate, scale: float = 1) -> list[list[float]] | None:
    """Lengths of an error bar below and above a value; ``None`` where there is no interval."""
    if math.isnan(found.low) or math.isnan(found.high):
        return None
    return [[scale * max(0.0, found.value - found.low)], [scale * max(0.0, found.high - found.value)]]


def mains(part: DataPart, *, blind: bool = False) -> list[Cell]:
    """The main cell of everyone on a data set, models first; classifiers that see nothing only where asked for."""
    found = [part.main(one) for one in part.subjects if blind or not one.blind]
    return [cell for cell in found if cell is not None and "accuracy" in cell.metrics]
