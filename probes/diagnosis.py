"""Judge the four failure modes of "Lost in the Hype" (arXiv:2604.08333) by the accuracy lost from stage to stage.

=============== ==================================================================================================
vision          reference classifier minus the vision tower
connector       vision tower minus connector
comprehension   connector minus the last token at the end of the LLM
mapping         the latter minus the answers
=============== ==================================================================================================

:mod:`medmllm_plugins.probes.chain` says how each stage is measured, :mod:`medmllm_plugins.probes.conclusion` what is
concluded from the losses, and docs/diagnosis.md explains both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import ndtri, stdtrit

from medmllm_plugins.metrics.classification import Floats
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate, estimate, simultaneous_bounds
from medmllm_plugins.metrics.paired_difference import paired_difference
from medmllm_plugins.probes.chain import Chain, Evidence
from medmllm_plugins.probes.conclusion import Circumstances, conclude
from medmllm_plugins.probes.curves import Figure, share_estimate
from medmllm_plugins.results.probe_records import MODES, Diagnosis, Effect, Mode, StageInformation, Verdict

MARGIN: Final = 0.03
"""Smallest loss of accuracy that can be supported."""
OF_INTEREST: Final = 0.10
"""Smallest loss of interest: a loss is ruled out if its whole interval lies below this."""
MIN_GROUPS: Final = 20
"""With fewer groups in the test fold there is no verdict. Groups of unequal sizes count as fewer equal ones."""
CERTAIN: Final = 0.95
"""A mode is named if this share of the resamples agrees that it loses most."""


@dataclass(frozen=True, slots=True, eq=False)
class _Loss:
    """The loss of one step. ``own``, measured from the stage's own end without credit, bounds what is ruled out."""

    mode: Mode
    before: Evidence | None
    after: Evidence
    bits: Figure | None
    own: Figure | None
    reason_unknown: str = ""


def diagnose(chain: Chain, circumstances: Circumstances) -> Diagnosis:
    """Judge the four failure modes and draw the conclusion."""
    losses = _losses(chain)
    effects = _judge(losses, chain)
    diagnosis = Diagnosis(
        effects=effects,
        stages=_stages(chain),
        answers_over_probe=_difference(chain.credited[3].accuracy - chain.ends[2].accuracy, chain.effective_groups),
        smallest_supported=MARGIN,
        smallest_of_interest=OF_INTEREST,
    )
    matched = answers_match_reference(chain)
    return replace(diagnosis, **conclude(diagnosis, circumstances, answers_match_reference=matched))


def _losses(chain: Chain) -> list[_Loss]:
    """Return the four losses in the order of the stages."""
    # What is credited was chosen on the validation fold, where a later site may look as good as a stage's own end.
    # Where the own end shows more on the test fold, the step that leads to it has not lost that.
    *stages, answer = chain.credited
    shown = [
        end if end.accuracy.value > credited.accuracy.value else credited
        for end, credited in zip(chain.ends, stages, strict=True)
    ]
    steps = [
        _Loss(mode, before, after, bits_before - bits_after, end.loss_to(after))
        for mode, before, after, bits_before, bits_after, end in zip(
            MODES[1:], stages, [*shown[1:], answer], chain.bits[:-1], chain.bits[1:], chain.ends, strict=True
        )
    ]
    tower, reference = shown[0], chain.reference
    if reference is not None:
        bits = reference.bits - chain.bits[0]
        return [_Loss("vision", reference, tower, bits, None), *steps]
    if tower.accuracy.value < chain.control.accuracy.value:
        return [_Loss("vision", chain.control, tower, chain.control.bits - chain.bits[0], None), *steps]
    why = (
        "the accuracy of an ordinary classifier on these data is unknown. Run one with `medmllm baseline TASK`, then "
        "`medmllm diagnose RUN_DIR --reference BASELINE_DIR`."
    )
    return [_Loss("vision", None, tower, None, None, why), *steps]


