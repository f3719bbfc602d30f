"""The effects of patching, with clustered intervals, and the stage that they point to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

import numpy as np
from scipy.special import logsumexp

from medmllm_plugins.interventions.twin_patching import CONNECTOR_ALONE, Answers, PatchedAnswer, PatchSite
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
)
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.models.recorded_pass import CONNECTOR, TOWER_END
from medmllm_plugins.prompts.patch_options import Tokens
from medmllm_plugins.results.patch_records import (
    Direction,
    ModuleCombination,
    ModuleShare,
    PatchPoint,
    TwinPatching,
)

MARGIN: Final = 0.03
"""Smallest difference between two models that is analysed."""
HALF: Final = 0.5
"""Share of the difference that a site must restore or break to count."""
MODULES: Final = ("vision", "connector", "llm")
STEP: Final = 0.2
"""Share of the difference that must come in at a stage for it to be named."""
STAGES: Final = ("vision", "connector", "comprehension", "mapping")
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
    directions: tuple[tuple[Direction, Answers], ...] = (("restore", worse), ("break", better))
    rows = {
        (direction, site): _per_document(site_answers, truth, read)
        for direction, answers in directions
        for site, site_answers in answers.items()
    }
    figures = _Figures(rows, group.astype(np.intp), seed)
    points = tuple(figures.point(direction, site) for direction, site in rows if site is not None)
    difference = figures.difference()
    firsts: dict[str, str] = {"restore": "", "break": ""}
    stages: tuple[str, ...] = ()
    if difference.value >= MARGIN and difference.low > 0:
        for direction in firsts:
            firsts[direction] = next(
                (_name(point) for point in points if point.direction == direction and _counts(point)),
                "",
            )
        stages = figures.stages()
    return TwinPatching(
        worse=names[0],
        better=names[1],
        n=len(truth),
        groups=len(np.unique(group)),
        worse_accuracy=figures.accuracy("restore", None),
        better_accuracy=figures.accuracy("break", None),
        difference=difference,
        points=points,
        first_restoring=firsts["restore"],
        first_breaking=firsts["break"],
        stages=stages,
        combinations=figures.combinations(names),
        shares=figures.shares(),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """Answers to n documents: hits (n,), log-odds of the correct label (n,) in nats, and the share that was parsed."""

    hits: Floats
    odds: Floats
    parsed: float


_Key: TypeAlias = tuple[Direction, PatchSite | None]


class _Figures:
    """Accuracies and mean log-odds with their bootstrap resamples, all on the same ones."""

    def __init__(self, rows: Mapping[_Key, _Row], group: Ints, seed: int) -> None:
        self._rows, self._group, self._groups = rows, group, effective_groups(group)
        self._column = {key: 2 * number for number, key in enumerate(rows)}
        stacked = np.stack([part for row in rows.values() for part in (row.hits, row.odds)])
        values, resampled = bootstrap(
            lambda weights: {"": (stacked @ weights / weights.sum(0)).T},
            group,
            resamples=RESAMPLES,
            seed=seed,
            cells=len(stacked),
        )
        self._values, self._resampled = values[""], resampled[""]

    def accuracy(self, direction: Direction, site: PatchSite | None) -> Estimate:
        """Return an accuracy."""
        value, drawn = self._figure((direction, site), 0)
        return estimate(value, drawn, groups=self._groups, bounds=SHARE)

    def difference(self) -> Estimate:
        """Return the accuracy of the better model minus that of the worse one."""
        better: _Key = ("break", None)
        worse: _Key = ("restore", None)
        rows = self._rows[better].hits - self._rows[worse].hits
        return paired_difference(rows, self._figure(better, 0)[1] - self._figure(worse, 0)[1], self._group)

    def point(self, direction: Direction, site: PatchSite) -> PatchPoint:
        """Return the effects of one site."""
        return PatchPoint(
            layer=site.layer,
            tokens=site.tokens,
            direction=direction,
            accuracy=self.accuracy(direction, site),
            effect=self._effect(direction, site, 0),
            log_odds_effect=self._effect(direction, site, 1),
            parsed=self._rows[direction, site].parsed,
        )

    def combinations(self, names: tuple[str, str]) -> tuple[ModuleCombination, ...]:
        """Return the answers of all combinations of modules; none where not all of them are known."""
        if not self._has_all_modules():
            return ()
        combinations = []
        for taken in itertools.product((False, True), repeat=len(MODULES)):
            key = _COMBINATIONS[taken]
            value, drawn = self._figure(key, 1)
            combinations.append(
                ModuleCombination(
                    **dict(zip(MODULES, (names[better] for better in taken), strict=True)),
                    accuracy=self.accuracy(*key),
                    log_odds=estimate(value, drawn, groups=self._groups),
                )
            )
        return tuple(combinations)

    def shares(self) -> tuple[ModuleShare, ...]:
        """Return the Shapley value of each module; none where not all combinations are known."""
        if not self._has_all_modules():
            return ()
        return tuple(
            ModuleShare(module=name, accuracy=self._shapley(index, 0), log_odds=self._shapley(index, 1))
            for index, name in enumerate(MODULES)
        )

    def _has_all_modules(self) -> bool:
        return all(key in self._column for key in _COMBINATIONS.values())

    def _shapley(self, module: int, offset: int) -> Estimate:
        """Return the mean gain by one module of the better model, over the orders in which all three can be exchanged.

        The gain beside s other exchanged modules stands in s! (2 - s)! of the 3! orders (Shapley, 1953).
        """
        value, drawn = 0.0, np.zeros(len(self._resampled))
        for taken, key in _COMBINATIONS.items():
            if taken[module]:
                without = _COMBINATIONS[tuple(index != module and other for index, other in enumerate(taken))]
                others = sum(taken) - 1
                weight = (
                    math.factorial(others) * math.factorial(len(MODULES) - 1 - others) / math.factorial(len(MODULES))
                )
                (high, drawn_high), (low, drawn_low) = self._figure(key, offset), self._figure(without, offset)
                value += weight * (high - low)
                drawn = drawn + weight * (drawn_high - drawn_low)
        return estimate(value, drawn, groups=self._groups)

    def _figure(self, key: _Key, offset: int) -> tuple[float, Floats]:
        index = self._column[key] + offset
        return float(self._values[index]), self._resampled[:, index]

    def stages(self) -> tuple[str, ...]:
        """Return the stages at which the effect rises by at least :data:`STEP`, in either direction.

        What no site restores comes in at the words. In one direction the effect of an earlier fault may hide that of a
        later one: states put in behind the later one undo both.
        """
        named = set()
        directions: tuple[Direction, ...] = ("restore", "break")
        for direction in directions:
            before = (0.0, np.zeros(len(self._resampled)))
            for stage in STAGES:
                end = self._end_of(direction, stage)
                if stage == _WORDS:
                    after = (1.0, np.ones(len(self._resampled)))
                elif end is None:
                    continue
                else:
                    after = self._shares(direction, end, 0)
                rise = estimate(after[0] - before[0], after[1] - before[1], groups=self._groups)
                if rise.value >= STEP and rise.low > 0:
                    named.add(stage)
                before = after
        return tuple(stage for stage in STAGES if stage in named)

    def _end_of(self, direction: Direction, stage: str) -> PatchSite | None:
        """Return the last site of a stage, of all tokens or else of the last one; ``None`` without any."""
        sites = [
            site
            for way, site in self._column
            if way == direction
            and site is not None
            and site.layer != CONNECTOR_ALONE
            and site.tokens != "image"
            and stage_of(site.layer) == stage
        ]
        return sites[-1] if sites else None

    def _effect(self, direction: Direction, site: PatchSite, offset: int) -> Estimate:
        value, drawn = self._shares(direction, site, offset)
        return estimate(value, drawn, groups=self._groups)

    def _shares(self, direction: Direction, site: PatchSite, offset: int) -> tuple[float, Floats]:
        """Return the effect of a site, and its resamples."""
        own, other = (self._figure((name, None), offset) for name in _ends(direction))
        patched = self._figure((direction, site), offset)
        whole, drawn_whole = other[0] - own[0], other[1] - own[1]
        ratio = (patched[0] - own[0]) / whole + 0.0 if whole else math.nan  # no negative zero
        # Resamples in which the models do not differ, or the other way round, say nothing of a share.
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.where(np.sign(drawn_whole) == np.sign(whole), (patched[1] - own[1]) / drawn_whole, np.nan)
        return ratio, drawn


_COMBINATIONS: Final[Mapping[tuple[bool, ...], _Key]] = {
    (False, False, False): ("restore", None),
    (True, False, False): ("restore", PatchSite(TOWER_END)),
    (False, True, False): ("restore", PatchSite(CONNECTOR_ALONE)),
    (True, True, False): ("restore", PatchSite(CONNECTOR)),
    (False, False, True): ("break", PatchSite(CONNECTOR)),
    (True, False, True): ("break", PatchSite(CONNECTOR_ALONE)),
    (False, True, True): ("break", PatchSite(TOWER_END)),
    (True, True, True): ("break", None),
}
"""Whether tower, connector and LLM are those of the better model, to the answers in which they are.

