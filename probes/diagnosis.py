"""Diagnose which of the four failure modes the evidence supports; docs/diagnosis.md explains the same rules.

The four modes are those of "Lost in the Hype" (arXiv:2604.08333). Probes measure on held-out documents how much of the
class each stage contains, and each mode is the accuracy lost from one stage to the next:

=============== ==================================================================================================
vision          reference classifier minus the end of the vision tower
connector       end of the vision tower minus the connector
comprehension   connector minus the last token at the end of the LLM
mapping         the latter, or the label that scores highest if it is correct more often, minus the answers
=============== ==================================================================================================

Tower and connector are measured by the mean over patches or tokens (or the class token, if that is better on the
validation fold), the end of the LLM by the prompt's last token after the final norm. A stage cannot know more of the
image than it receives. The tower is therefore credited with what any later stage still shows, and the end of the LLM
with what the label that scores highest shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.probes.curves import BootstrapAccuracies
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, Site
from medmllm_plugins.prompts.feature_options import CLS, LAST, MEAN
from medmllm_plugins.results.probe_records import CONTROL, Diagnosis, Effect, Mode, Verdict

MARGIN: Final = 0.03
"""A loss is supported if it is at least this large and its interval lies above zero."""
TOLERANCE: Final = 0.10
"""A loss is ruled out if its whole interval lies below this."""
MIN_GROUPS: Final = 20
"""With fewer groups in the test fold there is no verdict."""
SHARE_OF_LARGEST: Final = 0.25
"""The first supported loss that is at least this fraction of the largest is named. Stages after a broken one receive
inputs that they were never trained on and often lose more than the broken stage."""
SHARE_BEFORE: Final = 0.1
"""Do not name a stage if supported upstream losses exceed this fraction of its own loss. For upstream losses that are
merely possible the limit is SHARE_OF_LARGEST."""
NOISE: Final = MARGIN / 2
"""A smaller loss whose interval includes zero counts as none."""
MAX_UNKNOWN_SHARE: Final = 0.5
"""If the loss of the tower is unknown, it could be as large as the tower's distance from an accuracy of 1. Do not name
a later stage if this is at least this fraction of its loss."""
ANSWER: Final = "answer"
SCORES: Final = "label scores"
"""The label that scores highest."""
REFERENCE: Final = "reference"
MAJORITY: Final = "majority"


@dataclass(frozen=True, slots=True)
class _Accuracy:
    """The name of a stage, its accuracy, and its accuracy on each bootstrap resample."""

    name: str
    value: float
    resampled: Floats


def diagnose(
    fitted: ProbePredictions, accuracies: BootstrapAccuracies, truth: Ints, scores_validation: float | None
) -> Diagnosis:
    """Judge the four failure modes.

    ``accuracies`` include ``"answer"``, and ``"reference"`` if there is a reference. ``truth`` (v,) are the classes
    of the validation fold, and ``scores_validation`` is the accuracy there of the label that scores highest;
    ``None`` without scores.
    """
    on_validation = (fitted.validation == truth).mean(1)
    stages = _stage_ends(fitted.sites)

    def named(name: str) -> _Accuracy:
        return _Accuracy(name, float(accuracies.values[name]), accuracies.resampled[name])

    def best(indices: Sequence[int]) -> _Accuracy:
        index = max(indices, key=lambda candidate: on_validation[candidate])
        site = fitted.sites[index]
        values, resampled = accuracies.values["probe"], accuracies.resampled["probe"]
        return _Accuracy(f"{site.layer} ({site.pooling})", float(values[index]), resampled[:, index])

    tower, connector, understood = (best(indices) for indices in stages)
    all_ends = [index for indices in stages for index in indices]
    shown = best(all_ends)
    if scores_validation is not None:
        # Chosen on the validation fold, because a choice on the test fold would be biased upwards.
        if scores_validation > on_validation[fitted.index_of(LAST_LAYER, LAST)]:
            understood = named(SCORES)
        if scores_validation > max(on_validation[index] for index in all_ends):
            shown = named(SCORES)
    control = best([index for index, site in enumerate(fitted.sites) if site.part == CONTROL])
    reference = named(REFERENCE) if REFERENCE in accuracies.values else None
    informative = reference is not None and _is_informative(reference, (control, named(MAJORITY)), accuracies)
    effects = (
        _vision_effect(reference, informative, shown, control, accuracies),
        _effect("connector", tower, connector, accuracies),
        _effect("comprehension", connector, understood, accuracies),
        _effect("mapping", understood, named(ANSWER), accuracies),
    )
    return Diagnosis(effects, attribute_loss_to_stage(effects, 0.0 if informative else 1 - shown.value))


def _stage_ends(sites: Sequence[Site]) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of the sites at the ends of tower, connector and LLM, which are always fitted."""
    tower = [index for index, site in enumerate(sites) if site.part == "vision" and site.read]
    last_layer = sites[tower[-1]].layer
    vision = [index for index in tower if sites[index].layer == last_layer and sites[index].pooling in (MEAN, CLS)]
    connector = [index for index, site in enumerate(sites) if site.part == "connector" and site.pooling == MEAN]
    llm = [index for index, site in enumerate(sites) if (site.layer, site.pooling) == (LAST_LAYER, LAST)]
    return vision, connector, llm


