"""Answers that cannot be read: said in place of a comparison that would look like a finding."""

from __future__ import annotations

from typing import Any

import pytest

from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import summarise_variants
from medmllm_plugins.metrics.readability import DEMO_NOTE, unreadable
from medmllm_plugins.metrics.summary import Summary, summarise
from medmllm_plugins.results.metric_files import read_metrics

LABELS = ("a", "b", "c")


def outcomes(count: int, read: int, scores: bool = False, variant: str = "", share_of_a: float = 0.4) -> list[Outcome]:
    """So many documents, of which the first ``read`` were answered rightly and the others not readably."""
    labels = ["a" if index < share_of_a * count else "bc"[index % 2] for index in range(count)]
    labels = labels[::-1] if share_of_a > 0.5 else labels
    return [
        Outcome(
            id=f"{index} {variant}", group=str(index), label=label, predicted=label if index < read else None,
            status="parsed" if index < read else "out_of_list", document=str(index), variant=variant,
            scores=tuple(float(label == other) for other in LABELS) if scores else None,
        )
        for index, label in enumerate(labels)
    ]  # fmt: skip


def figures(rows: list[Outcome]) -> Summary:
    return summarise(rows, LABELS, None, resamples=20)


def test_nothing_read() -> None:
    result = unreadable(figures(outcomes(621, 0)))
    assert result is not None
    assert result.sentences() == (
        "No answer could be read (0 of 621). Accuracy is 0% for that reason alone and says nothing about what the "
        "model knows."
    )
    assert result.sentences(DEMO_NOTE).startswith(
        "No answer could be read (0 of 621). The demo model only knows phantoms. Accuracy"
    )


@pytest.mark.parametrize(("read", "says"), [(12, "Only 12%"), (49, "Only 49%"), (1, "Only 1%")])
def test_little_read(read: int, says: str) -> None:
    result = unreadable(figures(outcomes(100, read)))
    assert result is not None and result.sentences().startswith(f"{says} of the answers could be read ({read} of 100).")
    assert "more about the form of the answers" in result.sentences()


@pytest.mark.parametrize("read", [50, 75, 100])
def test_enough_read(read: int) -> None:
    assert unreadable(figures(outcomes(100, read))) is None


def test_fewer_read_than_a_blind_answer_gets_right() -> None:
    """Then accuracy is below the blind answer's whatever the model knows."""
    result = unreadable(figures(outcomes(100, 80, share_of_a=0.9)))
    assert result is not None and "always answering the most common class would score 90.0%" in result.sentences()
    assert unreadable(figures(outcomes(100, 90, share_of_a=0.9))) is None


def test_label_scores_still_count() -> None:
    result = unreadable(figures(outcomes(100, 0, scores=True)))
    assert result is not None
    assert result.sentences().endswith(
        "The label scores do not depend on the text and still count: accuracy of the highest-scoring label 100.0%, "
        "AUROC 100.0%."
    )


def test_of_several_ways_of_asking_and_of_findings() -> None:
    rows = [*outcomes(50, 0, variant="order 0"), *outcomes(50, 10, variant="order 1")]
    result = unreadable(summarise_variants(rows, LABELS, None, resamples=20))
    assert result is not None and result.count == "Only 10% of the answers could be read (10 of 100)"
    assert result.blind == "always answering the most common class"
    findings = [
        Outcome(
            str(index),
            str(index),
            "yes" if index % 4 == 0 else "no",
            None,
            "refusal",
            None,
            "mass",
            document=str(index),
        )
        for index in range(40)
    ]
    result = unreadable(summarise_findings(findings, ["mass"], resamples=20))
    assert result is not None and result.blind == "always answering no" and result.read == 0


@pytest.mark.parametrize(
    "damaged",
    [{}, {"n": 3}, {"metrics": 3, "n": 4}, {"metrics": {"parsed": None}, "n": 4}, {"metrics": {"parsed": {"value": 0}}},
     {"metrics": {"parsed": {"value": 0.1}}, "n": True}, {"metrics": {"parsed": {"value": "0"}}, "n": 9}],
)  # fmt: skip
def test_figures_that_do_not_tell_are_not_judged(damaged: dict[str, Any]) -> None:
    assert unreadable(read_metrics(damaged)) is None


def test_damaged_baselines_are_left_out() -> None:
    result = unreadable(
        read_metrics({"metrics": {"parsed": {"value": 0.1}}, "n": 100, "baselines": [], "variants": {"x": 3}})
    )
    assert result is not None and result.blind == "" and result.read == 10
