"""The three forms of label scores, against scikit-learn and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.label_scores import FORMS, forms
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import summarise

LABELS = ("a", "b", "c")


def outcomes(count: int = 120, *, beside: bool = True) -> list[Outcome]:
    generator = np.random.default_rng(0)
    rows = []
    for index in range(count):
        truth = int(generator.integers(3))
        scores = generator.normal(size=3) - 3
        scores[truth] += 1
        scores[0] += 2  # a label that is said whatever the image
        rows.append(
            Outcome(
                f"{index:03d}",
                str(index // 2),
                LABELS[truth],
                None,
                "out_of_list",
                tuple(map(float, scores)),
                tokens=(1, 2, 4) if beside else None,
                blank=(-1.0, -3.0, -3.0) if beside else None,
            )
        )
    return rows


def test_forms_by_hand() -> None:
    row = Outcome("1", "g", "a", "a", "parsed", (-4.0, -6.0), tokens=(1, 3), blank=(-1.0, -5.0))
    assert {name: scores.tolist() for name, scores in forms([row]).items()} == {
        "sum": [[-4.0, -6.0]],
        "mean": [[-4.0, -2.0]],
        "calibrated": [[-3.0, -1.0]],
    }
    assert set(forms(outcomes(beside=False))) == {"sum"}
    assert forms([row, Outcome("2", "g", "a", "a", "parsed")]) == {} and forms([]) == {}


def test_figures_equal_scikit_learns() -> None:
    rows = outcomes()
    result = summarise(rows, LABELS, None, resamples=50).label_scores
    assert tuple(result) == FORMS
    truth = np.array([LABELS.index(row.label) for row in rows])
    for name, scores in forms(rows).items():
        answer = scores.argmax(1)
        assert result[name]["accuracy"].value == pytest.approx(sk.accuracy_score(truth, answer))
        assert result[name]["balanced"].value == pytest.approx(sk.balanced_accuracy_score(truth, answer))
        assert result[name]["macro_f1"].value == pytest.approx(
            sk.f1_score(truth, answer, average="macro", labels=range(3), zero_division=0)
        )
        if name != "sum":
            assert "auroc" not in result[name]
            continue
        likely = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        expected = sk.roc_auc_score(truth, likely, multi_class="ovr", average="macro")
        assert result[name]["auroc"].value == pytest.approx(expected)
        assert result[name]["auroc"].low < result[name]["auroc"].value < result[name]["auroc"].high
    # What the words alone suggest is taken out.
    assert result["calibrated"]["balanced"].value > result["sum"]["balanced"].value + 0.1


def test_without_scores_there_are_no_forms() -> None:
    rows = [Outcome(str(index), str(index), "ab"[index % 2], "a", "parsed") for index in range(8)]
    assert summarise(rows, ("a", "b"), None).label_scores == {}


@pytest.mark.parametrize(
    "beside",
    [
        {"tokens": (1,)},
        {"blank": (-1.0,)},
        {"tokens": (0, 1)},
        {"blank": (float("nan"), 0.0)},
        {"scores": None, "tokens": (1, 1)},
    ],
)
def test_what_does_not_go_with_the_scores(beside: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Outcome(
            **{
                "id": "1",
                "group": "g",
                "label": "a",
                "predicted": "a",
                "status": "parsed",
                "scores": (-1.0, -2.0),
                **beside,
            }
        )  # type: ignore[arg-type]


def test_they_survive_a_file() -> None:
    row = outcomes(1)[0]
    assert Outcome.from_dict(row.to_dict()) == row
