"""How attributions stood their checks: against random order, noise, masks and random weights."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.figures.answer_figures import ends
from medmllm_plugins.report.figures.figure_style import INK, MUTED, Drawing, Marks, colour, dash, finish, marker
from medmllm_plugins.report.formatting import cut, decimal
from medmllm_plugins.report.run_collection import Cell, DataPart
from medmllm_plugins.results.attribution_results import GAINS, MethodSummary
from medmllm_plugins.utils.plain_text import listed


def checks(part: DataPart, figure_number: int) -> Drawing | None:
    """Figures of every method and layer, a panel a check."""
    rows = _rows(part)
    names = [name for name in GAINS if any(known(one.figures[name]) for _, one in rows)]
    if not rows or not names:
        return None
    across = min(3, len(names))
    lines = -(-len(names) // across)
    figure = Figure(figsize=(7.6, lines * (0.9 + 0.26 * len(rows)) + 0.3), layout="constrained")
    panels = figure.subplots(lines, across, squeeze=False, sharey=True)
    marks = Marks()
    for axes, name in zip(panels.flat, names, strict=False):
        for place, (cell, one) in enumerate(rows):
            found = one.figures[name]
            if not known(found):
                continue
            at = cell.subject.number
            drawn = axes.errorbar(
                found.value, place, xerr=ends(found), fmt=marker(at), color=colour(at), capsize=2, elinewidth=1.1
            )
            marks(at, drawn.get_children())
            if name == "inside" and known(one.area):
                marks(at, axes.plot([one.area] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.4))
        if name.endswith("_gain"):
            axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set_title(GAINS[name].replace(" over ", "\nover ").replace(" under ", "\nunder "), fontsize=8.5)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    several = _several(rows)
    panels[0][0].set_yticks(
        range(len(rows)),
        [_row_name(cell, one, several) for cell, one in rows],
    )
    for axes in panels[:, 0]:  # the names stand at the first of each line
        marks.names(axes, [cell.subject.number for cell, _ in rows])
    told = [f"{_said(one)}: {len(one.failed)} checks failed" for _, one in rows]
    return finish(
        figure,
        f"{part.name}.checks",
        f"{part.title}: how the attributions stood their checks",
        "Bars: 95 % intervals. Above zero, deletion and insertion are better than in random order. Upright stroke: the "
        "share of the picture that the mask takes, which mass inside it must beat.",
        f"Checks of attributions on {part.title}: {listed(told)}.",
        number=figure_number,
    )


def randomisation(part: DataPart, figure_number: int) -> Drawing | None:
    """How like an attribution stays while the model's weights are made random from the head down."""
    rows = [(cell, one) for cell, one in _rows(part) if one.randomisation]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 2.9 + 0.1 * len(rows)), layout="constrained")
    axes, marks = figure.subplots(), Marks()
    several = _several(rows)
    names = list(dict.fromkeys(name for _, one in rows for name, _ in one.randomisation))
    for turn, (cell, one) in enumerate(rows):
        places = [names.index(name) for name, _ in one.randomisation]
        drawn = axes.plot(
            places,
            [value for _, value in one.randomisation],
            color=colour(turn),
            linestyle=dash(turn),
            marker=marker(turn),
            label=_row_name(cell, one, several),
        )
        marks(cell.subject.number, drawn)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set_xticks(range(len(names)), [cut(name, 18) for name in names], rotation=30, ha="right")
    axes.set_ylabel("similarity to the original")
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.05)
    marks.legend(figure, axes)
    told = [f"{_said(one)} ends at {decimal(one.randomisation[-1][1])}" for _, one in rows]
    return finish(
        figure,
        f"{part.name}.randomisation",
        f"{part.title}: attributions while weights become random",
        "An attribution that stays alike although the model has lost its weights shows the picture, not the model.",
        f"Similarity of attributions under random weights on {part.title}: {listed(told)}.",
        number=figure_number,
    )


def _several(rows: Sequence[tuple[Cell, MethodSummary]]) -> bool:
    return len({cell.subject.number for cell, _ in rows}) > 1


def _row_name(cell: Cell, one: MethodSummary, several: bool) -> str:
    """A method and its layer, and the model where there are several."""
    parts = [cut(one.method, 22), one.layer, one.apart, cut(cell.subject.label, 18) if several else ""]
    return " · ".join(filter(None, parts))


def _said(one: MethodSummary) -> str:
    return f"{one.method} at {one.layer}{f' ({one.apart})' if one.apart else ''}"


def _rows(part: DataPart) -> list[tuple[Cell, MethodSummary]]:
    return [
        (cell, one)
        for cell in part.cells
        if cell.task.attributions is not None
        for one in cell.task.attributions.summary
    ]