def is_informative(reference: Evidence, chain: Chain) -> bool:
    """Return whether a reference is better than the control features and the most common class.

    One that is not cannot rule out a loss, and the answers cannot be measured by it.
    """
    gains = [
        _difference(reference.accuracy - other.accuracy, chain.effective_groups)
        for other in (chain.control, chain.majority)
    ]
    return all(gain.value >= MARGIN and gain.low > 0 for gain in gains)


def answers_match_reference(chain: Chain) -> bool:
    """Return whether the answers are at least as accurate as a reference that is informative."""
    reference = chain.reference
    return (
        reference is not None
        and is_informative(reference, chain)
        and chain.credited[3].accuracy.value >= reference.accuracy.value
    )


def _judge(losses: Sequence[_Loss], chain: Chain) -> tuple[Effect, ...]:
    """Return one effect for each loss; the lower bounds of supported losses hold for all four at once."""
    groups = chain.effective_groups
    figures = [
        Figure(math.nan, np.full(1, math.nan)) if loss.before is None else loss.before.loss_to(loss.after)
        for loss in losses
    ]
    lows = np.full(len(losses), -math.inf)
    if round(groups) >= MIN_GROUPS:
        known = [index for index, loss in enumerate(losses) if loss.before is not None]
        limits = [loss.before.limit - loss.after.limit for loss in losses if loss.before is not None]
        # What learning curves may explain is not supported, whether they rise significantly or not.
        lows[known] = np.minimum(
            _lower_bounds([figures[index] for index in known], chain.effective_groups),
            _lower_bounds(limits, chain.effective_groups),
        )
    probabilities = _probabilities(figures, 1 - chain.credited[0].accuracy.value, groups)
    return tuple(
        _effect(loss, figure, float(low), probability, chain)
        for loss, figure, low, probability in zip(losses, figures, lows, probabilities, strict=True)
    )


def _lower_bounds(figures: Sequence[Figure], groups: float) -> Floats:
    """Return the lower bounds, (M,), that hold for all figures at once."""
    values, resampled = np.array([figure.value for figure in figures]), [figure.resampled for figure in figures]
    return simultaneous_bounds(values, np.stack(resampled, axis=1), groups=groups).low


def _probabilities(figures: Sequence[Figure], unknown: float, groups: float) -> list[float]:
    """Return for each loss the share of resamples in which it is the largest and at least :data:`MARGIN`.

    A loss of the tower that is not known may be as large as ``unknown``, the tower's distance from an accuracy of 1.
    Resamples of few groups vary too little, so their deviations are enlarged as Student's t is wider than the normal
    distribution.
    """
    if groups < 2:
        return [math.nan] * len(figures)
    wider = float(stdtrit(groups - 1, CERTAIN) / ndtri(CERTAIN)) * math.sqrt(groups / (groups - 1))
    resamples = max(len(figure.resampled) for figure in figures)
    drawn = [
        np.full(resamples, unknown)
        if math.isnan(figure.value)
        else figure.value + wider * (figure.resampled - figure.resampled.mean())
        for figure in figures
    ]
    stacked = np.stack(drawn)
    largest = stacked.max(0)
    return [
        math.nan if math.isnan(figure.value) else float(((row >= largest) & (row >= MARGIN)).mean())
        for figure, row in zip(figures, stacked, strict=True)
    ]


def _effect(loss: _Loss, figure: Figure, simultaneous_low: float, probability: float, chain: Chain) -> Effect:
    if loss.before is None:
        return Effect(mode=loss.mode, loss=UNKNOWN, why=loss.reason_unknown, after=loss.after.name)
    interval = _loss_interval(figure, loss, chain)
    verdict, why = judge_loss(interval, simultaneous_low, chain.effective_groups)
    if loss.mode == "vision" and verdict == "ruled out":
        if not is_informative(loss.before, chain):
            verdict, why = "cannot tell", _weak_reference(loss.before, chain)
    elif loss.before is loss.after and verdict == "ruled out":
        least = f"{100 * OF_INTEREST:.0f}"
        why = f"{loss.after.name} shows as much as any earlier stage; {least} points or more are ruled out."
    return Effect(
        mode=loss.mode,
        loss=interval,
        balanced_loss=_difference(loss.before.balanced - loss.after.balanced, chain.effective_groups),
        bits_lost=UNKNOWN if loss.bits is None else _difference(loss.bits, chain.effective_groups),
        probability=probability,
        verdict=verdict,
        why=why,
        before=loss.before.name,
        after=loss.after.name,
    )


