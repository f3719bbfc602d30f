"""The summary of a run: right figures, whatever the order; files that agree with each other; errors that name."""

import csv
import json
import math
import os
import random

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from support.score_interval import score_interval

from medmllm_plugins.errors import DataError, OptionError
from medmllm_plugins.metrics.outcomes import STATUSES, Outcome
from medmllm_plugins.metrics.ranking import auroc_variances
from medmllm_plugins.metrics.summary import summarise
from medmllm_plugins.results.metric_files import write_metrics

LABELS = ("benign", "malignant", "normal")


def random_outcomes(n=120, groups=50, labels=LABELS, seed=0, scores=True):
    generator = np.random.default_rng(seed)
    items = []
    for i in range(n):
        status = STATUSES[generator.choice(4, p=[0.8, 0.1, 0.06, 0.04])]
        items.append(
            Outcome(
                id=f"image-{i}",
                group=f"patient-{generator.integers(groups)}",
                label=labels[generator.integers(len(labels))],
                predicted=labels[generator.integers(len(labels))] if status == "parsed" else None,
                status=status,
                scores=tuple(generator.normal(size=len(labels)).tolist()) if scores else None,
            )
        )
    return items


@st.composite
def runs(draw):
    labels = [f"class {k}" for k in range(draw(st.integers(2, 4)))]
    with_scores = draw(st.booleans())
    outcomes = []
    for identifier in draw(st.lists(st.text(max_size=4), min_size=1, max_size=14, unique=True)):
        predicted = draw(st.sampled_from([None, *labels]))
        numbers = st.floats(-30, 0) | st.integers(-2, 0).map(float)
        outcomes.append(
            Outcome(
                id=identifier,
                group=draw(st.sampled_from(["", "a", "a\0", "b", "é"])),
                label=draw(st.sampled_from(labels)),
                predicted=predicted,
                status=draw(st.sampled_from(STATUSES[1:])) if predicted is None else "parsed",
                scores=tuple(draw(numbers) for _ in labels) if with_scores else None,
            )
        )
    return outcomes, labels, draw(st.none() | st.sampled_from(labels))


@settings(max_examples=100)
@given(runs(), st.randoms(use_true_random=False))
def test_order_changes_nothing_and_json_holds_everything(run, shuffler):
    outcomes, labels, positive = run
    first = summarise(outcomes, labels, positive, resamples=40, seed=3).to_dict()
    shuffled = list(outcomes)
    shuffler.shuffle(shuffled)
    assert summarise(shuffled, labels, positive, resamples=40, seed=3).to_dict() == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert sum(map(sum, first["confusion"]["counts"])) == first["n"] == sum(first["statuses"].values())
    assert first["n_groups"] == len({outcome.group for outcome in outcomes})
    for name, item in first["metrics"].items():
        assert (item["low"] is None) == (item["high"] is None)
        if first["n_groups"] == 1:
            assert item["low"] is None, name
        elif item["low"] is not None:
            assert -1 <= item["low"] <= item["high"] <= (2 if name == "brier" else 1)


def written_out_ece(probability, truth):
    """Expected calibration error of Guo et al. 2017, bin by bin."""
    confidence, right = probability.max(1), probability.argmax(1) == np.array(truth)
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_kappa_of_grades_equals_scikit_learn():
    outcomes = [
        Outcome(str(i), str(i % 7), LABELS[t], LABELS[a], "parsed")
        for i, (t, a) in enumerate(np.random.default_rng(3).integers(3, size=(60, 2)).tolist())
    ]
    result = summarise(outcomes, LABELS, None, kind="ordinal", resamples=20).metrics["kappa"].value
    truth, answer = ([LABELS.index(getattr(o, name)) for o in outcomes] for name in ("label", "predicted"))
    assert result == pytest.approx(reference.cohen_kappa_score(truth, answer, weights="quadratic"))
    refused = [Outcome(o.id, o.group, o.label, None, "refusal") if o.label != o.predicted else o for o in outcomes]
    assert summarise(refused, LABELS, None, kind="ordinal", resamples=20).metrics["kappa"].value < result
    assert "kappa" not in summarise(outcomes, LABELS, None, resamples=20).metrics


def test_no_name_of_a_metric_holds_another():
    """The host finds a group's metrics by substring."""
    names = [*summarise(random_outcomes(), LABELS, None, kind="ordinal", resamples=10).metrics, "spread", "flips"]
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_the_reliability_table_counts_every_document():
    result = summarise(random_outcomes(), LABELS, None, resamples=10)
    assert sum(item.n for item in result.reliability) == result.n and len(result.reliability) == 15
    assert all(item.low - 1e-9 <= item.confidence <= item.high + 1e-9 for item in result.reliability if item.n)