An exchanged module is a patch of all that it computes, so that most combinations are sites of patching.
"""


def _ends(direction: Direction) -> tuple[Direction, Direction]:
    """Return the directions under which the model's own answers stand, and those of the other model."""
    return ("restore", "break") if direction == "restore" else ("break", "restore")


def _per_document(answers: Sequence[PatchedAnswer], truth: Ints, read: Callable[[str], int]) -> _Row:
    classes = np.array([read(answer.text) for answer in answers])
    scores = np.array([answer.scores for answer in answers], dtype=np.float64)
    documents = np.arange(len(truth))
    others = scores.copy()
    others[documents, truth] = -np.inf
    odds: Floats = scores[documents, truth] - logsumexp(others, axis=1)
    return _Row((classes == truth).astype(np.float64), odds, float((classes >= 0).mean()))


def _counts(point: PatchPoint) -> bool:
    """Return whether a point may be the first; the connector alone is beside the way of an image, not on it."""
    return point.layer != CONNECTOR_ALONE and point.effect.value >= HALF and point.effect.low > 0


def _name(point: PatchPoint) -> str:
    return PatchSite(point.layer, cast(Tokens, point.tokens)).name


def stage_of(site: str) -> str:
    """Return the failure mode of the stage that ends at a site; without a site it is the mapping.

    States put in after the final norm restore all that the LLM computes, so what they do not restore lies in the words.
    """
    if not site:
        return _WORDS
    return {TOWER_END: "vision", CONNECTOR: "connector"}.get(site, "comprehension")
