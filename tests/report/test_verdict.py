"""The verdict: its numbers are those of an independent computation, and its words follow from them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.run_folders import Folder, outcomes

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.report.overview import _modes, overview
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.report_notes import collect_notes
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.run_pairs import model_differences, paired_differences
from medmllm_plugins.report.tables import answer_tables
from medmllm_plugins.report.verdict import verdicts
from medmllm_plugins.results.comparison import compare
from medmllm_plugins.results.probe_records import Diagnosis, Effect


def part_of(*made: Folder) -> DatasetRuns:
    (part,) = collect_runs([item.folder for item in made]).datasets
    return part


def said_of(part: DatasetRuns) -> str:
    return overview(part, verdicts(part), model_differences(part))


def baseline(folder: Path, *, skill: float = 3.0) -> Folder:
    return Folder(folder, "baseline pixels", baseline="pixels").answers("med_cls_toy", outcomes(skill=skill, seed=9))


def test_differences_agree_with_the_comparison_of_two_runs(tmp_path: Path) -> None:
    first, second = outcomes(skill=2.5, seed=3), outcomes(skill=1.0, seed=4)
    Folder(tmp_path / "reference", "baseline pixels", baseline="pixels").answers("med_cls_toy", first)
    Folder(tmp_path / "model").answers("med_cls_toy", second)
    (part,) = collect_runs([tmp_path / "model", tmp_path / "reference"]).datasets
    (verdict,) = verdicts(part)
    expected = compare(first, second).accuracy
    for end in ("value", "low", "high"):
        assert getattr(verdict.reference.difference, end) == pytest.approx(getattr(expected, end), abs=1e-12)
    assert verdict.accuracy.value == np.mean([item.predicted == item.label for item in second])
    assert verdict.guess.difference.value == pytest.approx(verdict.accuracy.value - verdict.guess.accuracy.value)
    assert "The pixel baseline scores " in verdict.sentence and "points higher." in verdict.sentence
    assert verdict.sentence.endswith("To find where it fails, run `med_probe_toy`.")


def test_only_shared_rows_are_compared(tmp_path: Path) -> None:
    Folder(tmp_path / "reference", "baseline pixels", baseline="pixels").answers("med_cls_toy", outcomes(seed=3))
    Folder(tmp_path / "model").answers("med_probe_toy", outcomes(seed=4)[:40])
    (part,) = collect_runs([tmp_path / "model", tmp_path / "reference"]).datasets
    (verdict,) = verdicts(part)
    assert verdict.reference.shared == 40 and verdict.reference.name == "baseline pixels"


def test_a_difference_whose_interval_includes_zero_is_not_clear(tmp_path: Path) -> None:
    Folder(tmp_path / "model").answers("med_cls_toy", outcomes(skill=0.0, seed=11))
    (part,) = collect_runs([tmp_path / "model"]).datasets
    (verdict,) = verdicts(part)
    assert verdict.guess.difference.low <= 0 <= verdict.guess.difference.high
    assert "There is no clear difference from always guessing the most common class (" in verdict.sentence
    assert "No reference classifier was run." in verdict.sentence


def test_an_unread_hand_over_is_told_with_its_site_and_interfaces(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy", named="mapping")
    conclusion = {
        "named": "unread hand-over",
        "readable_until": "llm.norm (last)",
        "candidates": ["vision -> connector", "connector -> llm"],
        "reasons": ["Marks drawn on the images are answered correctly, so image information arrives."],
    }
    change(folder, lambda content: content["diagnosis"].update(conclusion))
    change(folder, lambda content: content["diagnosis"]["effects"][3].update(before="llm.norm (last)"))
    (verdict,) = verdicts(part_of(folder))
    assert "can be read up to llm.norm (last), and nothing after it uses it" in verdict.sentence
    assert "may be at fault: vision -> connector, connector -> llm. Marks drawn on the images" in verdict.sentence
    assert "uses it (12.0 points lost, 95% CI 7.0–17.0; 0.30 bits of usable information)." in verdict.sentence
    assert "semantic mapping" not in verdict.sentence
    write_report([folder.folder], tmp_path / "report.html")
    assert "The class can be read up to llm.norm (last), but nothing after it uses it." in (
        tmp_path / "report.html"
    ).read_text("utf-8")


def test_several_losses_have_no_invented_order(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy", named="mapping")

    def support_another(content: dict[str, Any]) -> None:
        content["diagnosis"]["named"] = None
        content["diagnosis"]["effects"][1]["verdict"] = "supported"

    change(folder, support_another)
    (verdict,) = verdicts(part_of(folder))
    assert verdict.diagnosis.named is None and "the data cannot tell which one is the cause" in verdict.sentence
    change(folder, lambda content: content["diagnosis"].update(named="mapping"))
    (verdict,) = verdicts(part_of(folder))
    assert "Most is lost at the step mapping (probability 0.97)." in verdict.sentence


def test_what_is_ruled_out_and_what_is_undecided_are_told_apart(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy", named=None)

    def leave_open(content: dict[str, Any]) -> None:
        content["diagnosis"]["effects"][0]["verdict"] = "cannot tell"
        content["diagnosis"]["reasons"] = ["The answers are more accurate than the probe on the last token of the LLM."]

    change(folder, leave_open)
    (verdict,) = verdicts(part_of(folder))
    assert "supports none of the four failure modes. The answers are more accurate than the probe" in verdict.sentence
    assert (
        "It cannot decide about vision. Losses of 10.0 points or more are ruled out for connector" in verdict.sentence
    )
    assert verdict.record().ruled_out == ("connector", "comprehension", "mapping")


def test_anchors_that_are_not_answered_are_noted(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy")
    assert "anchor" not in " ".join(collect_notes(collect_runs([folder.folder])).warnings)
    change(folder, lambda content: [item.update(verdict="not answered") for item in content["anchors"]["results"]])
    notes = " ".join(collect_notes(collect_runs([folder.folder])).warnings)
    assert "does not name findings that are given in words (text anchor)" in notes and "(positive control)" in notes


def change(folder: Folder, how: Callable[[dict[str, Any]], None]) -> None:
    (path,) = folder.folder.glob("*.probes.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    how(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_supported_mode_is_named_with_its_loss(tmp_path: Path) -> None:
    Folder(tmp_path / "model").answers("med_probe_toy", outcomes()).probes("med_probe_toy", named="mapping")
    (part,) = collect_runs([tmp_path / "model"]).datasets
    (verdict,) = verdicts(part)
    diagnosis = verdict.diagnosis
    assert [item.mode for item in diagnosis.supported] == ["mapping"] and diagnosis.named == "mapping"
    assert "supports misalignment of semantic mapping (12.0 points lost" in verdict.sentence
    assert overview(part, [verdict], []) == verdict.sentence


def test_many_models_are_summed_up(tmp_path: Path) -> None:
    for place, named in enumerate(("connector", None, "connector")):
        made = Folder(tmp_path / str(place), f"model-{place}")
        made.answers("med_probe_toy", outcomes(skill=1.0 + place, seed=place)).probes("med_probe_toy", named=named)
    (part,) = collect_runs([tmp_path / str(place) for place in range(3)]).datasets
    said = overview(part, verdicts(part), model_differences(part))
    assert said.startswith("Of 3 models, model-2 (tiny) has the highest accuracy, ")
    assert "In the 3 probed models, the evidence supports fidelity loss in connector projection in 2." in said


def test_pairing_without_shared_rows_says_nothing() -> None:
    rows = {("a", "", ""): 1.0}
    assert paired_differences({"x": (rows, {("b", "", ""): 0.0}, {("a", "", ""): "g"})}) == {}
    ((gap, mean, count),) = paired_differences({"x": (rows, {("a", "", ""): 0.0}, {("a", "", ""): "g"})}).values()
    assert gap.value == 1.0 and np.isnan(gap.low) and (mean, count) == (0.0, 1) and isinstance(gap, Estimate)


def test_a_reference_without_its_answers_is_named_and_not_compared(tmp_path: Path) -> None:
    model, other = Folder(tmp_path / "model").answers("med_cls_toy", outcomes()), baseline(tmp_path / "reference")
    (other.folder / "med_cls_toy.outcomes.jsonl").unlink()
    part = part_of(model, other)
    (verdict,) = verdicts(part)
    accuracy = np.mean([outcome.predicted == outcome.label for outcome in outcomes(skill=3.0, seed=9)])
    assert f"The pixel baseline ({100 * accuracy:.1f}% of its own" in verdict.sentence
    assert "is not compared: its scored answers are not on record" in verdict.sentence
    assert "No reference classifier was run" not in verdict.sentence and np.isnan(verdict.reference.difference.value)
    (other.folder / "med_cls_toy.metrics.json").unlink()
    assert "The pixel baseline is not compared: its run has no metrics" in said_of(part_of(model, other))


def test_a_reference_on_other_data_is_not_compared(tmp_path: Path) -> None:
    model = Folder(tmp_path / "model").answers("med_cls_toy", outcomes())
    other = baseline(tmp_path / "reference")
    other.tell("med_cls_toy", dataset_fingerprint="other")
    part = part_of(model, other)
    (verdict,) = verdicts(part)
    assert "not compared: it was run on other data (the fingerprints differ)" in verdict.sentence
    assert not verdict.reference.compared and np.isnan(verdict.reference.difference.value)
    assert any(
        "The one in reference cannot be used: it was run on other data" in note
        for note in collect_notes(collect_runs([model.folder, other.folder])).missing
    )
    table = answer_tables.metrics_table(part, [verdict])
    assert "difference_from_reference" not in [column.name for column in table.columns]
    # A less accurate one on the same data is the one to take.
    third = Folder(tmp_path / "third", "baseline timm", baseline="timm:x").answers("med_cls_toy", outcomes(skill=1.0))
    (verdict,) = verdicts(part_of(model, other, third))
    assert verdict.reference.compared and verdict.reference.name == "baseline timm"


@settings(max_examples=12)
@given(st.integers(min_value=2, max_value=119), st.integers(min_value=0, max_value=60))
def test_the_numbers_of_a_sentence_go_together_where_answers_are_lost(kept: int, lost: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        model, other = Folder(Path(root) / "model").answers("med_cls_toy", outcomes()), baseline(Path(root) / "other")
        path = model.folder / "med_cls_toy.outcomes.jsonl"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:kept]), encoding="utf-8")
        path = other.folder / "med_cls_toy.outcomes.jsonl"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[lost:]), encoding="utf-8")
        (verdict,) = verdicts(part_of(model, other))
        words = " ".join(collect_notes(collect_runs([model.folder])).missing)
    assert f"{kept} of 120 scored answers are on record" in words
    for item in (verdict.guess, verdict.reference):
        if not item.shared:
            assert "the two have no question in common" in verdict.sentence
            continue
        own = f"{100 * (item.shared_accuracy + item.difference.value):.1f}"
        assert (
            f"on the {item.shared} of 120 questions that" in verdict.sentence
            and f"where the model scores {own}%" in verdict.sentence
        )
        assert f"{100 * item.shared_accuracy:.1f}%" in verdict.sentence
    rows = outcomes()[:kept]
    own = np.mean([row.predicted == row.label for row in rows])
    commonest = max(
        sorted({outcome.label for outcome in outcomes()}), key=[outcome.label for outcome in outcomes()].count
    )
    assert verdict.guess.difference.value == pytest.approx(own - np.mean([row.label == commonest for row in rows]))


def test_the_best_model_is_compared_with_every_other(tmp_path: Path) -> None:
    rows = [outcomes(skill=2.0, seed=1), outcomes(skill=1.9, seed=2), outcomes(skill=0.2, seed=3)]
    made = [Folder(tmp_path / str(i), f"model-{i}").answers("med_cls_toy", item) for i, item in enumerate(rows)]
    part = part_of(*made)
    table = answer_tables.differences_table(part, model_differences(part))
    for row in table.rows:
        result, two = (next(i for i in range(3) if f"model-{i}" in str(row[place])) for place in (0, 2))
        comparison = compare(rows[two], rows[result])
        expected, gap = comparison.accuracy, row[7]
        assert row[8:10] == comparison.discordant[::-1] and min(comparison.discordant) > 0
        assert isinstance(gap, Estimate) and isinstance(row[5], float) and isinstance(row[6], float)
        for end in ("value", "low", "high"):
            assert getattr(gap, end) == pytest.approx(getattr(expected, end), abs=1e-12)
        assert row[5] - row[6] == pytest.approx(gap.value) and row[4] == 120 and gap.value >= 0
    assert len(table.rows) == 3
    said = said_of(part)
    assert re.search(
        r"model-\d \(tiny\) has the highest accuracy, [^;]*; no clear difference from model-\d \(tiny\)\), and", said
    )
    said = said_of(part_of(made[0], made[2]))
    assert "clearly different from the other), and model-2 (tiny) the lowest" in said and "no clear" not in said
    other = Folder(tmp_path / "other", "model-x").answers(
        "med_cls_toy", outcomes(skill=1.8, seed=5)[:0] or rows[0][:20]
    )
    (other.folder / "med_cls_toy.outcomes.jsonl").unlink()
    assert "not paired with" in said_of(part_of(made[1], other))


def test_models_of_other_classes_or_data_are_not_ranked(tmp_path: Path) -> None:
    two = ("benign", "malignant")
    first = Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes())
    second = Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=4, labels=two), labels=two)
    collection = collect_runs([first.folder, second.folder])
    said = said_of(collection.datasets[0])
    assert (
        "so they are not ranked together. 2 classes: model-b (tiny) classified" in said and "3 classes: model-a" in said
    )
    assert "highest" not in said and model_differences(collection.datasets[0]) == []
    assert any("the runs have different classes" in warning for warning in collect_notes(collection).warnings)
    third = Folder(tmp_path / "c", "model-c").answers("med_cls_toy", outcomes(), dataset_fingerprint="other")
    said = said_of(part_of(first, third))
    assert "Data f1: model-a" in said and "Data other: model-c" in said
    letter = Folder(tmp_path / "d", "model-d").answers("med_cls_toy_letter", outcomes(), protocol="letter")
    warned = collect_notes(collect_runs([first.folder, letter.folder])).warnings
    assert any("they differ in how the classes are listed (model-a" in item for item in warned)


def test_reference_classifiers_alone_have_a_sentence(tmp_path: Path) -> None:
    said = said_of(part_of(baseline(tmp_path / "reference")))
    accuracy = np.mean([outcome.predicted == outcome.label for outcome in outcomes(skill=3.0, seed=9)])
    assert said.startswith("No model was run. The pixel baseline classified ")
    assert (
        f"{100 * accuracy:.1f}" in said
        and "Always guessing the most common class would score" in said
        and "points lower" in said
    )
    empty = Folder(tmp_path / "model")
    empty.tell("med_cls_toy")
    said = said_of(part_of(empty, baseline(tmp_path / "more")))
    assert said.startswith("No model has metrics yet. The pixel baseline classified")
    assert said_of(part_of(empty)) == "No run has metrics yet."


@pytest.mark.parametrize(
    ("tasks", "advised"),
    [
        (["hospct"], "medmllm baseline hospct)"),
        (["hospct:order=varied", "med_probe_hospct"], "medmllm baseline hospct)"),
        (["med_cls_toy_letter", "med_cls_toy"], "medmllm baseline med_cls_toy)"),
        (["med_probe_toy"], "medmllm baseline med_cls_toy)"),
        (["med_attr_toy"], "medmllm baseline med_cls_toy)"),
    ],
)
def test_advice_names_the_task_that_was_run(tmp_path: Path, tasks: list[str], advised: str) -> None:
    folder = Folder(tmp_path / "model")
    for task in tasks:
        folder.answers(task, outcomes())
    manifest = json.loads((folder.folder / "manifest.json").read_text())
    for task in tasks:
        manifest["tasks"][task]["settings"]["dataset"] = "hospct" if "hospct" in task else "toy"
    manifest["command"] = {"model": "medm_vl", "model_args": "pretrained=demo,api_key=secret"}
    (folder.folder / "manifest.json").write_text(json.dumps(manifest))
    missing = "\n".join(collect_notes(collect_runs([folder.folder])).missing)
    assert advised in missing
    probe = "med_probe_hospct" if "hospct" in tasks[0] else "med_probe_toy"
    if not any(task.startswith("med_probe") for task in tasks):
        assert f"lmms-eval --model medm_vl --model_args pretrained=demo --tasks {probe}" in missing
    assert "secret" not in missing


def unread(rows: list[Outcome], every: int = 1) -> list[Outcome]:
    """The rows, of which all but each ``every``-th could not be read."""
    return [
        replace(row, predicted=None, status="out_of_list") if every == 1 or index % every else row
        for index, row in enumerate(rows)
    ]


@pytest.mark.usefixtures("without_figures")
def test_unreadable_answers_are_no_finding(tmp_path: Path) -> None:
    model = Folder(tmp_path / "model", pretrained="demo").answers("med_cls_toy", unread(outcomes()))
    part = part_of(model, baseline(tmp_path / "reference"))
    (verdict,) = verdicts(part)
    for sentence in (verdict.sentence, said_of(part)):
        assert "No answer could be read (0 of 120). The demo model only knows phantoms." in sentence
        assert "label scores do not depend on the text" in sentence
        assert "lower" not in sentence and "points" not in sentence and "correctly" not in sentence
    assert not re.search(r"[a-z]\. [a-z]", verdict.sentence)
    write_report([tmp_path / "model"], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "No answer could be read (0 of 120)" in html and "so accuracy says nothing about what it knows" in html


def test_a_model_that_could_not_be_read_is_not_ranked(tmp_path: Path) -> None:
    part = part_of(
        Folder(tmp_path / "a", "model-a").answers("med_cls_toy", outcomes(seed=3)),
        Folder(tmp_path / "b", "model-b").answers("med_cls_toy", outcomes(seed=4)),
        Folder(tmp_path / "c", "model-c").answers("med_cls_toy", unread(outcomes(seed=5), 10)),
    )
    said = said_of(part)
    assert said.startswith("Of 2 models, ") and "the lowest" in said
    assert "Not ranked: model-c (tiny). Only 9% of the answers could be read (11 of 120)." in said
    assert "phantoms" not in said
    only = said_of(part_of(Folder(tmp_path / "d").answers("med_cls_toy", unread(outcomes()))))
    assert "No answer could be read" in only


def test_the_overview_names_what_patching_shows_before_what_probes_support() -> None:
    loss = Effect(
        mode="mapping", loss=Estimate(0.7, 0.6, 0.8), verdict="supported", why="", before="llm", after="answer"
    )
    for patched, named, expected in (
        (("connector",), None, ("connector",)),
        ((), "mapping", ("mapping",)),
        ((), None, ()),  # the diagnosis gives a reason why this one mode is not named
    ):
        verdict: Any = SimpleNamespace(diagnosis=Diagnosis(effects=(loss,), patched=patched, named=named))
        assert _modes(verdict) == expected