def test_values_equal_scikit_learn():
    outcomes = random_outcomes()
    truth = [outcome.label for outcome in outcomes]
    answer = [outcome.predicted or "none of them" for outcome in outcomes]
    scores = np.array([outcome.scores for outcome in outcomes])
    summary = summarise(outcomes, LABELS, "malignant", resamples=10)
    expected = {
        "accuracy": reference.accuracy_score(truth, answer),
        "balanced": np.mean(reference.recall_score(truth, answer, labels=list(LABELS), average=None)),
        "macro_f1": reference.f1_score(truth, answer, labels=list(LABELS), average="macro"),
        "mcc": reference.matthews_corrcoef(truth, answer),
        "auroc": reference.roc_auc_score(truth, softmax(scores, axis=1), multi_class="ovr", labels=list(LABELS)),
        "parsed": np.mean([outcome.status == "parsed" for outcome in outcomes]),
        "auprc": reference.average_precision_score(
            np.array(truth)[:, None] == np.array(LABELS), softmax(scores, axis=1), average="macro"
        ),
        "brier": ((softmax(scores, axis=1) - (np.array(truth)[:, None] == np.array(LABELS))) ** 2).sum(1).mean(),
        "ece": written_out_ece(softmax(scores, axis=1), [LABELS.index(label) for label in truth]),
    }
    assert {name: item.value for name, item in summary.metrics.items()} == pytest.approx(expected)
    assert summary.sensitivity == summary.per_class[1].sensitivity
    assert summary.specificity == summary.per_class[1].specificity
    recalls = reference.recall_score(truth, answer, labels=list(LABELS), average=None)
    assert [clas.sensitivity.value for clas in summary.per_class] == pytest.approx(list(recalls))
    square = reference.confusion_matrix(truth, answer, labels=list(LABELS))
    assert [row[:3] for row in summary.confusion.counts] == [tuple(row) for row in square.tolist()]
    assert summary.statuses == {s: sum(outcome.status == s for outcome in outcomes) for s in STATUSES}


def written_out_inflation(hits: list[bool], groups: list[str]) -> float:
    """The variance of the mean by the correlation of Fleiss and Cuzick, over that between groups; at least 1."""
    n, p = len(hits), np.mean(hits)
    members = {name: [hit for hit, group in zip(hits, groups, strict=True) if group == name] for name in set(groups)}
    within = sum(sum(row) * (len(row) - sum(row)) / len(row) for row in members.values())
    correlation = 1 - within / ((n - len(members)) * p * (1 - p))
    expected = p * (1 - p) * (1 + correlation * (sum(len(row) ** 2 for row in members.values()) / n - 1)) / n
    return max(1.0, expected / (sum((sum(row) - p * len(row)) ** 2 for row in members.values()) / n**2))


def test_intervals_equal_a_bootstrap_written_out():
    """The vectorised resampling against explicit copies of documents and scikit-learn on each copy."""
    outcomes = random_outcomes(n=60, groups=20, seed=4)
    by_group = {}
    for outcome in outcomes:
        by_group.setdefault(outcome.group, []).append(outcome)
    names = sorted(by_group)
    draws = np.random.default_rng(9).integers(len(names), size=(150, len(names)))
    values = {"accuracy": [], "balanced": [], "macro_f1": [], "mcc": [], "auroc": [], "parsed": []}
    for draw in draws:
        sample = [outcome for g in draw for outcome in by_group[names[g]]]
        truth = [outcome.label for outcome in sample]
        answer = [outcome.predicted or "none of them" for outcome in sample]
        assert set(truth) == set(LABELS)  # else scikit-learn's and our means over classes differ
        kept = {"labels": list(LABELS), "average": "macro", "zero_division": 0}
        probability = softmax([outcome.scores for outcome in sample], axis=1)
        values["accuracy"].append(reference.accuracy_score(truth, answer))
        values["balanced"].append(reference.recall_score(truth, answer, **kept))
        values["macro_f1"].append(reference.f1_score(truth, answer, **kept))
        values["mcc"].append(reference.matthews_corrcoef(truth, answer))
        values["auroc"].append(reference.roc_auc_score(truth, probability, multi_class="ovr", labels=list(LABELS)))
        values["parsed"].append(np.mean([outcome.status == "parsed" for outcome in sample]))
    summary = summarise(outcomes, LABELS, None, resamples=150, seed=9)
    groups = 60**2 / sum(len(members) ** 2 for members in by_group.values())
    for name, resampled in values.items():
        metric = summary.metrics[name]
        # What a metric's variance is enlarged by follows from the share it rests on.
        shares = [outcome.predicted == outcome.label for outcome in outcomes]
        if name == "parsed":
            shares = [outcome.predicted is not None for outcome in outcomes]
        inflation = written_out_inflation(shares, [outcome.group for outcome in outcomes])
        if name == "auroc":
            probability = softmax([outcome.scores for outcome in outcomes], axis=1)
            group = np.array([names.index(outcome.group) for outcome in outcomes])
            variances = [
                auroc_variances(column, np.array([outcome.label == label for outcome in outcomes]), group)
                for label, column in zip(LABELS, probability.T, strict=True)
            ]
            inflation = sum(max(pair) for pair in variances) / sum(observed for observed, _ in variances)
        enlarged = np.array(resampled) * math.sqrt(inflation)
        ends = score_interval(metric.value, enlarged, groups, low=-1.0 if name == "mcc" else 0.0)
        assert (metric.low, metric.high) == pytest.approx(ends), name


