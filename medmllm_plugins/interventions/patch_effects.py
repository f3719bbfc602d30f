"""The effects of patching, with clustered intervals, and the stage that they point to."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.interventions.recorded_pass import CONNECTOR, TOWER_END
from medmllm_plugins.interventions.twin_patching import Answers, PatchedAnswer, PatchSite
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    paired_difference,
)
from medmllm_plugins.results.patch_records import Direction, PatchPoint, TwinPatching

MARGIN: Final = 0.03
"""Smallest difference between two models that is analysed."""
HALF: Final = 0.5
"""Share of the difference that a site must restore or break to count."""
_WORDS: Final = "mapping"


def twin_effects(
    worse: Answers,
    better: Answers,
    truth: Ints,
    group: Ints,
    read: Callable[[str], int],
    *,
    names: tuple[str, str],
    seed: int = 0,
) -> TwinPatching:
    """Measure how much of the difference between two models each site restores and breaks.

    Args:
        worse: answers of the model that answers worse, with the states of the other one at each site; its own under
            ``None``.
        better: answers of the better model, likewise with the states of the worse one.
        truth: (n,) classes.
        group: (n,) groups of the documents.
        read: returns the class of an answer's text, -1 for none.
        names: names of the two models, the worse one first.
        seed: of the bootstrap resamples.
    """
    _, group = np.unique(group, return_inverse=True)
    groups = effective_groups(group)
    rows: dict[tuple[Direction, PatchSite | None], tuple[Floats, Floats, float]] = {}
    directions: tuple[tuple[Direction, Answers], ...] = (("restore", worse), ("break", better))
    for direction, answers in directions:
        for site, given in answers.items():
            rows[direction, site] = _per_document(given, truth, read)
    stacked = np.stack([row for hits, odds, _ in rows.values() for row in (hits, odds)])
    values, resampled = bootstrap(
        lambda weights: {"": (stacked @ weights / weights.sum(0)).T},
        group.astype(np.intp),
        resamples=RESAMPLES,
        seed=seed,
        cells=len(stacked),
    )
    column = {key: 2 * number for number, key in enumerate(rows)}

    def figure(direction: Direction, site: PatchSite | None, offset: int) -> tuple[float, Floats]:
        index = column[direction, site] + offset
        return float(values[""][index]), resampled[""][:, index]

    def share(direction: Direction, site: PatchSite | None) -> Estimate:
        value, drawn = figure(direction, site, 0)
        return estimate(value, drawn, groups=groups, bounds=SHARE)

    def effect(direction: Direction, site: PatchSite, offset: int) -> Estimate:
        own, other = (figure(name, None, offset) for name in _ends(direction))
        patched = figure(direction, site, offset)
        whole, drawn_whole = other[0] - own[0], other[1] - own[1]
        # Fieller's problem: where the difference itself may be 0, resamples of a ratio say nothing.
        ratio = (patched[0] - own[0]) / whole if whole else math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.where(np.sign(drawn_whole) == np.sign(whole), (patched[1] - own[1]) / drawn_whole, np.nan)
        return estimate(ratio, drawn, groups=groups)

    points = tuple(
        PatchPoint(
            layer=site.layer,
            tokens=site.tokens,
            direction=direction,
            accuracy=share(direction, site),
            effect=effect(direction, site, 0),
            log_odds_effect=effect(direction, site, 1),
            parsed=rows[direction, site][2],
        )
        for direction, answers in directions
        for site in answers
        if site is not None
    )
    own = share("restore", None), share("break", None)
    difference = paired_difference(own[1], own[0], (figure("break", None, 0)[1], figure("restore", None, 0)[1]))
    firsts: dict[str, str] = {"restore": "", "break": ""}
    stages: tuple[str, ...] = ()
    if difference.value >= MARGIN and difference.low > 0:
        for direction, _ in directions:
            firsts[direction] = next(
                (_name(point) for point in points if point.direction == direction and _counts(point)), ""
            )
        stages = _stages(firsts.values())
    return TwinPatching(
        worse=names[0],
        better=names[1],
        n=len(truth),
        groups=len(np.unique(group)),
        worse_accuracy=own[0],
        better_accuracy=own[1],
        difference=difference,
        points=points,
        first_restoring=firsts["restore"],
        first_breaking=firsts["break"],
        stages=stages,
    )


def _ends(direction: Direction) -> tuple[Direction, Direction]:
    """Return the directions under which the model's own answers stand, and those of the other model."""
    return ("restore", "break") if direction == "restore" else ("break", "restore")


def _per_document(
    answers: Sequence[PatchedAnswer], truth: Ints, read: Callable[[str], int]
) -> tuple[Floats, Floats, float]:
    """Return hits (n,), log-odds of the correct label (n,) in nats, and the share of parsed answers."""
    classes = np.array([read(answer.text) for answer in answers])
    scores = np.array([answer.scores for answer in answers], dtype=np.float64)
    rows = np.arange(len(truth))
    others = scores.copy()
    others[rows, truth] = -np.inf
    odds: Floats = scores[rows, truth] - logsumexp(others, axis=1)
    return (classes == truth).astype(np.float64), odds, float((classes >= 0).mean())


def _counts(point: PatchPoint) -> bool:
    return point.effect.value >= HALF and point.effect.low > 0


def _name(point: PatchPoint) -> str:
    return PatchSite(point.layer, point.tokens).name  # type: ignore[arg-type]


def _stages(sites: Collection[str]) -> tuple[str, ...]:
    """Return the failure modes of the first restoring and the first breaking site, in the order of the stages."""
    modes = {stage_of(site) for site in sites}
    return tuple(mode for mode in ("vision", "connector", "comprehension", _WORDS) if mode in modes)


def stage_of(site: str) -> str:
    """Return the failure mode of the stage that ends at a site; without a site it is the mapping.

    States put in after the final norm restore all that the LLM computes, so what they do not restore lies in the words.
    """
    if not site:
        return _WORDS
    return {TOWER_END: "vision", CONNECTOR: "connector"}.get(site, "comprehension")
