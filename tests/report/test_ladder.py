"""Ladders say what the diagnosis says, stage by stage, and what interventions show beside it."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import Folder, outcomes

from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.report.assemble import build_report
from medmllm_plugins.report.causal_evidence import StageEvidence, causal_evidence, stage_of
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.figures.ladder import ladder as draw_ladder
from medmllm_plugins.report.ladders import Ladder, Rung, Step, ladders
from medmllm_plugins.report.report_files import write_report
from medmllm_plugins.report.run_collection import DatasetRuns, collect_runs
from medmllm_plugins.report.verdict import verdicts

STAGES = {"reference": 0.9, "vision": 0.86, "connector": 0.74, "llm": 0.73, "answer": 0.7}
VERDICTS = {"vision": "cannot tell", "connector": "supported", "comprehension": "ruled out", "mapping": "ruled out"}
LOSSES = {"vision": 0.04, "connector": 0.12, "comprehension": 0.01, "mapping": 0.03}


def estimate(value: float, half: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def probed(folder: Path, name: str = "model-a", *, task: str = "med_probe_toy", **changed: Any) -> Folder:
    """A probed model whose diagnosis has all stages; ``changed`` are entries of the diagnosis."""
    made = Folder(folder, name).answers(task, outcomes())
    return add_probes(made, task, **changed)


def add_probes(made: Folder, task: str, **changed: Any) -> Folder:
    made.probes(task)
    path = made.folder / f"{task}.probes.json"
    record = json.loads(path.read_text("utf-8"))
    record |= {"reference": estimate(0.9), "reference_name": "baseline resnet", "answer": estimate(0.7)}
    record["mapping"]["readings"]["scores"]["accuracy"] = estimate(0.72)
    record["diagnosis"]["stages"] = [
        {"stage": stage, "source": f"{stage} site", "own": estimate(value - 0.02), "accuracy": estimate(value),
         "balanced": estimate(value), "bits": estimate(1)}
        for stage, value in STAGES.items()
    ]  # fmt: skip
    record["diagnosis"]["effects"] = [
        {"mode": mode, "loss": estimate(LOSSES[mode]), "verdict": verdict, "why": f"why {mode}", "before": "a",
         "after": "b", "balanced_loss": estimate(0.1), "bits_lost": estimate(0.3), "probability": 0.5}
        for mode, verdict in VERDICTS.items()
    ]  # fmt: skip
    record["diagnosis"] |= changed
    path.write_text(json.dumps(record), "utf-8")
    return made


def dataset_of(*folders: Folder) -> DatasetRuns:
    (dataset,) = collect_runs([folder.folder for folder in folders]).datasets
    return dataset


def ladders_of(*folders: Folder) -> list[Ladder]:
    dataset = dataset_of(*folders)
    return ladders(dataset, verdicts(dataset))


def test_a_ladder_has_the_numbers_of_the_diagnosis(tmp_path: Path) -> None:
    made = probed(tmp_path / "a")
    (ladder,) = ladders_of(made)
    assert [rung.title for rung in ladder.rungs] == [
        *("reference classifier", "vision tower", "connector", "last token", "best label", "answer")
    ]
    assert [rung.accuracy.value for rung in ladder.rungs] == pytest.approx([0.9, 0.86, 0.74, 0.73, 0.72, 0.7])
    assert [rung.own.value for rung in ladder.rungs[1:4]] == pytest.approx([0.84, 0.72, 0.71])
    assert all(math.isnan(rung.own.value) for rung in (ladder.rungs[0], *ladder.rungs[4:]))
    steps = [(step.start, step.end, step.loss.value, step.verdict, step.why) for step in ladder.steps]
    assert steps == [
        (0, 1, 0.04, "unclear", "why vision"),
        (1, 2, 0.12, "supported", "why connector"),
        (2, 3, 0.01, "ruled out", "why comprehension"),
        (3, 5, 0.03, "ruled out", "why mapping"),
    ]
    assert (ladder.guess, ladder.documents, ladder.groups, ladder.command) == (0.38, 120, 60, "")
    assert ladder.sentences[0].startswith("The evidence supports fidelity loss in connector projection (12.0 points")
    assert ladder.sentences[1].startswith("It cannot decide about vision.")
    assert [rung.stage for rung in ladder.stages] == ["vision", "connector", "llm", "answer"]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Estimate(0.12, 0.07, 0.17), "−12.0 points (7–17)"),
        (Estimate(0.041, -0.041, 0.124), "−4.1 points (−12 to +4)"),
        (Estimate(0.0, -0.03, 0.03), "0.0 points (−3 to +3)"),
        (Estimate(-0.108, -0.278, 0.148), "no loss (−15 to +28)"),
        (Estimate(0.2, math.nan, math.nan), "−20.0 points"),
    ],
)
def test_a_loss_reads_as_a_change(loss: Estimate, words: str) -> None:
    assert Step(0, 1, loss, "unclear").label == words


def test_no_arrow_starts_at_a_reference_that_is_no_better_than_guessing(tmp_path: Path) -> None:
    made = probed(tmp_path / "a")
    path = made.folder / "med_probe_toy.probes.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(record | {"reference": estimate(0.4)}), "utf-8")
    (ladder,) = ladders_of(made)
    assert ladder.rungs[0].note == "not used: no better than guessing" and not ladder.rungs[0].used
    assert [step.start for step in ladder.steps] == [1, 2, 3]
    with style():
        drawing = draw_ladder(ladder, "toy.ladder.1", 0)
    assert "not used: no better than guessing" in drawing.alt and "not used:" in drawing.svg


def without_reference(folder: Path) -> Folder:
    """A run whose diagnosis had no reference classifier."""
    made = probed(folder)
    path = made.folder / "med_probe_toy.probes.json"
    record = json.loads(path.read_text("utf-8")) | {"reference": None, "reference_name": ""}
    record["diagnosis"]["effects"][0]["loss"] = None
    record["diagnosis"]["stages"] = record["diagnosis"]["stages"][1:]
    path.write_text(json.dumps(record), "utf-8")
    return made


def test_without_a_reference_its_rung_says_so(tmp_path: Path) -> None:
    made = without_reference(tmp_path / "a")
    (ladder,) = ladders_of(made)
    assert ladder.rungs[0].note == "not run" and [step.start for step in ladder.steps] == [1, 2, 3]


def test_a_reference_that_was_run_after_the_diagnosis_has_a_dot_and_no_arrow(tmp_path: Path) -> None:
    made = without_reference(tmp_path / "a")
    baseline = Folder(tmp_path / "b", "baseline pixels", baseline="pixels").answers(
        "med_cls_toy", outcomes(skill=3, seed=9)
    )
    (content,) = (item for item in ladders_of(made, baseline) if item.chart)
    first = content.rungs[0]
    assert first.stage == "reference" and "pixels" in first.source and first.accuracy.value > 0.8
    assert [step.start for step in content.steps] == [1, 2, 3]


def test_control_features_take_the_place_of_the_reference_where_the_loss_starts_from_them(tmp_path: Path) -> None:
    made = probed(tmp_path / "a")
    path = made.folder / "med_probe_toy.probes.json"
    record = json.loads(path.read_text("utf-8"))
    record["diagnosis"]["effects"][0]["before"] = "control.pixels (mean)"
    path.write_text(json.dumps(record), "utf-8")
    (ladder,) = ladders_of(made)
    assert (ladder.rungs[0].title, ladder.rungs[0].source) == ("control features", "control.pixels (mean)")
    assert ladder.rungs[0].accuracy.value == 0.5 and ladder.steps[0].start == 0


def test_an_unread_handover_marks_the_stages_up_to_which_the_class_is_readable(tmp_path: Path) -> None:
    handover = {"named": "unread hand-over", "readable_until": "llm.norm (last)", "candidates": ["llm -> answer"]}
    (ladder,) = ladders_of(probed(tmp_path / "a", **handover))
    assert ladder.readable == 3 and ladder.readable_until == "llm.norm (last)"
    with style():
        drawing = draw_ladder(ladder, "toy.ladder.1", 0)
    assert "readable up to here" in drawing.svg and "readable up to here" in drawing.interactive
    assert "The class can be read up to llm.norm (last)." in drawing.alt


def test_both_figures_show_the_same_numbers(tmp_path: Path) -> None:
    (ladder,) = ladders_of(probed(tmp_path / "a"))
    with style():
        drawing = draw_ladder(ladder, "toy.ladder.1", 0)
    words = ["".join(node.itertext()) for node in ET.fromstring(drawing.svg).iter() if node.tag.endswith("text")]
    said = " ".join(" ".join(words).split())
    for rung in ladder.rungs:
        value = f"{100 * rung.accuracy.value:.1f}%"
        assert value in said and value in drawing.interactive and value in drawing.alt
    for step in ladder.steps:
        size, interval = step.label.split(" (")
        for part in (size, interval, step.verdict):
            assert part in said and part in drawing.interactive and part in drawing.alt, part


def test_a_model_without_probes_has_a_short_ladder_and_a_command(tmp_path: Path) -> None:
    made = Folder(tmp_path / "a").answers("med_cls_toy", outcomes(skill=1))
    made.manifest["command"] |= {"model": "medm_vl", "model_args": "pretrained=demo"}
    made.write()
    baseline = Folder(tmp_path / "b", "baseline pixels", baseline="pixels")
    baseline.answers("med_cls_toy", outcomes(skill=4, seed=9))
    (ladder,) = ladders_of(made, baseline)
    assert [rung.stage for rung in ladder.rungs] == ["reference", "label", "answer"]
    (step,) = ladder.steps
    assert (step.start, step.end, step.verdict) == (0, 2, "stage unknown")
    assert step.loss.value == pytest.approx(ladder.rungs[0].accuracy.value - ladder.rungs[2].accuracy.value)
    assert ladder.command.startswith("lmms-eval --model medm_vl --model_args pretrained=demo --tasks med_probe_toy ")
    assert ladder.sentences[0] == "No probes were run, so it is not known where accuracy is lost."
    assert not ladder.stages and ladder.reference is not None


def test_several_probed_tasks_of_a_model_have_a_ladder_each(tmp_path: Path) -> None:
    made = add_probes(probed(tmp_path / "a").answers("med_probe_toy_letter", outcomes()), "med_probe_toy_letter")
    items = ladders_of(made)
    assert [item.task for item in items] == ["med_probe_toy", "med_probe_toy_letter"]
    assert len({item.chart for item in items}) == 2


def test_stages_that_are_not_on_record_are_not_measured(tmp_path: Path) -> None:
    (ladder,) = ladders_of(probed(tmp_path / "a", stages=[], effects=[]))
    notes = {rung.stage: rung.note for rung in ladder.rungs}
    assert notes == {
        "reference": "",
        "label": "",
        "answer": "",
        **dict.fromkeys(("vision", "connector", "llm"), "not measured"),
    }
    with style():
        assert "not measured" in draw_ladder(ladder, "toy.ladder.1", 0).alt


PATCHING = {
    "medmllm_patching": 1, "worse": "model", "better": "twin", "n": 64, "groups": 64,
    "worse_accuracy": estimate(0.4), "better_accuracy": estimate(0.7), "difference": estimate(0.3, 0.1),
    "first_restoring": "llm.11 (all)", "first_breaking": "connector",
    "shares": [{"module": "connector", "accuracy": estimate(0.2), "log_odds": estimate(0.2)},
               {"module": "llm", "accuracy": estimate(0.02), "log_odds": estimate(0.1)}],
}  # fmt: skip
KNOCKOUT = {
    "medmllm_knockout": 1, "n": 64, "groups": 64, "accuracy": estimate(0.7),
    "points": [{"first": "llm.00", "last": "llm.05", "queries": "text", "accuracy": estimate(0.4),
                "lost": estimate(0.3), "log_odds_lost": estimate(1)}],
}  # fmt: skip
INTERCHANGE = {"medmllm_interchange": 1, "image_until": "llm.11", "last_from": "llm.29"}
STEERING = {
    "medmllm_steering": 1,
    "chosen": {"layer": "llm.12", "tokens": "image", "direction": "probe", "dose": 0.1, "shift": estimate(1),
               "flips": estimate(0.34), "on_labels": 0.9},
}  # fmt: skip
INTERVENTIONS = {
    "medmllm_interventions": 1,
    "results": [{"name": "blur", "accuracy": estimate(0.7),
                 "points": [{"condition": "strong", "accuracy": estimate(0.6), "lost": estimate(0.1),
                             "log_odds_lost": estimate(1)}]}],
}  # fmt: skip


def repair(name: str, stage: str, gain: float, *, helps: bool) -> dict[str, Any]:
    return {
        "name": name, "title": name, "stage": stage, "parameters": 1, "seconds": 1, "steps": 0, "documents": 10,
        "validation_gain": estimate(gain), "accuracy": estimate(0.8), "gain": estimate(gain), "fixed": 3, "broken": 1,
        "parsed": 1.0, "ece": 0.1, "helps": helps,
    }  # fmt: skip


REPAIRS = {
    "medmllm_repairs": 1, "task": "med_probe_toy", "model": "hub/tiny", "n": 120, "groups": 60,
    "accuracy": estimate(0.7), "parsed": 1.0, "ece": 0.1, "sentence": "One helps.",
    "repairs": [repair("class bias removed", "output", 0.106, helps=True),
                repair("affine map", "output", 0.12, helps=False),
                repair("connector adapter", "connector", 0.02, helps=False)],
}  # fmt: skip


def with_interventions(folder: Path) -> Folder:
    made = probed(folder)
    records = {"patching": PATCHING, "knockout": KNOCKOUT, "interchange": INTERCHANGE, "steering": STEERING}
    for name, record in {**records, "interventions": INTERVENTIONS, "repair": REPAIRS}.items():
        path = made.folder / f"med_probe_toy.{name}.json"
        path.write_text(json.dumps(record | {"task": "med_probe_toy"}), "utf-8")
    return made


def test_causal_evidence_stands_at_its_stage(tmp_path: Path) -> None:
    (ladder,) = ladders_of(with_interventions(tmp_path / "a"))
    lines = {(line.stage, line.kind, line.text) for line in ladder.evidence}
    assert lines == {
        ("connector", "Patching", "Its states break the twin's answers from connector on."),
        ("connector", "Twin", "20.0 of the 30.0 points between model and twin arise here (95% CI 15.0–25.0)."),
        ("connector", "Repair", "Connector adapter: +2.0 points (95% CI −3.0 to +7.0), not beyond doubt."),
        ("llm", "Patching", "The twin's states restore its answers from llm.11 (all) on."),
        (
            "llm",
            "Interchange",
            "The answers depend on image tokens up to llm.11; the last token carries the class from llm.29 on.",
        ),
        ("llm", "Knock-out", "With the image hidden from all text, 30.0 points are lost (95% CI 25.0–35.0)."),
        (
            "llm",
            "Steering",
            "Pushes along the probe's direction at llm.12 (image) change 34.0% of the answers (95% CI 29.0–39.0).",
        ),
        ("answer", "Intervention", "blur: 10.0 points lost under strong (95% CI 5.0–15.0)."),
        ("answer", "Repair", "Class bias removed: +10.6 points (95% CI +5.6 to +15.6), helps."),
    }
    order = [line.stage for line in ladder.evidence]
    assert order == sorted(order, key=["vision", "connector", "llm", "answer"].index)


def test_a_twin_that_does_not_differ_shows_nothing(tmp_path: Path) -> None:
    made = probed(tmp_path / "a")
    record = PATCHING | {"task": "med_probe_toy", "difference": estimate(0.05, 0.1)}
    (made.folder / "med_probe_toy.patching.json").write_text(json.dumps(record), "utf-8")
    dataset = dataset_of(made)
    (line,) = causal_evidence(dataset, dataset.models[0])
    assert line == StageEvidence(
        "answer",
        "Twin",
        "The two checkpoints do not differ clearly (5.0 points, 95% CI −5.0 to +15.0), so patching shows nothing.",
    )


@pytest.mark.parametrize(
    ("site", "stage"),
    [
        ("llm.11 (all)", "llm"),
        ("connector alone", "connector"),
        ("vision", "vision"),
        ("answer", "answer"),
        ("", "answer"),
    ],
)
def test_every_site_has_a_stage(site: str, stage: str) -> None:
    assert stage_of(site) == stage


def test_only_a_known_accuracy_is_drawn() -> None:
    assert Rung("vision", Estimate(math.nan, math.nan, math.nan)).note == "not measured"
    assert Rung("reference", Estimate(0.4, 0.3, 0.5), used=False).note.startswith("not used")
    assert Rung("answer", Estimate(0.4, 0.3, 0.5)).note == ""


@pytest.mark.usefixtures("without_figures")
def test_the_page_shows_warnings_of_shortcuts_and_folds_tables(tmp_path: Path) -> None:
    made = with_interventions(tmp_path / "a")
    path = made.folder / "med_probe_toy.probes.json"
    record = json.loads(path.read_text("utf-8"))
    record["shortcuts"]["warnings"] = ["The class can be read from the border: 51.8% (chance 33.3%). Look for marks."]
    path.write_text(json.dumps(record), "utf-8")
    write_report([made.folder], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text("utf-8")
    signal = html[html.index('<section id="signal"') : html.index('<section id="errors"')]
    before, folded = signal.split("<details", 1)
    assert "The class can be read from the border: 51.8% (chance 33.3%)." in before and "Look for marks" not in before
    assert "<table" not in before and folded.count("<table") >= 10 and "<details open" not in signal
    assert "Connector adapter: +2.0 points" in before and 'data-stage="connector"' in before
    assert '<details class="numbers" open' not in signal


@pytest.mark.usefixtures("without_figures")
def test_more_than_four_ladders_are_folded(tmp_path: Path) -> None:
    folders = [
        Folder(tmp_path / str(turn), f"model-{turn}").answers("med_cls_toy", outcomes(seed=turn)).folder
        for turn in range(6)
    ]
    write_report(folders, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text("utf-8")
    signal = html[html.index('<section id="signal"') : html.index('<section id="errors"')]
    before, folded = signal.split("2 more ladders</summary>")
    assert (before.count("<article"), folded.count("<article")) == (4, 2)
    assert signal.count("<div") == signal.count("</div>") and signal.count("<details") == signal.count("</details>")


def test_a_report_has_a_figure_for_each_ladder(tmp_path: Path) -> None:
    made = probed(tmp_path / "a")
    report = build_report(collect_runs([made.folder]))
    assert not [note for note in report.notes.missing if "could not be drawn" in note]
    assert {"toy.ladder.1", "toy.layers.1"} <= {drawing.stem for drawing in report.drawings()}
