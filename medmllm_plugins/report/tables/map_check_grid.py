"""Which checks the attribution maps pass: methods and layers by checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report.display_names import MAP_CHECKS
from medmllm_plugins.report.formatting import decimal, percent
from medmllm_plugins.report.run_collection import AttributionRow, DatasetRuns
from medmllm_plugins.results.attribution_verdicts import CheckVerdict, check_verdicts

ICONS: Final[dict[CheckVerdict, str]] = {"pass": "✓", "fail": "✗", "not made": "○", "does not apply": "–"}
_SHARES: Final = ("completeness", "lesion")
"""Checks whose figure is a share."""


@dataclass(frozen=True, slots=True)
class CheckCell:
    """The verdict of one check, an icon for it, and the figure behind it; an empty text without one."""

    verdict: CheckVerdict
    icon: str
    figure: str


@dataclass(frozen=True, slots=True, eq=False)
class CheckRow:
    """One method at one layer, with a cell for each check."""

    row: AttributionRow
    cells: tuple[CheckCell, ...]

    @property
    def passed(self) -> int:
        """Number of checks that were passed."""
        return sum(cell.verdict == "pass" for cell in self.cells)

    @property
    def made(self) -> int:
        """Number of checks that were made."""
        return sum(cell.verdict in ("pass", "fail") for cell in self.cells)


@dataclass(frozen=True, slots=True)
class CheckGrid:
    """The checks of all methods of a data set.

    Attributes:
        columns: name and description of each check.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[CheckRow]


def check_grid(dataset: DatasetRuns) -> CheckGrid:
    """Return which checks each method passes at each layer; checks that apply to none are left out."""
    rows = dataset.attribution_summaries()
    verdicts = [check_verdicts(row.summary) for row in rows]
    names = [name for name in MAP_CHECKS if any(checks[name][0] != "does not apply" for checks in verdicts)]
    return CheckGrid(
        [MAP_CHECKS[name] for name in names],
        [
            CheckRow(row, tuple(_cell(name, *checks[name]) for name in names))
            for row, checks in zip(rows, verdicts, strict=True)
        ],
    )


def _cell(name: str, verdict: CheckVerdict, value: float) -> CheckCell:
    signed = name in ("deletion", "insertion")
    figure = percent(value) if name in _SHARES else decimal(value, signed=signed)
    return CheckCell(verdict, ICONS[verdict], figure if known(value) else "")