def _is_informative(reference: _Accuracy, controls: Sequence[_Accuracy], accuracies: BootstrapAccuracies) -> bool:
    """Return whether a reference is better than the controls; otherwise it cannot rule out a loss."""
    gains = [
        accuracies.estimate(reference.value - control.value, reference.resampled - control.resampled)
        for control in controls
    ]
    return all(gain.value >= MARGIN and gain.low > 0 for gain in gains)


def _vision_effect(
    reference: _Accuracy | None,
    informative: bool,
    shown: _Accuracy,
    control: _Accuracy,
    accuracies: BootstrapAccuracies,
) -> Effect:
    """Compare the tower with the reference, or without one with the best control features."""
    if reference is not None:
        effect = _effect("vision", reference, shown, accuracies)
        if informative or effect.verdict != "not supported":
            return effect
        why = (
            f"{_points(effect.loss)}. The reference ({reference.value:.1%}) is no better than {control.name} "
            f"({control.value:.1%}) or the most common class, so it cannot rule out a loss. Use a better one: "
            "`medmllm baseline TASK --method timm:resnet50`."
        )
        return replace(effect, verdict="cannot tell", why=why)
    gain = accuracies.estimate(shown.value - control.value, shown.resampled - control.resampled)
    if accuracies.groups >= MIN_GROUPS and gain.high < MARGIN:
        loss = accuracies.estimate(control.value - shown.value, control.resampled - shown.resampled)
        why = f"the tower is no better than {control.name}, which does not use it (difference {_points(gain)})."
        return Effect("vision", loss, "supported", why, control.name, shown.name)
    why = (
        "the accuracy of an ordinary classifier on these data is unknown. Run one with `medmllm baseline TASK`, then "
        f"`medmllm diagnose RUN_DIR --reference BASELINE_DIR`. The tower minus {control.name} is {_points(gain)}."
    )
    return Effect("vision", UNKNOWN, "cannot tell", why, control.name, shown.name)


def _effect(mode: Mode, before: _Accuracy, after: _Accuracy, accuracies: BootstrapAccuracies) -> Effect:
    loss = accuracies.estimate(before.value - after.value, before.resampled - after.resampled)
    verdict, why = judge_loss(loss)
    if accuracies.groups < MIN_GROUPS:
        verdict, why = "cannot tell", f"the test fold has {accuracies.groups} groups; at least {MIN_GROUPS} are needed."
    elif before.name == after.name:
        why = f"{after.name} is the best stage itself, so nothing is lost."
    return Effect(mode, loss, verdict, why, before.name, after.name)


def judge_loss(loss: Estimate) -> tuple[Verdict, str]:
    """Return the verdict on a loss of accuracy, and the reason."""
    if np.isnan(loss.low):
        return "cannot tell", "there are too few groups for an interval."
    if loss.low > 0 and loss.value >= MARGIN:
        return "supported", f"a loss of {_points(loss)}; the interval lies above zero."
    if loss.high < TOLERANCE:
        return "not supported", f"a loss of {_points(loss)}; {100 * TOLERANCE:.0f} points or more are ruled out."
    return "cannot tell", f"a loss of {_points(loss)}; the interval is too wide. More documents would narrow it."


def attribute_loss_to_stage(effects: Sequence[Effect], unknown_loss: float) -> Mode | None:
    """Return the failure mode that the losses are attributed to, or ``None``.

    Args:
        effects: one for each mode, in the order of the stages.
        unknown_loss: the largest loss of the tower that could have gone undetected.
    """
    supported = [effect for effect in effects if effect.verdict == "supported"]
    if not supported:
        return None
    # A tower that is no better than the control features may still exceed them slightly.
    losses = {effect.mode: 0.0 if math.isnan(effect.loss.value) else max(0.0, effect.loss.value) for effect in effects}
    largest = max(losses[effect.mode] for effect in supported)
    first = next(effect for effect in supported if losses[effect.mode] >= SHARE_OF_LARGEST * largest)
    upstream = effects[: effects.index(first)]
    certain = sum(losses[effect.mode] for effect in upstream if effect.verdict == "supported")
    possible = sum(losses[effect.mode] for effect in upstream if losses[effect.mode] >= NOISE or effect.loss.low > 0)
    loss = losses[first.mode]
    ambiguous = (
        certain >= SHARE_BEFORE * loss
        or possible >= SHARE_OF_LARGEST * loss
        or unknown_loss >= MAX_UNKNOWN_SHARE * loss
    )
    return None if upstream and ambiguous else first.mode


def _points(difference: Estimate) -> str:
    """Format a difference of accuracies in points, with its interval."""
    if math.isnan(difference.low):
        return f"{100 * difference.value:+.1f} points"
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.value:+.1f} points (95% CI {low:+.1f} to {high:+.1f})"
