"""What a repair gains: paired comparisons of answers, and which repairs help."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medmllm_plugins.metrics.calibration import Calibration
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    known,
    size_inflation,
)
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.results.repair_records import RepairResult, RepairStudy

SMALLEST: Final = 0.01
"""Smallest gain that is called one."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers without and with a repair, on the same questions.

    Attributes:
        before: accuracy without it.
        after: accuracy with it.
        gain: the paired difference.
        over_guess: accuracy with it minus that of always giving the most common correct answer.
        fixed: questions that are answered correctly with it alone.
        broken: questions that are answered correctly without it alone.
    """

    before: Estimate
    after: Estimate
    gain: Estimate
    over_guess: Estimate
    fixed: int
    broken: int


def compare_answers(before: Sequence[Outcome], after: Sequence[Outcome], *, seed: int = 0) -> Comparison:
    """Compare two sets of answers to the same questions, with intervals by group.

    Args:
        before: answers without a repair.
        after: answers with it, in any order.
        seed: of the bootstrap resamples.
    """
    by_id = {outcome.id: outcome for outcome in after}
    ((guess, _),) = Counter(outcome.label for outcome in before).most_common(1)
    rows: Floats = np.array(
        [
            [float(o.predicted == o.label) for o in before],
            [float(by_id[o.id].predicted == o.label) for o in before],
            [float(o.label == guess) for o in before],
        ]
    )
    group: Ints = np.unique([outcome.group for outcome in before], return_inverse=True)[1].astype(np.intp)
    values, resampled = bootstrap(
        lambda weights: {"": (rows @ weights / weights.sum(0)).T}, group, resamples=RESAMPLES, seed=seed
    )
    shares = [
        estimate(float(value), drawn, groups=effective_groups(group), bounds=SHARE, inflation=float(inflation))
        for value, drawn, inflation in zip(values[""], resampled[""].T, size_inflation(rows, group), strict=True)
    ]
    change, beyond = rows[1] - rows[0], rows[1] - rows[2]
    drawn = resampled[""]
    return Comparison(
        before=shares[0],
        after=shares[1],
        gain=paired_difference(change, drawn[:, 1] - drawn[:, 0], group),
        over_guess=paired_difference(beyond, drawn[:, 1] - drawn[:, 2], group),
        fixed=int((change > 0).sum()),
        broken=int((change < 0).sum()),
    )


def calibration_error(outcomes: Sequence[Outcome], classes: Sequence[str]) -> float:
    """Return the expected calibration error of label scores; NaN where answers have none."""
    if any(outcome.scores is None for outcome in outcomes):
        return math.nan
    scores = np.array([outcome.scores for outcome in outcomes], dtype=np.float64)
    truth = np.array([classes.index(outcome.label) for outcome in outcomes], dtype=np.intp)
    return float(Calibration(scores, truth)(np.ones((len(truth), 1), dtype=np.int64))[0][0])


def judge(study: RepairStudy) -> RepairStudy:
    """Say which repairs help, which are cheapest and best, and which no other one dominates.

    A repair helps if its gain is at least one point, the intervals of the gain on the validation fold and on the test
    fold lie above zero, and so do those of its advantage over the same repair fitted on shuffled labels and over
    always giving the most common answer: a model whose answers cannot be read gains by guessing. What is best
    and what is dominated is decided on the validation fold, so that the test fold measures what was chosen without it.
    """
    repairs = [
        replace(repair, helps=_helps(repair), pareto=_on_front(repair, study.repairs)) for repair in study.repairs
    ]
    helping = [repair for repair in repairs if repair.helps]
    cheapest = helping[0].name if helping else ""
    best = max(helping, key=lambda repair: repair.validation_gain.value).name if helping else ""
    judged = replace(study, repairs=tuple(repairs), cheapest=cheapest, best=best)
    return replace(judged, sentence=sentence(judged))


def _helps(repair: RepairResult) -> bool:
    advantages = [figure for figure in (repair.over_shuffled, repair.over_guess) if known(figure)]
    return (
        repair.gain.value >= SMALLEST
        and repair.gain.low > 0
        and repair.validation_gain.low > 0
        and all(advantage.low > 0 for advantage in advantages)
    )


def _on_front(repair: RepairResult, others: Sequence[RepairResult]) -> bool:
    """Return whether the repair gains on the validation fold, and no cheaper one gains as much."""
    if repair.validation_gain.value <= 0:
        return False
    cheaper = others[: [other.name for other in others].index(repair.name)]
    return all(other.validation_gain.value < repair.validation_gain.value for other in cheaper)


def sentence(study: RepairStudy) -> str:
    """Return the result in words."""
    if not study.repairs:
        return "No repair was tried."
    if not study.cheapest:
        tried = f"{len(study.repairs)} candidates"
        return f"No repair helps: none of {tried} gains on the validation and the test fold beyond doubt."
    cheapest, best = study.of(study.cheapest), study.of(study.best)
    first = f"Cheapest repair: {_described(cheapest)}"
    text = f"{first}; best: {_described(best)}." if best.name != cheapest.name else f"{first}, also the best."
    harmed = [transfer.task for transfer in best.transfers if transfer.gain.high < 0]
    helped = [transfer.task for transfer in best.transfers if transfer.gain.low > 0]
    if helped:
        text += f" {_sentence_start(best.title)} also gains on {', '.join(helped)}."
    if harmed:
        text += f" {_sentence_start(best.title)} loses on {', '.join(harmed)}."
    return text


def _described(repair: RepairResult) -> str:
    gain = repair.gain
    cost = (
        f"{parameters_in_words(repair.parameters)} parameters" if repair.parameters and repair.steps else "no training"
    )
    interval = f"95% CI {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    return f"{repair.title}, {100 * gain.value:+.1f} points ({interval}), {cost}"


def parameters_in_words(count: int) -> str:
    """Return a number of parameters, such as 1.1 M."""
    for size, name in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f} {name}"
    return str(count)


def _sentence_start(text: str) -> str:
    return text[:1].upper() + text[1:]