def _loss_interval(figure: Figure, loss: _Loss, chain: Chain) -> Estimate:
    """Return a loss with its interval.

    It covers that of the resampled loss and that of a paired difference of shares, which has a width also where the two
    agree on all documents. Where a later stage is credited, the loss is exactly 0; how certain that is follows from the
    stage's own end.
    """
    assert loss.before is not None
    groups = chain.effective_groups
    plain = loss.before.accuracy - loss.after.accuracy
    rows = loss.before.correct - loss.after.correct
    intervals = [
        _difference(figure, groups),
        paired_difference(rows, plain.resampled, chain.group, value=plain.value),
    ]
    ends = [*intervals] if loss.own is None else [*intervals, _difference(loss.own, groups)]
    return Estimate(figure.value, min(part.low for part in intervals), max(part.high for part in ends))


def judge_loss(loss: Estimate, simultaneous_low: float, groups: float) -> tuple[Verdict, str]:
    """Return the verdict on a loss of accuracy, and the reason.

    Args:
        loss: the loss with its own 95% interval.
        simultaneous_low: lower bound that holds for all losses at once.
        groups: number of groups in the test fold; of unequal sizes, the number of equal ones that vary as much.
    """
    if round(groups) < MIN_GROUPS:
        return "cannot tell", f"the test fold counts as {groups:.0f} groups; at least {MIN_GROUPS} are needed."
    if simultaneous_low > 0 and loss.value >= MARGIN:
        return "supported", f"a loss of {points(loss)}."
    if loss.high < OF_INTEREST:
        return "ruled out", f"a loss of {points(loss)}; {100 * OF_INTEREST:.0f} points or more are ruled out."
    return "cannot tell", f"a loss of {points(loss)}; the interval is too wide. More documents would narrow it."


def _weak_reference(reference: Evidence, chain: Chain) -> str:
    return (
        f"the reference ({reference.accuracy.value:.1%}) is no better than {chain.control.name} "
        f"({chain.control.accuracy.value:.1%}) or the most common class, so it cannot rule out a loss. Use a better "
        "one: `medmllm baseline TASK --method timm:resnet50`."
    )


def _stages(chain: Chain) -> tuple[StageInformation, ...]:
    """Return what is known of the class at the end of each stage."""

    def share(figure: Figure) -> Estimate:
        return share_estimate(figure, chain.effective_groups)

    def stage(name: str, evidence: Evidence, own: Estimate, bits: Figure) -> StageInformation:
        return StageInformation(
            stage=name,  # type: ignore[arg-type]
            source=evidence.name,
            own=own,
            accuracy=share(evidence.accuracy),
            balanced=share(evidence.balanced),
            bits=_difference(bits, chain.effective_groups),
        )

    reference = [] if chain.reference is None else [stage("reference", chain.reference, UNKNOWN, chain.reference.bits)]
    owns = [share(end.accuracy) for end in chain.ends] + [share(chain.credited[3].accuracy)]
    names = ("vision", "connector", "llm", "answer")
    return (*reference, *(stage(*row) for row in zip(names, chain.credited, owns, chain.bits, strict=True)))


def _difference(figure: Figure, groups: float) -> Estimate:
    return estimate(figure.value, figure.resampled, groups=groups)


def points(difference: Estimate) -> str:
    """Format a difference of accuracies in points, with its interval."""
    if math.isnan(difference.low):
        return f"{100 * difference.value:+.1f} points"
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.value:+.1f} points (95% CI {low:+.1f} to {high:+.1f})"
