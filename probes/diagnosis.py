"""Which of the four failure modes the evidence supports, by rules that stand here and in docs/diagnosis.md.

The four modes are those of "Lost in the Hype" (arXiv:2604.08333). What a stage holds of the class is measured by probes
on held-out documents, and each mode is what is lost from one stage to the next, in accuracy:

=============== ==================================================================================================
vision          what a reference classifier reaches, less what the vision tower hands over
connector       what the vision tower hands over, less what the connector hands over
comprehension   what the connector hands over, less what the last token holds at the end of the LLM
mapping         the latter, or the label that scores highest if it is right more often, less the answers' accuracy
=============== ==================================================================================================

Tower and connector are measured by the mean over patches or tokens (or the class token, if that is better on the
validation fold), the end of the LLM by its last norm's state of the prompt's last token. No stage knows more of the
image than it was given, so against a reference the tower is credited with what any later stage still shows, and
against the connector the end of the LLM with what the label that scores highest shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.probes.curves import BootstrapAccuracies
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, Site
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.probe_records import Diagnosis, Effect, Mode, Verdict

MARGIN: Final = 0.03
"""A loss counts from here on, given that its interval lies above zero."""
TOLERANCE: Final = 0.10
"""A loss is ruled out only where its whole interval lies below this; a wider one cannot tell."""
MIN_GROUPS: Final = 20
"""With fewer groups in the test fold no verdict is given."""
SHARE_OF_LARGEST: Final = 0.25
"""A stage behind a broken one is given what it was never trained on, and loses more. So the first supported loss of at
least this share of the largest is named, and not the largest."""
SHARE_BEFORE: Final = 0.1
"""None is named where supported losses before it come to this share of it; with those that may be, to FOLLOWS."""
NOISE: Final = MARGIN / 2
"""A smaller loss whose interval holds zero is taken for none at all."""
MAX_UNKNOWN_SHARE: Final = 0.5
"""Where nothing is known of what the tower loses, no stage behind it is named unless all that the tower can have lost,
which is what it falls short of every answer being right, is less than this share of the loss."""
ANSWER: Final = "answer"
SCORES: Final = "label scores"
"""The label that scores highest."""
REFERENCE: Final = "reference"
MAJORITY: Final = "majority"


@dataclass(frozen=True, slots=True)
class _Measure:
    """What one stage shows: its name, its accuracy and that on each resample."""

    name: str
    value: float
    resampled: Floats


def diagnose(
    fitted: ProbePredictions, draws: BootstrapAccuracies, truth: Ints, scores_validation: float | None
) -> Diagnosis:
    """Judge the four modes.

    Args:
        fitted: the probes.
        draws: accuracies and resamples; ``"answer"`` among them, and ``"reference"`` where there is one.
        truth: (v,) classes of the validation fold.
        scores_validation: accuracy of the label that scores highest on the validation fold; ``None`` without scores.
    """
    on_validation = (fitted.validation == truth).mean(1)
    stages = _stages(fitted.sites)

    def told(name: str) -> _Measure:
        return _Measure(name, float(draws.values[name]), draws.resampled[name])

    def best(places: Sequence[int]) -> _Measure:
        place = max(places, key=lambda one: on_validation[one])
        key = fitted.sites[place]
        return _Measure(
            f"{key.layer} ({key.pooling})", float(draws.values["probe"][place]), draws.resampled["probe"][:, place]
        )

    tower, connector, last = (best(places) for places in stages)
    shown = best([place for places in stages for place in places])
    understood = last
    if scores_validation is not None:
        # On the validation fold, since what is chosen on the test fold flatters.
        if scores_validation > on_validation[fitted.index_of(LAST_LAYER, LAST)]:
            understood = told(SCORES)
        if scores_validation > max(on_validation[place] for places in stages for place in places):
            shown = told(SCORES)
    enough = draws.groups >= MIN_GROUPS
    floor = best([place for place, key in enumerate(fitted.sites) if key.part == "control"])
    known = REFERENCE in draws.values and _tells(told(REFERENCE), (floor, told(MAJORITY)), draws)
    effects = (
        _vision(told(REFERENCE) if REFERENCE in draws.values else None, known, shown, floor, draws, enough),
        _effect("connector", tower, connector, draws, enough),
        _effect("comprehension", connector, understood, draws, enough),
        _effect("mapping", understood, told(ANSWER), draws, enough),
    )
    return Diagnosis(effects, attribute_loss_to_stage(effects, 0.0 if known else 1 - shown.value))


def _stages(keys: Sequence[Site]) -> tuple[list[int], list[int], list[int]]:
    """Places of what tower, connector and LLM hand over; the fit always holds them."""
    tower = [place for place, key in enumerate(keys) if key.part == "vision" and key.read]
    end = keys[tower[-1]].layer
    handed = [place for place in tower if keys[place].layer == end and keys[place].pooling in (MEAN, CLS)]
    connector = [place for place, key in enumerate(keys) if key.part == "connector" and key.pooling == MEAN]
    last = [place for place, key in enumerate(keys) if (key.layer, key.pooling) == (LAST_LAYER, LAST)]
    return handed, connector, last


def _tells(reference: _Measure, least: Sequence[_Measure], draws: BootstrapAccuracies) -> bool:
    """Whether a reference is better than what needs no training of a network: else it rules nothing out."""
    gains = [draws.estimate(reference.value - one.value, reference.resampled - one.resampled) for one in least]
    return all(gain.value >= MARGIN and gain.low > 0 for gain in gains)


def _vision(
    reference: _Measure | None, known: bool, shown: _Measure, floor: _Measure, draws: BootstrapAccuracies, enough: bool
) -> Effect:
    """Against the reference, or else against the better of the floors."""
    if reference is not None:
        effect = _effect("vision", reference, shown, draws, enough)
        if known or effect.verdict != "not supported":
            return effect
        why = (
            f"{_points(effect.loss)}, but the reference ({100 * reference.value:.1f} %) is itself no better than "
            f"{floor.name} ({100 * floor.value:.1f} %) or the commonest class, and rules nothing out: give the run of "
            "a better one (`medmllm baseline TASK --method timm:resnet50`)."
        )
        return replace(effect, verdict="cannot tell", why=why)
    gain = draws.estimate(shown.value - floor.value, shown.resampled - floor.resampled)
    nothing = Estimate(math.nan, math.nan, math.nan)
    if enough and gain.high < MARGIN:
        loss = draws.estimate(floor.value - shown.value, floor.resampled - shown.resampled)
        why = f"the tower hands over no more than {floor.name} does without it ({_points(gain)} against it)."
        return Effect("vision", loss, "supported", why, floor.name, shown.name)
    why = (
        "what an ordinary classifier reaches on these data is not known: give the run of one (`medmllm baseline TASK`, "
        f"then `medmllm diagnose RUN_DIR --reference BASELINE_DIR`). Against {floor.name} the tower is {_points(gain)}."
    )
    return Effect("vision", nothing, "cannot tell", why, floor.name, shown.name)


def _effect(mode: Mode, before: _Measure, after: _Measure, draws: BootstrapAccuracies, enough: bool) -> Effect:
    loss = draws.estimate(before.value - after.value, before.resampled - after.resampled)
    verdict, why = judge_loss(loss)
    if not enough:
        verdict, why = "cannot tell", f"the test fold has {draws.groups} groups; {MIN_GROUPS} are needed."
    elif before.name == after.name:
        why = f"{after.name} shows all that was there before."
    return Effect(mode, loss, verdict, why, before.name, after.name)


def judge_loss(loss: Estimate) -> tuple[Verdict, str]:
    """The verdict on a loss of accuracy, and why."""
    if np.isnan(loss.low):
        return "cannot tell", "there are too few groups for an interval."
    if loss.low > 0 and loss.value >= MARGIN:
        return "supported", f"{_points(loss)}, all above zero."
    if loss.high < TOLERANCE:
        return "not supported", f"{_points(loss)}; a loss of {TOLERANCE:.0%} is ruled out."
    return "cannot tell", f"{_points(loss)}: too wide to tell; more documents would."


def attribute_loss_to_stage(effects: Sequence[Effect], unknown: float) -> Mode | None:
    """The mode that losses are charged to; ``unknown`` is what the tower can have lost at most without our knowing."""
    supported = [effect for effect in effects if effect.verdict == "supported"]
    if not supported:
        return None
    # A tower that is no better than the floors may still be better than they are by a little.
    losses = {effect.mode: 0.0 if math.isnan(effect.loss.value) else max(0.0, effect.loss.value) for effect in effects}
    largest = max(losses[effect.mode] for effect in supported)
    first = next(effect for effect in supported if losses[effect.mode] >= SHARE_OF_LARGEST * largest)
    before = effects[: effects.index(first)]
    surely = sum(losses[one.mode] for one in before if one.verdict == "supported")
    perhaps = sum(losses[one.mode] for one in before if losses[one.mode] >= NOISE or one.loss.low > 0)
    loss = losses[first.mode]
    if before and (
        surely >= SHARE_BEFORE * loss or perhaps >= SHARE_OF_LARGEST * loss or unknown >= MAX_UNKNOWN_SHARE * loss
    ):
        return None
    return first.mode


def _points(found: Estimate) -> str:
    """Accuracy points with their interval."""
    if math.isnan(found.low):
        return f"{100 * found.value:+.1f} points"
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
