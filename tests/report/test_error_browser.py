"""The data behind the error browser: answers, related answers, pictures and their budget, and the HTML."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.run_folders import LABELS, Folder, findings, outcomes
from support.toy_layout import BROKEN, COUNT, fingerprint, toy_spec

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report import run_collection
from medmllm_plugins.report.assemble import build_report
from medmllm_plugins.report.error_browser.browsed_answers import ErrorBrowser, error_browsers
from medmllm_plugins.report.error_browser.browser_data import browser_views
from medmllm_plugins.report.error_browser.document_pictures import page_pictures
from medmllm_plugins.report.error_browser.document_rows import confidence, document_rows, probabilities
from medmllm_plugins.report.figures.gallery import build_gallery
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.tables.map_check_grid import check_grid
from medmllm_plugins.results.attribution_records import AttributionSummary, RandomisationLevel
from medmllm_plugins.results.attribution_verdicts import check_verdicts

SCRIPT = "<script>alert(1)</script>"


def declare(monkeypatch: pytest.MonkeyPatch, spec: DatasetSpec) -> str:
    """Declare the data set ``toy`` and return its fingerprint."""
    monkeypatch.setattr(run_collection, "dataset_specs", lambda: {"toy": spec})
    return fingerprint(spec)


def dataset(*folders: Folder) -> DatasetRuns:
    (only,) = collect_runs([folder.folder for folder in folders]).datasets
    return only


def browser_of(*folders: Folder) -> ErrorBrowser:
    (only,) = error_browsers(dataset(*folders))
    return only


def test_confidence_is_the_softmax_of_the_answered_class() -> None:
    row = Outcome(id="a", group="a", label="y", predicted="x", status="parsed", scores=(1000.0, 1000.0, -1e9))
    assert probabilities(row) == pytest.approx((0.5, 0.5, 0.0))
    assert confidence(row, ("x", "y", "z")) == pytest.approx(0.5)
    assert confidence(replace(row, scores=None), ("x", "y", "z")) is None
    assert confidence(replace(row, predicted=None, status="refusal"), ("x", "y", "z")) is None
    assert confidence(row, ("x", "y")) is None, "scores of other classes"


def test_rows_of_the_csv_file(tmp_path: Path) -> None:
    rows = outcomes(count=COUNT)
    made = Folder(tmp_path / "a").answers("med_cls_toy", rows, said=["a secret"])
    made.folds([("doc-00000", "patient-0", "test")])
    table = document_rows(dataset(made))
    assert table.columns[-3:] == tuple(f"probability_{name}" for name in LABELS)
    records = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert len(records) == COUNT and not any("a secret" in row for row in map(str, table.rows))
    first = records[0]
    assert (first["document"], first["group"], first["fold"]) == ("doc-00000", "patient-0", "test")
    assert records[1]["fold"] is None
    for record, row in zip(records, sorted(rows, key=lambda row: row.id), strict=True):
        shares = [record[f"probability_{name}"] for name in LABELS]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert record["correct"] == int(row.label == row.predicted)
        assert record["confidence"] == (record[f"probability_{row.predicted}"] if row.predicted else None)


def test_errors_come_first_and_classes_take_turns(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    other = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=3, skill=1))
    browser = browser_of(made, other)
    flags = [question.has_error for question in browser.questions]
    assert flags == sorted(flags, reverse=True) and len(flags) == browser.total == 120
    assert {question.label for question in browser.questions[:3]} == {0, 1, 2}
    worst = browser.worst_errors(12)
    assert len({question.id for question, _, _ in worst}) == 12
    assert [result.subject.label for _, result, _ in worst[:2]] == [result.subject.label for result in browser.results]
    shares = [answer.confidence for _, result, answer in worst if result is browser.results[0]]
    assert shares == sorted(shares, key=lambda share: -1 if share is None else -share) and shares[0] is not None


def test_matrix_counts_unreadable_answers_in_a_column_of_their_own(tmp_path: Path) -> None:
    rows = outcomes()
    browser = browser_of(Folder(tmp_path / "a").answers("med_cls_toy", rows))
    (matrix,) = browser.matrices
    assert sum(count for row in matrix for count, _ in row.cells) == len(rows)
    assert sum(row.cells[-1][0] for row in matrix) == sum(row.predicted is None for row in rows) > 0
    assert browser.has_unreadable
    assert browser.error_counts == [sum(row.predicted != row.label for row in rows)]
    assert all(sum(percent for _, percent in row.cells) == pytest.approx(100) for row in matrix)


def test_related_answers_name_what_differs(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    varied = [row for turn in (0, 1) for row in outcomes(seed=turn, variant=f"order {turn}")]
    made.answers(
        "med_cls_toy:order=varied", varied, order="varied", orders={"order 0": LABELS, "order 1": LABELS[::-1]}
    )
    made.answers("med_cls_toy:image=blank", outcomes(skill=0, seed=5), image="blank")
    made.answers("med_cls_toy_letter", outcomes(seed=8), protocol="letter")
    made.answers("med_patch_toy", outcomes())  # the same question once more
    Folder(tmp_path / "b", "model-b").answers("med_cls_toy:image=shuffled", outcomes(seed=6), image="shuffled")
    browser = browser_of(made)
    names = {
        "order: benign, malignant, normal": True,
        "order: normal, malignant, benign": True,
        "blank image": False,
        "options by letter": True,
    }
    assert dict(browser.related_names) == names
    question = next(item for item in browser.questions if item.document == "doc-00004")
    (answer,) = question.answers.values()
    assert sorted(related.name for related in answer.related) == [0, 1, 2, 3]
    unreadable = next(item for item in browser.questions if item.document == "doc-00003")
    assert any(item.text == "I cannot tell." for item in next(iter(unreadable.answers.values())).related)


def test_findings_are_questions_of_their_own(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").multilabel("med_cls_findings", findings(count=20))
    browser = browser_of(made)
    assert browser.classes == ("yes", "no") and browser.multilabel and browser.total == 80
    (view,) = browser_views([(0, browser)], page_pictures([browser]))
    assert view.findings and json.loads(view.json())["questions"][0]["finding"] in view.findings


def test_models_on_other_data_are_apart(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    other = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(), dataset_fingerprint="other")
    browsers = error_browsers(dataset(made, other))
    assert [browser.data for browser in browsers] == ["f1", "other"]


def test_json_holds_no_markup_and_bounds_texts(tmp_path: Path) -> None:
    rows = [replace(row, id=f"{SCRIPT}{row.id}") for row in outcomes(count=40)]
    made = Folder(tmp_path / "a").answers("med_cls_toy", rows, said=[SCRIPT, "x" * 300_000])
    browser = browser_of(made)
    (view,) = browser_views([(0, browser)], page_pictures([browser]))
    text = view.json()
    assert "<" not in text and len(text) < 100_000
    questions = json.loads(text)["questions"]
    assert questions[0]["id"].startswith(SCRIPT)
    answers = [next(iter(question["answers"].values())) for question in questions]
    assert {answer[4] is None for answer in answers if answer[0] >= 0} == {True}, "a class name is not repeated"
    assert {answer[5] for answer in answers} == {0, 280_000}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_pictures_are_read_as_the_run_had_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimensions: int
) -> None:
    spec = toy_spec(dimensions=dimensions)
    made = Folder(tmp_path / "a").answers(
        "med_cls_toy",
        outcomes(count=COUNT),
        dataset_fingerprint=declare(monkeypatch, spec),
        view={"slices": 4, "montage": True, "plane": "axial", "window": None} if dimensions == 3 else None,
    )
    (pictures,) = page_pictures([browser_of(made)])
    assert len(pictures.pictures) == COUNT and not pictures.reason and not pictures.left_out
    picture = pictures.pictures["doc-00005"]
    assert picture.large is not None
    with Image.open(io.BytesIO(base64.b64decode(picture.large.data))) as opened:
        size = opened.size
    if dimensions == 2:
        assert picture.size == (640, 480) and size == (512, 384) and picture.slices == 1
        assert (picture.thumbnail.width, picture.thumbnail.height) == (160, 120)
    else:
        assert picture.size == (40, 40) and size == (40, 160) and picture.slices == 4


def test_pictures_keep_their_budget_and_errors_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = declare(monkeypatch, toy_spec(count=120))
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(), dataset_fingerprint=declared)
    browser = browser_of(made)
    (whole,) = page_pictures([browser])
    budget = whole.characters // 6
    (small,) = page_pictures([browser], budget=budget)
    assert small.characters <= budget and small.left_out == 120 - len(small.pictures) > 0
    assert list(small.pictures) == [question.document for question in browser.questions][: len(small.pictures)]
    large = [picture.large is not None for picture in small.pictures.values()]
    assert any(large) and large == sorted(large, reverse=True)


def test_one_broken_picture_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = declare(monkeypatch, toy_spec(broken=True))
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=COUNT), dataset_fingerprint=declared)
    (pictures,) = page_pictures([browser_of(made)])
    assert len(pictures.pictures) == COUNT - 1 and len(pictures.failed) == 1
    assert BROKEN in pictures.failed[0]


def test_a_page_without_pictures_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=COUNT))
    browser = browser_of(made)
    reasons = [page_pictures([browser])[0].reason, page_pictures([browser], images=False)[0].reason]
    declare(monkeypatch, toy_spec())
    reasons.append(page_pictures([browser_of(made)])[0].reason)
    elsewhere = toy_spec().model_copy(update={"folder": str(tmp_path / "gone"), "download": "https://example.org"})
    monkeypatch.setattr(run_collection, "dataset_specs", lambda: {"toy": elsewhere})
    reasons.append(page_pictures([browser_of(made)])[0].reason)
    unlisted = toy_spec().model_copy(update={"layout": "no.module:Class"})
    monkeypatch.setattr(run_collection, "dataset_specs", lambda: {"toy": unlisted})
    reasons.append(page_pictures([browser_of(made)])[0].reason)
    expected = ["does not declare the data set toy", "--no-images", "fingerprints differ", "example.org", "no.module"]
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason and len(reason) < 420


def test_stored_originals_stand_in_for_a_data_set(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(count=COUNT))
    made.attributions("med_attr_toy", documents=3, size=(64, 48), slices=2)
    (pictures,) = page_pictures([browser_of(made)])
    assert sorted(pictures.pictures) == ["doc-00000", "doc-00001", "doc-00002"] and pictures.reason
    assert {picture.slices for picture in pictures.pictures.values()} == {2}


@pytest.mark.usefixtures("without_figures")
def test_the_page_without_images_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Folder(tmp_path / "a").answers(
        "med_cls_toy", outcomes(count=COUNT), dataset_fingerprint=declare(monkeypatch, toy_spec())
    )
    made.attributions("med_attr_toy")
    for images in (True, False):
        write_report([made.folder], tmp_path / "report.html", images=images)
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("data:image" in html) == images and ("--no-images" in html) != images
        assert "may identify patients" in html


@pytest.mark.usefixtures("without_figures")
def test_a_run_without_outcomes_keeps_its_matrix(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes())
    (made.folder / "med_cls_toy.outcomes.jsonl").unlink()
    report = build_report(collect_runs([made.folder]))
    assert not report.browsers and report.sections[0].confusion
    write_report([made.folder], tmp_path / "report.html")
    assert 'class="matrix blue"' in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_gallery_without_images_keeps_words(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy")
    gallery = build_gallery(list(collect_runs([made.folder]).results()), images=False)
    assert not gallery.pictures and [bool(card.tokens) for card in gallery.cards] == [True]
    assert gallery.cards[0].layer is None and gallery.cards[0].original is None


def test_verdicts_of_the_checks() -> None:
    good, bad = Estimate(0.2, 0.1, 0.3), Estimate(0.2, -0.1, 0.3)
    tower = RandomisationLevel(randomised="tower", similarity=0.1, absolute_similarity=0.6)
    row = AttributionSummary(
        n=4, deletion_gain=good, insertion_gain=bad, stability=Estimate(0.9, 0.8, 1.0), randomisation=(tower,),
        inside=good, area=0.15, flat=0,
    )  # fmt: skip
    expected = {
        "deletion": "pass",
        "insertion": "fail",
        "randomisation": "fail",
        "stability": "pass",
        "completeness": "does not apply",
        "lesion": "fail",
    }
    assert {name: verdict for name, (verdict, _) in check_verdicts(row).items()} == expected
    assert check_verdicts(replace(row, flat=1))["deletion"][0] == "fail"
    assert check_verdicts(replace(row, stability=None))["stability"][0] == "not made"
    assert check_verdicts(replace(row, area=0.05))["lesion"][0] == "pass"


def test_grid_of_checks_says_everything_in_words(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").attributions("med_attr_toy")
    grid = check_grid(dataset(made))
    assert [title for title, _ in grid.columns] == [
        "deletion",
        "insertion",
        "randomisation",
        "stability",
        "in the lesion",
    ]
    assert len(grid.rows) == 4
    line = grid.rows[0]
    assert [(cell.icon, cell.verdict, cell.figure) for cell in line.cells] == [
        ("✓", "pass", "+0.20"),
        ("✓", "pass", "+0.20"),
        ("○", "not made", ""),  # its cascade does not reach the tower
        ("✓", "pass", "0.90"),
        ("✗", "fail", "20.0%"),
    ]
    assert (line.passed, line.made) == (3, 4)
