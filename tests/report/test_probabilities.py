"""Probabilities: reliability, ROC curves, operating points and referral, against direct computations."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from support.run_folders import FINDINGS, LABELS, Folder, findings, outcomes

from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report.figures import referral_figure, reliability_figure, roc_figure
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.figures.line_panel import MAX_LABELS
from medmllm_plugins.report.probability_checks import ProbabilityCheck, probability_checks
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.tables import probability_tables

TWO = ("benign", "malignant")


def dataset_of(*folders: Folder) -> DatasetRuns:
    (dataset,) = collect_runs([folder.folder for folder in folders]).datasets
    return dataset


def two_classes(folder: Path, *, seed: int = 0, name: str = "model-a", skill: float = 1.5) -> Folder:
    return Folder(folder, name).answers("med_cls_toy", outcomes(labels=TWO, seed=seed, skill=skill), labels=TWO)


def softmax(rows: Sequence[Outcome]) -> np.ndarray:
    scores = np.array([row.scores for row in rows])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))


def test_bins_hold_the_answers_of_their_confidence(tmp_path: Path) -> None:
    rows = outcomes()
    (check,) = probability_checks(dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", rows)))
    confidence = softmax(rows).max(1)
    correct = np.array([LABELS[index] == row.label for index, row in zip(softmax(rows).argmax(1), rows, strict=True)])
    assert len(check.bins) == 6 and [part.n for part in check.bins] == [20] * 6
    for part, members in zip(check.bins, np.array_split(np.argsort(confidence), 6), strict=True):
        assert part.confidence == pytest.approx(confidence[members].mean())
        assert part.accuracy.value == pytest.approx(correct[members].mean())
        assert part.accuracy.low < part.accuracy.value < part.accuracy.high or part.accuracy.value in (0, 1)


def test_fewer_than_ten_answers_are_no_point_and_no_line(tmp_path: Path) -> None:
    dataset = dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=9)))
    checks = probability_checks(dataset)
    assert checks[0].bins == () and reliability_figure.reliability(dataset, checks, 0) is None


def test_dots_are_areas_of_the_counts_in_both_figures(tmp_path: Path) -> None:
    dataset = dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=400)))
    panel = reliability_figure.reliability_panel(probability_checks(dataset))
    (line,) = panel.lines
    ones = [round(diameter**2 / count, 6) for diameter, count in zip(line.diameters(80), line.counts, strict=True)]
    assert len(set(ones)) == 1 and len(line.x) == 10 and panel.diagonal
    with style():
        drawing = reliability_figure.reliability(dataset, probability_checks(dataset), 0)
    assert drawing is not None and drawing.interactive and "calibration error" in drawing.alt
    for words in ("stated probability", "below the line: overconfident", "model-a (tiny)"):
        assert words in drawing.svg and words in drawing.interactive


def test_two_classes_have_the_curve_of_the_positive_class_alone(tmp_path: Path) -> None:
    made = [two_classes(tmp_path / str(seed), seed=seed, name=f"model-{seed}") for seed in range(2)]
    for folder in made:
        folder.tell("med_cls_toy", positive="benign")
    dataset = dataset_of(*made)
    checks = probability_checks(dataset)
    with style():
        drawing = roc_figure.roc(dataset, checks, 0)
    assert drawing is not None and drawing.title.endswith("ROC, benign")
    panel = roc_figure.roc_panel(checks, roc_figure.view_of(checks))
    areas = [
        roc_auc_score([row.label == "benign" for row in rows], softmax(rows)[:, 0])
        for rows in (outcomes(labels=TWO, seed=seed) for seed in range(2))
    ]
    expected = {f"{area:.2f} model-{seed} (tiny)" for seed, area in enumerate(areas)}
    assert {line.label for line in panel.lines} == expected
    for label in expected:
        assert label in drawing.svg and label in drawing.interactive


def test_a_single_model_shows_its_classes_and_several_their_means(tmp_path: Path) -> None:
    first = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes())
    (check,) = checks = probability_checks(dataset_of(first))
    panel = roc_figure.roc_panel(checks, roc_figure.view_of(checks))
    assert {line.label[5:] for line in panel.lines} == set(LABELS)
    second = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=1))
    dataset = dataset_of(first, second)
    checks = probability_checks(dataset)
    panel = roc_figure.roc_panel(checks, roc_figure.view_of(checks))
    mean = np.mean([curve.area for curve in check.curves])
    assert f"{mean:.2f} model-a (tiny)" in {line.label for line in panel.lines}
    with style():
        drawing = roc_figure.roc_of_classes(dataset, checks[1], 4)
    assert drawing is not None and drawing.title.startswith("toy, model-b (tiny): ROC of each class")
    assert all(label in drawing.svg and label in drawing.interactive for label in LABELS)


def test_curves_without_a_label_are_counted(tmp_path: Path) -> None:
    labels = [f"class {index:02d}" for index in range(9)]
    dataset = dataset_of(
        Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=300, labels=labels), labels=labels)
    )
    with style():
        drawing = roc_figure.roc_of_classes(dataset, probability_checks(dataset)[0], 0)
    assert drawing is not None and f"{9 - MAX_LABELS} more curves have no label" in drawing.caption
    assert all(label in drawing.interactive for label in labels), "a tooltip names each curve"


def reached(rows: Sequence[Outcome], label: int, target: float) -> tuple[float, float]:
    x, y, _ = roc_curve([row.label == LABELS[label] for row in rows], softmax(rows)[:, label], drop_intermediate=False)
    return float(y[1 - x >= target - 1e-9].max()), float((1 - x)[y >= target - 1e-9].max())


def test_operating_points_are_those_of_the_curve(tmp_path: Path) -> None:
    rows = outcomes()
    dataset = dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", rows))
    table = probability_tables.roc_table(dataset, probability_checks(dataset))
    for index, row in enumerate(csv.DictReader(io.StringIO(table.csv()))):
        for target in (90, 95, 98):
            sensitivity, specificity = reached(rows, index, target / 100)
            assert float(row[f"sensitivity_{target}"]) == pytest.approx(sensitivity)
            assert float(row[f"specificity_{target}"]) == pytest.approx(specificity)
            assert float(row[f"sensitivity_{target}_low"]) < sensitivity or sensitivity == 0
    assert "optimistic" in table.note


def test_referral_begins_at_the_accuracy_and_refers_unparsed_answers_first(tmp_path: Path) -> None:
    rows = outcomes(count=120)  # 7 of them unparsed
    dataset = dataset_of(Folder(tmp_path / "a").answers("med_cls_toy", rows))
    (check,) = probability_checks(dataset)
    curve = check.referral
    assert curve.accuracy[0].value == pytest.approx(check.result.metrics["accuracy"].value)
    correct = np.array([row.predicted == row.label for row in rows])
    confidence = np.array(
        [
            0 if row.predicted is None else shares[LABELS.index(row.predicted)]
            for row, shares in zip(rows, softmax(rows), strict=True)
        ]
    )
    ranked = correct[np.argsort(-confidence, kind="stable")]
    for share in (0.05, 0.1, 0.25, 0.5):
        at = curve.referred.index(share)
        assert curve.accuracy[at].value == pytest.approx(ranked[: round(120 * (1 - share))].mean())
    unparsed = sum(row.predicted is None for row in rows)
    risks = [1 - ranked[:kept].mean() for kept in range(1, 121 - unparsed)]
    assert unparsed == 7 and curve.area.value == pytest.approx(
        np.mean([*risks, *(1 - correct.sum() / (113 + index) for index in range(1, 8))])
    )
    with style():
        drawing = referral_figure.referrals(dataset, [check], 0)
    assert drawing is not None and "referred to a reader" in drawing.svg and drawing.interactive
    (line,) = referral_figure.referral_panel([check]).lines
    assert line.y == [100 * accuracy.value for accuracy in curve.accuracy] and line.low and line.x[-1] == 50


def test_each_finding_has_a_curve_and_operating_points(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").multilabel("med_cls_findings", findings())
    dataset = dataset_of(made)
    (check,) = probability_checks(dataset)
    assert [curve.name for curve in check.curves] == list(FINDINGS[:-1]) and check.positive == ""
    assert set(check.points) == set(FINDINGS[:-1])
    assert sum(part.n for part in check.bins) == len(findings())


def test_variants_are_ranked_within_themselves(tmp_path: Path) -> None:
    rows = [outcome for turn in range(3) for outcome in outcomes(seed=turn, variant=f"order {turn}")]
    (check,) = probability_checks(
        dataset_of(Folder(tmp_path / "a").answers("med_cls_toy:order=varied", rows, order="varied"))
    )
    expected = np.mean([reached(outcomes(seed=turn), 0, 0.9)[0] for turn in range(3)])
    assert check.points[LABELS[0]].sensitivity[0].value == pytest.approx(expected)


def without_scores(rows: Sequence[Outcome]) -> list[Outcome]:
    return [replace(row, scores=None) for row in rows]


@pytest.mark.usefixtures("without_figures")
def test_the_page_says_which_run_would_give_scores(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a", "gpt").answers("med_cls_toy", without_scores(outcomes()))
    report = write_report([made.folder], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = html[html.index('<section id="probabilities"') :]
    part = part[: part.index("</section>")]
    assert "gpt (tiny) has no label scores" in part and "A run of a model that this package loads" in part
    assert "<table" not in part and report.sections[0].evidence.checks == ()


@pytest.mark.usefixtures("without_figures")
def test_the_first_table_is_about_the_positive_class(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(), positive="malignant")
    report = write_report([made.folder], tmp_path / "report.html")
    section = report.sections[0]
    first = section.evidence.first_rows(section.tables["roc"])
    assert [section.tables["roc"].rows[index][1] for index in first] == ["malignant"]
    others = section.evidence.other_rows(section.tables["roc"])
    assert [section.tables["roc"].rows[index][1] for index in others] == ["benign", "normal"]
    two = two_classes(tmp_path / "b")
    section = write_report([two.folder], tmp_path / "two.html").sections[0]
    assert section.evidence.other_rows(section.tables["roc"]) == [], "the other of two classes mirrors it"


def test_damaged_scores_are_no_error(tmp_path: Path) -> None:
    rows = outcomes()
    odd = [replace(rows[0], scores=None), *rows[1:]]
    made = Folder(tmp_path / "a").answers("med_cls_toy", odd)
    checks: list[ProbabilityCheck] = probability_checks(dataset_of(made))
    assert checks == []
