"""Matrices of counts with the count in each cell: who is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.report.figures.figure_style import PAPER, grid
from medmllm_plugins.report.formatting import cut


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One matrix.

    Attributes:
        title: what stands above it.
        rows: names of the rows.
        columns: names of the columns.
        counts: (rows, columns).
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Floats


def matrices(shown: Sequence[Matrix], colour: str, *, across: str, down: str) -> Figure:
    """Draw matrices side by side, each cell shaded by its share of the row.

    Args:
        shown: at least one matrix.
        colour: of a cell that has the whole row.
        across: what the columns are.
        down: what the rows are.
    """
    cmap = LinearSegmentedColormap.from_list("cells", [PAPER, colour])
    side = max(2.6, 0.42 * max(len(one.rows) for one in shown) + 1.6)

    def draw(axes: Axes, place: int) -> None:
        one = shown[place]
        shares = one.counts / np.maximum(one.counts.sum(1, keepdims=True), 1)
        axes.pcolormesh(shares, cmap=cmap, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1)
        for (y, x), count in np.ndenumerate(one.counts):
            clear = legible(cmap(shares[y, x])[:3])
            axes.text(x + 0.5, y + 0.5, f"{int(count)}", ha="center", va="center", color=clear, fontsize=7.5)
        axes.set_xticks(
            np.arange(len(one.columns)) + 0.5, [cut(name, 16) for name in one.columns], rotation=40, ha="right"
        )
        axes.set_yticks(np.arange(len(one.rows)) + 0.5, [cut(name, 16) for name in one.rows])
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_title(cut(one.title, 32))
        axes.set_xlabel(across)
        axes.set_ylabel(down)

    return grid(len(shown), 3, draw, size=(side * 1.15, side))


def legible(back: tuple[float, float, float]) -> str:
    """Black or white, whichever is the clearer on a colour; its contrast is 4.58 or more on any.

    Args:
        back: red, green and blue from 0 to 1.
    """
    light = luminance(back)
    return "white" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "black"


def luminance(colour: tuple[float, float, float]) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2.2 defines it."""
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
