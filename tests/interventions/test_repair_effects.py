"""What a repair gains: comparisons of answers and the choice among repairs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medmllm_plugins.interventions.repair_effects import calibration_error, compare_answers, judge, parameters_in_words
from medmllm_plugins.metrics.intervals import UNKNOWN, Estimate
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.repair_files import gain_rows
from medmllm_plugins.results.repair_records import LearningPoint, RepairResult, RepairStudy, RepairTransfer


def outcomes(correct: list[bool], scores: tuple[float, ...] | None = None) -> list[Outcome]:
    return [
        Outcome(f"d{index}", f"g{index // 2}", "a", "a" if hit else "b", "parsed", scores)
        for index, hit in enumerate(correct)
    ]


def gain(points: float, half: float = 2.0) -> Estimate:
    return Estimate(points / 100, (points - half) / 100, (points + half) / 100)


def result(name: str, points: float, *, validation: float | None = None, parameters: int = 0) -> RepairResult:
    return RepairResult(
        name=name,
        title=name.replace("_", " "),
        stage="output",
        parameters=parameters,
        seconds=1.0,
        steps=10 if parameters else 0,
        documents=100,
        validation_gain=gain(points if validation is None else validation),
        accuracy=Estimate(0.8, 0.7, 0.9),
        gain=gain(points),
        shuffled_gain=gain(0.0),
        over_shuffled=gain(points),
        fixed=5,
        broken=1,
        parsed=1.0,
        ece=0.1,
    )


def study(*repairs: RepairResult) -> RepairStudy:
    return judge(
        RepairStudy(
            task="t",
            model="m",
            n=100,
            groups=50,
            accuracy=Estimate(0.7, 0.6, 0.8),
            parsed=1.0,
            ece=0.2,
            repairs=repairs,
        )
    )


def test_answers_are_compared_in_pairs_whatever_their_order() -> None:
    before = [True] * 50 + [False] * 30
    after = [True] * 45 + [False] * 5 + [True] * 20 + [False] * 10
    shuffled = outcomes(after)
    np.random.default_rng(0).shuffle(shuffled)  # type: ignore[arg-type]
    compared = compare_answers(outcomes(before), shuffled)
    assert (compared.fixed, compared.broken) == (20, 5)
    assert compared.before.value == pytest.approx(50 / 80) and compared.after.value == pytest.approx(65 / 80)
    assert compared.gain.value == pytest.approx(15 / 80) and 0 < compared.gain.low < 15 / 80 < compared.gain.high


def test_accuracy_is_compared_with_the_most_common_answer() -> None:
    labels = ["a"] * 60 + ["b"] * 40
    rows = [replace(outcome, label=label) for outcome, label in zip(outcomes([False] * 100), labels, strict=True)]
    unread = [replace(outcome, predicted=None, status="refusal") for outcome in rows]
    constant = [replace(outcome, predicted="a") for outcome in rows]
    right = [replace(outcome, predicted=outcome.label) for outcome in rows]
    guessed, repaired = compare_answers(unread, constant), compare_answers(unread, right)
    assert guessed.gain.low > 0 and guessed.over_guess.value == 0 and guessed.over_guess.low < 0
    assert repaired.over_guess.value == pytest.approx(0.4) and repaired.over_guess.low > 0


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy() -> None:
    confident = outcomes([True] * 6 + [False] * 4, (math.log(0.9), math.log(0.1)))
    labelled = [replace(outcome, label="a" if outcome.predicted == "a" else "b") for outcome in confident]
    assert calibration_error(labelled, ("a", "b")) == pytest.approx(0.9 - 0.6)
    assert math.isnan(calibration_error(outcomes([True]), ("a", "b")))


def test_cheapest_and_best_are_named() -> None:
    judged = study(
        result("class_bias", 6.2), result("adapter", 10.0, parameters=8_000), result("lora", 14.0, parameters=1_100_000)
    )
    assert (judged.cheapest, judged.best) == ("class_bias", "lora")
    assert judged.sentence == (
        "Cheapest repair: class bias, +6.2 points (95% CI +4.2 to +8.2), no training; best: lora, +14.0 points (95% CI "
        "+12.0 to +16.0), 1.1 M parameters."
    )
    assert [repair.pareto for repair in judged.repairs] == [True, True, True]


@pytest.mark.parametrize(
    "doubtful",
    [
        result("lora", 1.5),  # the interval of the test fold reaches zero
        result("lora", 8.0, validation=1.0),  # that of the validation fold does
        replace(result("lora", 8.0), over_shuffled=gain(1.0)),  # shuffled labels gain nearly as much
        replace(result("class_bias", 53.0), over_guess=gain(3.0, 10.0)),  # no better than one constant answer
        replace(result("lora", 0.5), gain=Estimate(0.005, 0.001, 0.009)),  # too small
        result("lora", -8.0),
    ],
)
def test_nothing_is_claimed_where_nothing_helps_beyond_doubt(doubtful: RepairResult) -> None:
    judged = study(doubtful)
    assert (judged.cheapest, judged.best) == ("", "")
    assert judged.sentence == (
        "No repair helps: none of 1 candidates gains on the validation and the test fold beyond doubt."
    )


def test_a_repair_without_a_control_can_help() -> None:
    assert study(replace(result("wording", 9.0), shuffled_gain=UNKNOWN, over_shuffled=UNKNOWN)).cheapest == "wording"


def test_what_a_repair_harms_is_said() -> None:
    places = {"t_letter": gain(-5.0), "other wordings": gain(7.0), "t_open": gain(0.0)}
    transfers = tuple(
        RepairTransfer(task=task, n=10, before=gain(50), after=gain(50), gain=change) for task, change in places.items()
    )
    judged = study(replace(result("soft_prompt", 9.0, parameters=2_048), transfers=transfers))
    assert judged.sentence.endswith(
        ", 2.0 k parameters, also the best. Soft prompt also gains on other wordings. Soft prompt loses on t_letter."
    )


def test_a_repair_that_a_cheaper_one_equals_is_not_on_the_front() -> None:
    judged = study(
        result("a", 5.0), result("b", 5.0, parameters=10), result("c", 7.0, parameters=20), result("d", -3.0)
    )
    assert [repair.pareto for repair in judged.repairs] == [True, False, True, False]


def test_a_study_survives_its_file_and_has_a_row_for_each_figure() -> None:
    curve = (LearningPoint(documents=32, gain=gain(2.0)),)
    transfers = (RepairTransfer(task="x", n=1, before=gain(1), after=gain(2), gain=gain(1)),)
    judged = study(replace(result("lora", 9.0, parameters=5), curve=curve, transfers=transfers))
    assert RepairStudy.from_dict(judged.to_dict()) == judged
    rows = list(gain_rows(judged))
    assert [row[3] for row in rows] == [
        *(
            "accuracy",
            "ece",
            "accuracy",
            "gain",
            "validation_gain",
            "shuffled_gain",
            "over_shuffled",
            "over_guess",
            "ece",
            "gain",
            "gain_from_32",
        )
    ]
    assert rows[3][:6] == ("lora", "output", 5, "gain", "t", 0.09)
    with pytest.raises(KeyError):
        judged.of("nothing")


def test_numbers_of_parameters_are_short() -> None:
    assert [parameters_in_words(count) for count in (20, 8_320, 1_100_000)] == ["20", "8.3 k", "1.1 M"]