def test_splitting_the_resamples_into_parts_changes_nothing(monkeypatch):
    outcomes = random_outcomes(n=40, groups=15)
    whole = summarise(outcomes, LABELS, "malignant", resamples=64).to_dict()
    monkeypatch.setattr("medmllm_plugins.metrics.intervals._CELLS", 40 * 8)
    assert summarise(outcomes, LABELS, "malignant", resamples=64).to_dict() == whole


def test_seed_decides_the_intervals():
    outcomes = random_outcomes()
    first, again, other = (summarise(outcomes, LABELS, None, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.metrics["accuracy"].value == other.metrics["accuracy"].value
    assert first.metrics["accuracy"] != other.metrics["accuracy"]


def test_auroc_needs_scores_everywhere_and_two_classes():
    outcomes = random_outcomes(n=30)
    assert "auroc" in summarise(outcomes, LABELS, None, resamples=5).metrics
    one_without = [Outcome("more", "g", "normal", "normal", "parsed"), *outcomes]
    assert "auroc" not in summarise(one_without, LABELS, None, resamples=5).metrics
    one_class = [outcome for outcome in outcomes if outcome.label == "normal"]
    assert "auroc" not in summarise(one_class, LABELS, None, resamples=5).metrics


def test_a_class_within_one_group_has_no_interval_of_its_own():
    outcomes = [Outcome(f"n{i}", f"g{i}", "normal", "normal" if i % 3 else "benign", "parsed") for i in range(12)]
    outcomes += [
        Outcome(f"m{i}", "g0", "malignant", "malignant" if i else None, "parsed" if i else "refusal") for i in (0, 1)
    ]
    summary = summarise(outcomes, LABELS, "malignant", resamples=200)
    benign, malignant, normal = (clas.to_dict() for clas in summary.per_class)
    assert malignant["sensitivity"] == {"value": 0.5, "low": None, "high": None}
    assert malignant["specificity"]["low"] is not None
    assert (malignant["n"], malignant["n_groups"]) == (2, 1)
    assert normal["sensitivity"]["low"] < normal["sensitivity"]["value"] < normal["sensitivity"]["high"]
    assert benign["sensitivity"]["value"] is None
    assert benign["precision"] == 0
    assert benign["f1"] == 0
    assert (malignant["parsed"], normal["parsed"], benign["parsed"]) == (0.5, 1, None)


def test_nothing_parsed():
    outcomes = [Outcome(str(i), str(i), LABELS[i % 3], None, "refusal") for i in range(9)]
    result = summarise(outcomes, LABELS, "normal", resamples=50).to_dict()
    assert {name: value["value"] for name, value in result["metrics"].items()} == {
        "accuracy": 0,
        "balanced": 0,
        "macro_f1": 0,
        "mcc": 0,
        "parsed": 0,
    }
    assert result["accuracy_on_parsed"] == {"value": None, "low": None, "high": None}
    assert result["specificity"]["value"] == 0
    assert result["confusion"]["columns"][-1] == "(refusal)"
    assert [row[-1] for row in result["confusion"]["counts"]] == [3, 3, 3]


def test_csv_files_equal_the_json(tmp_path):
    labels = ("benign, or not", 'so-called "normal"', "tumör")
    outcomes = random_outcomes(labels=labels)
    paths = write_metrics(tmp_path / "new", "med_cls_x", summarise(outcomes, labels, "tumör", resamples=50))
    names = ["med_cls_x.metrics.json", "med_cls_x.metrics.csv", "med_cls_x.per_class.csv", "med_cls_x.confusion.csv"]
    names.append("med_cls_x.label_scores.csv")
    assert [path.name for path in paths] == names
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)  # no draft is left behind
    written = json.loads(paths[0].read_text(encoding="utf-8"))
    metrics, per_class, confusion, forms = (pd.read_csv(path, engine="python") for path in paths[1:])
    for row in forms.to_dict("records"):
        content = {key: row[key] for key in ("value", "low", "high")}
        assert content == written["label_scores"][row["form"]][row["metric"]]

    expected = dict(written["metrics"])
    expected.update({name: written[name] for name in ("accuracy_on_parsed", "sensitivity", "specificity")})
    ends = metrics.set_index("metric")[["value", "low", "high"]]
    assert ends.to_dict("index") == expected
    for name, scores in written["baselines"].items():
        assert metrics.set_index("metric")[name].dropna().to_dict() == scores

    for row, item in zip(per_class.to_dict("records"), written["per_class"], strict=True):
        assert {key: row[key] for key in ("label", "n", "n_groups", "precision", "f1", "parsed")} == {
            key: item[key] for key in ("label", "n", "n_groups", "precision", "f1", "parsed")
        }
        for name in ("sensitivity", "specificity"):
            columns = {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
            assert columns == item[name]

    assert confusion["true"].tolist() == written["confusion"]["rows"]
    assert confusion.columns.tolist()[1:] == written["confusion"]["columns"]
    assert confusion.drop(columns="true").to_numpy().tolist() == written["confusion"]["counts"]


def test_undefined_numbers_are_empty_cells(tmp_path):
    outcomes = [Outcome(str(i), "one", "benign", "benign", "parsed") for i in range(3)]
    paths = write_metrics(tmp_path, "x", summarise(outcomes, LABELS, None, resamples=5))
    with paths[1].open(encoding="utf-8", newline="") as handle:
        rows = {row["metric"]: row for row in csv.DictReader(handle)}
    assert (rows["accuracy"]["value"], rows["accuracy"]["low"]) == ("1.0", "")
    assert "NaN" not in paths[0].read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    summary = summarise(random_outcomes(n=10), LABELS, None, resamples=5)
    target = tmp_path / "x.metrics.json"
    target.write_text("old", encoding="utf-8")

    def fail(source, destination):
        raise OSError("no space left on device")

    monkeypatch.setattr("medmllm_plugins.utils.atomic_files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_metrics(tmp_path, "x", summary)
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == [target.name]


def test_headline_names_what_to_beat():
    outcomes = [Outcome(str(i), str(i), LABELS[i % 2], LABELS[0], "parsed") for i in range(10)]
    text = summarise(outcomes, LABELS, None, resamples=20).headline()
    assert text.startswith("accuracy 50.0% (95% CI ")
    assert "majority class 50.0%" in text
    assert "100.0% of 10 answers parsed, 10 groups." in text
    alone = [Outcome(str(i), "g", LABELS[0], LABELS[0], "parsed") for i in range(2)]
    assert "no interval: one group" in summarise(alone, LABELS, None, resamples=2).headline()


def test_an_unknown_true_class_names_twenty_and_the_count():
    outcomes = [Outcome(f"{i:02}", "g", "cyst", "normal", "parsed") for i in range(33)]
    random.Random(0).shuffle(outcomes)
    with pytest.raises(DataError, match=r"true class .* in 33 documents") as raised:
        summarise(outcomes, LABELS, None)
    assert "('19', 'cyst'), …" in str(raised.value)
    assert "'20'" not in str(raised.value)


def test_an_unknown_predicted_class_is_named():
    with pytest.raises(DataError, match=r"predicted class .* in 1 documents \(id, class\): \('a', 'cyst'\)\."):
        summarise([Outcome("a", "g", "normal", "cyst", "parsed")], LABELS, None)


def test_repeated_ids_are_named():
    outcomes = [Outcome(i, "g", "normal", "normal", "parsed") for i in "abcbaa"]
    with pytest.raises(DataError, match="got 2 more than once: 'a', 'b'"):
        summarise(outcomes, LABELS, None)


def test_no_outcomes():
    with pytest.raises(DataError, match="at least one scored document"):
        summarise([], LABELS, None)


def test_a_wrong_number_of_scores_is_named():
    with pytest.raises(DataError, match=r"Expected 3 scores .* \('a', 2\)"):
        summarise([Outcome("a", "g", "normal", None, "refusal", (0.0, -1.0))], LABELS, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["normal"]}, "at least two"),
        ({"labels": ["normal", "normal"]}, "different"),
        ({"labels": ["normal", "(refusal)"]}, "none of them in"),
        ({"positive": "cyst"}, "'cyst'"),
        ({"resamples": 0}, "`resamples`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_options_are_checked(change, words):
    arguments = {"labels": LABELS, "positive": None, **change}
    with pytest.raises(OptionError, match=r"Expected argument") as raised:
        summarise([Outcome("a", "g", "normal", "normal", "parsed")], **arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize("stem", ["", "a/b", "../x", "/x"])
def test_the_stem_is_a_plain_name(tmp_path, stem):
    summary = summarise(random_outcomes(n=5), LABELS, None, resamples=2)
    with pytest.raises(OptionError, match="plain file name"):
        write_metrics(tmp_path, stem, summary)
    assert os.listdir(tmp_path) == []
