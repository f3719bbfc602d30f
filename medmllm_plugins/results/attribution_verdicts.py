"""Which checks an attribution method passes at a layer: thresholds, and the verdict on each check."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.results.attribution_records import AttributionSummary

CheckVerdict: TypeAlias = Literal["pass", "fail", "not made", "does not apply"]
"""``does not apply`` is for checks that only some methods or data sets have: completeness, and a mask of the lesion."""
GAP_AT_MOST: Final = 0.05
"""Largest completeness gap of a path method with enough steps."""
SURVIVES: Final = 0.5
"""Rank correlation, of values or absolute values, from which a map is said to survive shuffled weights."""
STABLE: Final = 0.5
"""Smallest rank correlation under noise of a stable map."""


def is_incomplete(row: AttributionSummary) -> bool:
    """Return whether the sum of a path method misses too much of the difference that it should explain."""
    return row.completeness_gap is not None and row.completeness_gap.value > GAP_AT_MOST


def is_random(gain: Estimate | None) -> bool:
    """Return whether a gain over random orders is not clearly above zero."""
    return gain is not None and not gain.low > 0


def survives_randomisation(row: AttributionSummary) -> bool:
    """Return whether maps stay alike when all weights are shuffled."""
    return row.survives is not None and row.survives > SURVIVES


def is_unstable(row: AttributionSummary) -> bool:
    """Return whether noise changes the maps too much."""
    return row.stability is not None and row.stability.value < STABLE


def misses_lesion(row: AttributionSummary) -> bool:
    """Return whether no more of the map lies in the lesion than its share of the picture."""
    return row.inside is not None and not row.inside.low > (row.area or 0)


def check_verdicts(row: AttributionSummary) -> dict[str, tuple[CheckVerdict, float]]:
    """Return verdict and figure of each check, by name; the figure is NaN where there is none."""
    gap, stability, inside, survives = row.completeness_gap, row.stability, row.inside, row.survives
    gains = {"deletion": row.deletion_gain, "insertion": row.insertion_gain}
    return {
        **{name: _verdict(gain, is_random(gain) or bool(row.flat)) for name, gain in gains.items()},
        "randomisation": _verdict(survives, survives_randomisation(row)),
        "stability": _verdict(stability, is_unstable(row)),
        "completeness": _verdict(gap, is_incomplete(row), optional=True),
        "lesion": _verdict(inside, misses_lesion(row), optional=True),
    }


def _verdict(figure: Estimate | float | None, failed: bool, *, optional: bool = False) -> tuple[CheckVerdict, float]:
    if figure is None:
        return "does not apply" if optional else "not made", math.nan
    return "fail" if failed else "pass", figure.value if isinstance(figure, Estimate) else figure
