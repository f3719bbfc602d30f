"""Figures of multi-label sets against scikit-learn and hand-computed values."""

import json

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy.special import softmax
from support.score_interval import score_interval

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.multilabel import summarise_findings
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.results.metric_files import write_metrics

FINDINGS = ("edema", "mass", "hernia")


def random_outcomes(n=80, groups=25, seed=0, scored=True):
    generator = np.random.default_rng(seed)
    outcomes = []
    for i in range(n):
        for finding in FINDINGS:
            truth = "yes" if generator.random() < 0.3 else "no"
            scores = generator.normal(size=2)
            scores[("yes", "no").index(truth)] += 1
            answer = ("yes", "no")[int(scores.argmax())] if generator.random() < 0.9 else None
            outcomes.append(
                Outcome(
                    f"d{i} | {finding}",
                    f"g{i % groups}",
                    truth,
                    answer,
                    "parsed" if answer else "refusal",
                    tuple(scores) if scored else None,
                    finding=finding,
                    document=f"d{i}",
                )
            )
    return outcomes


def test_each_finding_equals_scikit_learn():
    outcomes = random_outcomes()
    summary = summarise_findings(outcomes, FINDINGS, resamples=50)
    assert [entry.finding for entry in summary.per_finding] == list(FINDINGS)
    for result in summary.per_finding:
        mine = [outcome for outcome in outcomes if outcome.finding == result.finding]
        truth = [outcome.label for outcome in mine]
        answer = [outcome.predicted or "neither" for outcome in mine]
        yes = softmax([outcome.scores for outcome in mine], axis=1)[:, 0]
        recalls = reference.recall_score(truth, answer, labels=["yes", "no"], average=None)
        positive = np.array(truth) == "yes"
        expected = {
            "sensitivity": recalls[0],
            "specificity": recalls[1],
            "balanced": recalls.mean(),
            "f1": reference.f1_score(truth, answer, labels=["yes"], average=None)[0],
            "mcc": reference.matthews_corrcoef(truth, answer),
            "parsed": np.mean([outcome.status == "parsed" for outcome in mine]),
            "auroc": reference.roc_auc_score(positive, yes),
            "auprc": reference.average_precision_score(positive, yes),
        }
        assert {name: item.value for name, item in result.metrics().items()} == pytest.approx(expected)
        assert (result.n, result.positives) == (80, positive.sum())


def test_the_whole_is_made_of_the_findings():
    outcomes = random_outcomes()
    summary = summarise_findings(outcomes, FINDINGS, resamples=50)
    right = [outcome.label == outcome.predicted for outcome in outcomes]
    assert summary.metrics["accuracy"].value == pytest.approx(np.mean(right))
    for macro, name in (("balanced", "balanced"), ("macro_f1", "f1"), ("auroc", "auroc"), ("auprc", "auprc")):
        mean = np.mean([entry.metrics()[name].value for entry in summary.per_finding])
        assert summary.metrics[macro].value == pytest.approx(mean)
    assert summary.exact_match.value == pytest.approx(np.array(right).reshape(-1, 3).all(1).mean())
    assert (summary.n, summary.n_documents, summary.n_groups, summary.findings_in_means) == (240, 80, 25, 3)
    assert all(metric.low <= metric.value <= metric.high for metric in summary.metrics.values())


def test_intervals_equal_a_bootstrap_written_out():
    outcomes = random_outcomes(n=30, groups=10)
    summary = summarise_findings(outcomes, FINDINGS, resamples=200, seed=3)
    names = sorted({outcome.group for outcome in outcomes})
    generator = np.random.default_rng(3)
    accuracies = []
    for row in generator.integers(10, size=(200, 10)):
        drawn = [outcome for g in row for outcome in outcomes if outcome.group == names[g]]
        accuracies.append(np.mean([outcome.label == outcome.predicted for outcome in drawn]))
    accuracy = summary.metrics["accuracy"]
    assert (accuracy.low, accuracy.high) == pytest.approx(score_interval(accuracy.value, accuracies, 10))


def test_a_finding_that_is_never_there_is_in_no_mean():
    outcomes = [
        Outcome(f"{i} {finding}", str(i), "yes" if finding == "mass" and i < 2 else "no", "no", "parsed", None, finding)
        for i in range(4)
        for finding in ("mass", "hernia")
    ]
    summary = summarise_findings(outcomes, FINDINGS, resamples=20)
    assert summary.findings_in_means == 1 and [entry.finding for entry in summary.per_finding] == ["mass", "hernia"]
    assert summary.metrics["balanced"].value == pytest.approx(0.5)
    assert np.isnan(summary.per_finding[1].metrics()["balanced"].value)
    assert summary.metrics["accuracy"].value == summary.always_no == 0.75
    assert "auroc" not in summary.metrics


def test_order_changes_nothing_and_json_holds_everything(tmp_path):
    outcomes = random_outcomes(scored=False)
    summary = summarise_findings(outcomes, FINDINGS, resamples=20)
    assert summarise_findings(outcomes[::-1], FINDINGS, resamples=20) == summary
    files = write_metrics(tmp_path, "t", summary)
    assert json.loads(files[0].read_text())["metrics"]["accuracy"]["value"] == summary.metrics["accuracy"].value
    assert files[2].read_text().splitlines()[0].startswith("finding,n,positives,sensitivity,sensitivity_low")
    assert "yes/no questions" in summary.headline()


def test_an_unknown_finding_is_an_error():
    with pytest.raises(DataError, match="mess"):
        summarise_findings([Outcome("1", "g", "no", "no", "parsed", finding="mess")], FINDINGS)
