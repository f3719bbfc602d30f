"""Which stage is named as the cause of lost accuracy, on stores whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.analysis import MAPPING_CAVEAT, analyse
from medmllm_plugins.probes.diagnosis import attribute_loss_to_stage, judge_loss
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.results.probe_records import MODES, Effect

QUICK = Options(permutations=5, controls=2)
WEAK = 0.25


def wrong_often(truth: int, generator: np.random.Generator) -> int:
    """Right in about 40 of 100 cases."""
    return truth if generator.random() < 0.1 else int(generator.integers(0, 3))


def perfect(outcomes: list[Outcome]) -> Reference:
    return Reference("perfect", Path(), {outcome.id: outcome.label for outcome in outcomes})


PLANTED = {
    "vision": {"clear": dict.fromkeys(("vision.01", "connector", "llm.embed", "llm.00", "llm.norm"), WEAK)},
    "connector": {"clear": dict.fromkeys(("connector", "llm.embed", "llm.00", "llm.norm"), WEAK)},
    "comprehension": {"clear": {"llm.norm/last": WEAK, "llm.00/last": WEAK}},
    "mapping": {},
}


@pytest.mark.parametrize("mode", PLANTED)
def test_the_stage_where_the_class_is_lost_is_named(make_store: Callable[..., Any], mode: str) -> None:
    store, outcomes = make_store((300, 120, 240), answers=wrong_often, **PLANTED[mode])
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named == mode
    effect = result.diagnosis.of(mode)  # type: ignore[arg-type]
    assert effect.verdict == "supported" and effect.loss.low > 0 and effect.loss.value > 0.1
    assert mode in result.headline
    for earlier in result.diagnosis.effects[: result.diagnosis.effects.index(effect)]:
        assert earlier.verdict != "supported"


def test_a_healthy_model_is_called_healthy(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 120, 240))
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named is None
    assert {entry.verdict for entry in result.diagnosis.effects} == {"not supported"}


def test_without_a_reference_the_tower_is_compared_with_the_control_features(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 120, 240))
    vision = analyse(store, outcomes, QUICK).diagnosis.of("vision")
    assert vision.verdict == "cannot tell" and np.isnan(vision.loss.value) and "--reference" in vision.why
    blind = dict.fromkeys(("vision.00", "vision.01", "connector", "llm.embed", "llm.00", "llm.norm"), 0.0)
    store, outcomes = make_store(
        (300, 120, 240), clear={**blind, "control.pixels": 1.0}, name="blind", answers=wrong_often
    )
    result = analyse(store, outcomes, QUICK).diagnosis
    assert result.of("vision").verdict == "supported" and result.named == "vision"
    assert result.of("vision").before == "control.pixels (mean)"


def answered_alike(outcomes: list[Outcome], label: str | None) -> list[Outcome]:
    """The same documents, all answered alike."""
    status = "out_of_list" if label is None else "parsed"
    return [Outcome(entry.id, entry.group, entry.label, label, status) for entry in outcomes]


def test_broken_text_with_good_scores_is_a_fault_of_the_mapping(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((45, 120, 240), clear={"llm.norm/last": 0.5})  # the scores beat the probe
    result = analyse(store, answered_alike(outcomes, None), QUICK, reference=perfect(outcomes))
    comprehension, mapping = (result.diagnosis.of(mode) for mode in ("comprehension", "mapping"))
    assert comprehension.verdict != "supported" and comprehension.after == mapping.before == "label scores"
    assert result.diagnosis.named == "mapping" and mapping.loss.value > 0.9
    assert result.mapping.kind == "decoding" and MAPPING_CAVEAT not in result.headline


def test_a_reference_that_knows_nothing_rules_nothing_out(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 120, 240))
    most_common = {outcome.id: "benign" for outcome in outcomes}
    vision = analyse(store, outcomes, QUICK, reference=Reference("dull", Path(), most_common)).diagnosis.of("vision")
    assert vision.loss.value < -0.5 and vision.verdict == "cannot tell" and "cannot rule out a loss" in vision.why


def test_after_a_tower_of_unknown_quality_small_losses_are_not_attributed(make_store: Callable[..., Any]) -> None:
    poor = dict.fromkeys(("vision.01", "connector", "llm.embed", "llm.00", "llm.norm"), WEAK)
    store, outcomes = make_store((300, 120, 240), clear=poor, answers=wrong_often)
    result = analyse(store, outcomes, QUICK)
    assert result.diagnosis.of("mapping").verdict == "supported" and result.diagnosis.named is None
    assert "an earlier stage may be the cause: mapping (" in result.headline
    assert "Undecided: vision" in result.headline
    assert analyse(store, outcomes, QUICK, reference=perfect(outcomes)).diagnosis.named == "vision"
    # A tower that shows nearly all cannot have lost as much as the words do.
    store, outcomes = make_store((300, 120, 240), answers=wrong_often, name="good")
    assert analyse(store, outcomes, QUICK).diagnosis.named == "mapping"


def effects_of(*losses: tuple[float, float, float]) -> list[Effect]:
    pairs = zip(MODES, losses, strict=True)
    return [Effect(mode, Estimate(*loss), judge_loss(Estimate(*loss))[0], "", "", "") for mode, loss in pairs]


NONE = (0.0, -0.01, 0.01)


@pytest.mark.parametrize(
    ("losses", "unknown", "named"),
    [
        ([NONE, NONE, NONE, (0.05, 0.02, 0.08)], 0.0, "mapping"),
        ([(0.009, -0.005, 0.02), (0.006, -0.01, 0.02), NONE, (0.038, 0.02, 0.06)], 0.0, "mapping"),  # noise before it
        ([(0.028, -0.001, 0.05), (0.019, 0.0, 0.04), NONE, (0.09, 0.05, 0.13)], 0.0, None),  # more than noise
        ([(0.02, 0.01, 0.03), NONE, NONE, (0.07, 0.05, 0.09)], 0.0, None),  # small, but sure
        ([(0.08, 0.05, 0.11), NONE, NONE, (0.30, 0.25, 0.35)], 0.0, "vision"),  # what follows loses more
        ([NONE, (0.07, 0.04, 0.10), NONE, (0.53, 0.48, 0.58)], 0.0, None),  # too small to be all, too large for nothing
        ([NONE, (0.04, 0.02, 0.06), NONE, (0.53, 0.48, 0.58)], 0.0, "mapping"),
        ([(math.nan,) * 3, NONE, NONE, (0.30, 0.25, 0.35)], 0.10, "mapping"),
        ([(math.nan,) * 3, NONE, NONE, (0.30, 0.25, 0.35)], 0.15, None),
        ([NONE, NONE, NONE, NONE], 0.0, None),
    ],
)
def test_which_stage_the_losses_are_attributed_to(
    losses: list[tuple[float, float, float]], unknown: float, named: str | None
) -> None:
    assert attribute_loss_to_stage(effects_of(*losses), unknown) == named


def test_a_tower_slightly_better_than_the_control_features_is_still_named() -> None:
    gain = Estimate(-0.01, -0.02, 0.0)  # what the floors reach less what the tower does
    vision = Effect("vision", gain, "supported", "", "", "")
    assert attribute_loss_to_stage([vision, *effects_of(NONE, NONE, NONE, NONE)[1:]], 0.6) == "vision"


@pytest.mark.parametrize(("answers", "caveat"), [(lambda truth, _: (truth + 1) % 3, False), (wrong_often, True)])
def test_the_caveat_is_added_unless_the_scores_exclude_it(
    make_store: Callable[..., Any], answers: Callable[..., int], caveat: bool
) -> None:
    store, outcomes = make_store((300, 120, 240), answers=answers)
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named == "mapping" and (MAPPING_CAVEAT in result.headline) is caveat


def test_few_groups_cannot_tell(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((150, 60, 30), group=2, answers=wrong_often)
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named is None
    assert {entry.verdict for entry in result.diagnosis.effects} == {"cannot tell"}
    assert all("15 groups" in entry.why for entry in result.diagnosis.effects)


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [
        ((0.10, 0.05, 0.15), "supported"),
        ((0.02, 0.01, 0.03), "not supported"),
        ((0.05, -0.01, 0.11), "cannot tell"),
        ((0.05, -0.01, 0.09), "not supported"),
        ((-0.30, -0.40, -0.20), "not supported"),
        ((0.05, float("nan"), float("nan")), "cannot tell"),
    ],
)
def test_the_rules_of_a_verdict(loss: tuple[float, float, float], verdict: str) -> None:
    assert judge_loss(Estimate(*loss))[0] == verdict


def test_the_mapping_is_that_of_the_last_token(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 200, 240), answers=lambda truth, _: (truth + 1) % 3)
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.mapping.kind == "permuted" and result.mapping.relabelling == (2, 0, 1)
    assert result.mapping.lens is not None
    assert [entry.value for entry in result.mapping.lens] == [pytest.approx(1 / 3, abs=0.12), 1.0]
    assert result.diagnosis.named == "mapping"
