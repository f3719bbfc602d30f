"""Which stage is named as the cause of lost accuracy, on stores whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.analysis import analyse
from medmllm_plugins.probes.chain import Chain, Evidence
from medmllm_plugins.probes.conclusion import Circumstances
from medmllm_plugins.probes.curves import Figure
from medmllm_plugins.probes.diagnosis import diagnose, judge_loss
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.results.anchor_records import AnchorResult, Anchors
from medmllm_plugins.results.probe_records import HANDOVER

QUICK = Options(permutations=5, controls=2)
WEAK = 0.25


def wrong_often(truth: int, generator: np.random.Generator) -> int:
    """Right in about 40 of 100 cases."""
    return truth if generator.random() < 0.1 else int(generator.integers(0, 3))


def right_as_often_as_a_weak_probe(truth: int, generator: np.random.Generator) -> int:
    """Right in about 60 of 100 cases."""
    return truth if generator.random() < 0.4 else int(generator.integers(0, 3))


def perfect(outcomes: list[Outcome]) -> Reference:
    return Reference("perfect", Path(), {outcome.id: outcome.label for outcome in outcomes})


def anchors(verdict: str) -> Anchors:
    """Return a text anchor and a positive control with the same verdict."""
    accuracy = Estimate(1.0, 0.9, 1.0) if verdict == "answered" else Estimate(0.3, 0.1, 0.5)
    results = [
        AnchorResult(kind=kind, n=9, groups=9, accuracy=accuracy, chance=1 / 3, parsed=1.0, recalls={}, verdict=verdict)
        for kind in ("text", "presence")
    ]
    return Anchors(results=tuple(results))


PLANTED = {
    "vision": {"clear": dict.fromkeys(("vision.01", "connector", "llm.embed", "llm.00", "llm.norm"), WEAK)},
    "connector": {"clear": dict.fromkeys(("connector", "llm.embed", "llm.00", "llm.norm"), WEAK)},
    "comprehension": {"clear": {"llm.norm/last": WEAK, "llm.00/last": WEAK}},
    "mapping": {},
}
NAMED = {mode: mode for mode in PLANTED} | {"mapping": HANDOVER}


@pytest.mark.parametrize("mode", PLANTED)
def test_the_stage_where_the_class_is_lost_is_named(make_store: Callable[..., Any], mode: str) -> None:
    answers = wrong_often if mode == "mapping" else right_as_often_as_a_weak_probe
    store, outcomes = make_store((300, 120, 240), answers=answers, **PLANTED[mode])
    outside = anchors("not answered" if mode == "comprehension" else "answered")
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes), anchors=outside)
    assert result.diagnosis.named == NAMED[mode], result.diagnosis
    effect = result.diagnosis.of(mode)  # type: ignore[arg-type]
    assert effect.verdict == "supported" and effect.loss.low > 0 and effect.loss.value > 0.1
    assert effect.bits_lost.low > 0 and effect.probability >= 0.95
    assert NAMED[mode] in result.headline
    for earlier in result.diagnosis.effects[: result.diagnosis.effects.index(effect)]:
        assert earlier.verdict != "supported"


def test_a_healthy_model_is_called_healthy(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((300, 120, 240))
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named is None
    assert {entry.verdict for entry in result.diagnosis.effects} == {"ruled out"}


def test_without_a_reference_the_tower_is_compared_with_better_control_features(
    make_store: Callable[..., Any],
) -> None:
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


def test_no_stage_knows_less_than_a_later_one(make_store: Callable[..., Any]) -> None:
    """A tower whose probe is poor is credited with what the connector, the LLM and the answers show."""
    store, outcomes = make_store((300, 120, 240), clear={"vision.01": WEAK})
    diagnosis = analyse(store, outcomes, QUICK, reference=perfect(outcomes)).diagnosis
    vision, connector, llm, answer = diagnosis.stages[1:]
    assert vision.own.value < 0.7 < 0.95 < vision.accuracy.value and vision.source != "vision.01 (mean)"
    for before, after in itertools.pairwise((vision, connector, llm, answer)):
        assert before.accuracy.value >= after.accuracy.value and before.bits.value >= after.bits.value
    assert diagnosis.named is None and diagnosis.of("vision").verdict == "ruled out"


def test_answers_that_match_the_reference_leave_no_mode_to_name(make_store: Callable[..., Any]) -> None:
    """Right in 90 of 100 cases, while the tower shows nearly all: a loss, but the reference is no better."""
    store, outcomes = make_store(
        (300, 120, 240), answers=lambda truth, generator: truth if generator.random() < 0.85 else (truth + 1) % 3
    )
    as_good = {outcome.id: outcome.predicted for outcome in outcomes}
    diagnosis = analyse(store, outcomes, QUICK, reference=Reference("as good", Path(), as_good)).diagnosis
    assert diagnosis.of("mapping").verdict == "supported" and diagnosis.named is None
    assert "at least as accurate as the reference" in diagnosis.reasons[0]
    assert analyse(store, outcomes, QUICK, reference=perfect(outcomes)).diagnosis.named == HANDOVER


def answered_alike(outcomes: list[Outcome], label: str | None) -> list[Outcome]:
    """The same documents, all answered alike."""
    status = "out_of_list" if label is None else "parsed"
    return [Outcome(entry.id, entry.group, entry.label, label, status) for entry in outcomes]


@pytest.mark.parametrize(("verdict", "named"), [("answered", "mapping"), ("not answered", HANDOVER)])
def test_broken_text_with_good_scores_is_a_fault_of_the_mapping_if_the_anchors_are_answered(
    make_store: Callable[..., Any], verdict: str, named: str
) -> None:
    store, outcomes = make_store((45, 120, 240), clear={"llm.norm/last": 0.5})  # the scores beat the probe
    result = analyse(
        store, answered_alike(outcomes, None), QUICK, reference=perfect(outcomes), anchors=anchors(verdict)
    )
    comprehension, mapping = (result.diagnosis.of(mode) for mode in ("comprehension", "mapping"))
    assert comprehension.verdict != "supported" and comprehension.after == mapping.before == "label scores"
    assert result.diagnosis.named == named and mapping.loss.value > 0.9
    assert result.mapping.kind == "decoding"
    assert ("the text of the answer names no class" in result.headline) is (named == "mapping")


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
    assert "the loss of the tower is not known" in result.headline and "Undecided: vision" in result.headline
    # A tower that shows nearly all cannot have lost as much as the words do.
    store, outcomes = make_store((300, 120, 240), answers=wrong_often, name="good")
    assert analyse(store, outcomes, QUICK).diagnosis.named == HANDOVER


def test_few_groups_cannot_tell(make_store: Callable[..., Any]) -> None:
    store, outcomes = make_store((150, 60, 30), group=2, answers=wrong_often)
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes))
    assert result.diagnosis.named is None
    assert {entry.verdict for entry in result.diagnosis.effects} == {"cannot tell"}
    assert all("15 groups" in entry.why for entry in result.diagnosis.effects)


@pytest.mark.parametrize(
    ("loss", "simultaneous_low", "verdict"),
    [
        ((0.10, 0.05, 0.15), 0.03, "supported"),
        ((0.10, 0.02, 0.18), -0.01, "cannot tell"),  # only the interval of this loss alone lies above zero
        ((0.02, 0.01, 0.03), 0.005, "ruled out"),
        ((0.05, -0.01, 0.11), -0.02, "cannot tell"),
        ((0.05, -0.01, 0.09), -0.02, "ruled out"),
        ((-0.30, -0.40, -0.20), -0.5, "ruled out"),
    ],
)
def test_the_rules_of_a_verdict(loss: tuple[float, float, float], simultaneous_low: float, verdict: str) -> None:
    assert judge_loss(Estimate(*loss), simultaneous_low, 50)[0] == verdict
    assert judge_loss(Estimate(*loss), simultaneous_low, 19)[0] == "cannot tell"


@pytest.mark.parametrize(("anchored", "named"), [(True, "mapping"), (False, HANDOVER)])
def test_exchanged_classes_are_a_fault_of_the_mapping_only_with_an_outside_anchor(
    make_store: Callable[..., Any], anchored: bool, named: str
) -> None:
    store, outcomes = make_store((300, 200, 240), answers=lambda truth, _: (truth + 1) % 3)
    outside = anchors("answered") if anchored else None
    result = analyse(store, outcomes, QUICK, reference=perfect(outcomes), anchors=outside)
    assert result.mapping.kind == "permuted" and result.mapping.relabelling == (2, 0, 1)
    assert result.mapping.lens is not None
    assert [entry.value for entry in result.mapping.lens] == [pytest.approx(1 / 3, abs=0.12), 1.0]
    assert result.diagnosis.named == named
    assert bool(result.diagnosis.candidates) is not anchored


def test_a_step_is_not_charged_with_what_the_end_of_its_stage_shows() -> None:
    """A tie on the validation fold credits the tower with the answers, which know less on the test fold."""

    def evidence(name: str, accuracy: float) -> Evidence:
        figure = Figure(accuracy, accuracy + np.linspace(-0.01, 0.01, 200))
        correct = np.repeat([1.0, 0.0], [round(1000 * accuracy), round(1000 * (1 - accuracy))])
        return Evidence(name, figure, figure, False, figure, figure, correct)

    answer, tower = evidence("answer", 0.836), evidence("vision.03 (mean)", 0.889)
    chain = Chain(
        reference=evidence("reference", 0.911),
        ends=(tower, evidence("connector (mean)", 0.825), evidence("llm.norm (last)", 0.821)),
        credited=(answer, answer, answer, answer),
        bits=(answer.bits,) * 4,
        control=evidence("control.pixels (mean)", 0.4),
        majority=evidence("most common class", 0.3),
        group=np.arange(1000) % 80,
        groups=80,
        effective_groups=80.0,
        answer_p=0.001,
    )
    vision = diagnose(chain, Circumstances()).of("vision")
    assert vision.after == "vision.03 (mean)" and vision.loss.value == pytest.approx(0.022)
