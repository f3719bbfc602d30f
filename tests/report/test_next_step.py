"""The next step of the first screen: the action, its reason and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.answer_folders import baseline, diagnosed, guessing, model, section_of, unread
from support.run_folders import Folder, outcomes

from medmllm_plugins.report.answer import next_step
from medmllm_plugins.results.probe_records import INTERFACES
from medmllm_plugins.runtime.repair_candidates import CANDIDATES

DIAGNOSES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "vision": ({"named": "vision", "supported": ["vision"]}, ["vision_lora"]),
    "connector": ({"named": "connector", "supported": ["connector"]}, ["connector_adapter", "connector_lora"]),
    "comprehension": (
        {"named": "comprehension", "supported": ["comprehension"]},
        ["block_adapter", "attention_lora"],
    ),
    "mapping": (
        {"named": "mapping", "supported": ["mapping"]},
        ["relabelling", "class_bias", "blank_image", "affine", "wording", "few_shot"],
    ),
    "handover": (
        {
            "named": "unread hand-over",
            "readable_until": "llm.norm (last)",
            "candidates": ["vision -> connector", "llm"],
            "supported": ["mapping"],
        },
        ["relabelling", "class_bias", "blank_image", "affine", "wording", "few_shot", "connector_adapter",
         "block_adapter", "connector_lora", "attention_lora"],
    ),
    "several": (
        {"supported": ["vision", "connector"]},
        ["connector_adapter", "connector_lora", "vision_lora"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIAGNOSES)
def test_the_step_fits_the_diagnosis(tmp_path: Path, kind: str) -> None:
    change, candidates = DIAGNOSES[kind]
    (step,) = section_of(diagnosed(tmp_path, dict(change))).answer.steps
    assert step.kind == kind and step.hypothesis.startswith("If ")
    repair, add = step.commands
    head = "medmllm repair med_cls_toy --model model-a --model_args pretrained=hub/tiny --candidates "
    assert repair.line == head + " ".join(candidates)
    assert add.line == "medmllm baseline med_cls_toy", "without a reference, one is suggested second"


def test_where_every_repair_may_fit_none_is_listed(tmp_path: Path) -> None:
    change = {"named": "unread hand-over", "candidates": list(INTERFACES), "supported": ["mapping"]}
    (step,) = section_of(diagnosed(tmp_path, change)).answer.steps
    assert step.commands[0].line == "medmllm repair med_cls_toy --model model-a --model_args pretrained=hub/tiny"
    assert step.hypothesis == "If a hand-over is at fault, a repair there should regain the class."


def test_patching_decides_before_the_probes(tmp_path: Path) -> None:
    change = {"named": "connector", "patched": ["connector"], "supported": ["vision"]}
    (step,) = section_of(diagnosed(tmp_path, change)).answer.steps
    assert step.kind == "connector" and step.observation.startswith("Patching with a better twin shows")


def test_answers_that_match_the_reference_have_no_stage_to_blame(tmp_path: Path) -> None:
    made = diagnosed(tmp_path, {"named": "vision", "supported": ["vision"]})
    section = section_of(made, baseline(tmp_path, outcomes(skill=1.2, seed=0)))
    (verdict,) = section.verdicts
    assert verdict.reference.informative and verdict.answers_match_reference and verdict.diagnosis.named is None
    assert "at least as accurate as the reference classifier" in section.sentence
    (step,) = section.answer.steps
    assert step.kind == "matches" and "tower" not in f"{step.observation} {step.hypothesis}"
    assert not any("repair" in command.line for command in step.commands)


def test_without_a_loss_the_reference_comes_first(tmp_path: Path) -> None:
    (step,) = section_of(diagnosed(tmp_path, {})).answer.steps
    assert step.kind == "no_loss" and "rule out a loss of 10.0 points or more" in step.observation
    assert [command.line.split()[1] for command in step.commands] == ["baseline", "diagnose"]
    (step,) = section_of(diagnosed(tmp_path, {}, "model-b"), baseline(tmp_path)).answer.steps
    (command,) = step.commands
    assert command.line.endswith("med_cls_toy:order=varied,med_cls_toy:paraphrase=all,med_cls_toy:image=blank")


def test_a_useless_reference_is_to_be_replaced(tmp_path: Path) -> None:
    made = diagnosed(tmp_path, {})
    path = made.folder / "med_probe_toy.probes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vision = next(effect for effect in content["diagnosis"]["effects"] if effect["mode"] == "vision")
    vision["verdict"] = "cannot tell"
    path.write_text(json.dumps(content), encoding="utf-8")
    (step,) = section_of(made, baseline(tmp_path, guessing(outcomes()))).answer.steps
    assert step.commands[0].line.endswith("--method timm:resnet18")
    assert step.hypothesis.startswith("If the tower loses the class, a reference classifier reads more")


def test_without_probes_the_step_is_to_probe(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a")
    made.manifest["command"]["model_args"] = "pretrained=hub/tiny,api_key=secret"
    (step,) = section_of(made.write(), baseline(tmp_path)).answer.steps
    assert step.kind == "not_probed"
    (command,) = step.commands
    assert command.line == "lmms-eval --model model-a --model_args pretrained=hub/tiny --tasks med_probe_toy"


def test_answers_that_cannot_be_read_are_asked_for_otherwise(tmp_path: Path) -> None:
    made = model(tmp_path, "model-a", unread(outcomes()))
    made.manifest["command"]["model_args"] = "pretrained=hub/tiny"
    (step,) = section_of(made.write()).answer.steps
    assert step.kind == "unread"
    assert [command.line.split()[0] for command in step.commands] == ["lmms-eval", "medmllm"]
    assert step.commands[0].line.endswith("med_cls_toy_letter")


@pytest.mark.parametrize("helps", [True, False])
def test_a_repair_that_was_run_is_measured(tmp_path: Path, helps: bool) -> None:
    made = model(tmp_path, "model-a")
    study = Folder(tmp_path / "study", "model-a").answers("med_cls_toy", outcomes()).repairs("med_cls_toy", helps=helps)
    study.manifest["command"] = {"repair": "med_cls_toy", "model": "model-a", "model_args": "pretrained=hub/tiny"}
    (step,) = section_of(made, study.write()).answer.steps
    if helps:
        assert step.observation.startswith("Low-rank adapter at the connector gains 12.0 points (95% CI +5.0 to +20.0)")
        assert step.commands[0].line == (
            "lmms-eval --model model-a --model_args pretrained=hub/tiny,"
            "repair=repairs/med_cls_toy-model-a/connector_adapter,twin=hub/tiny --tasks med_probe_toy"
        )
    else:
        assert step.observation == "None of 2 repairs that were tried helps."


def test_repairs_that_change_nothing_where_nothing_is_lost_are_no_news(tmp_path: Path) -> None:
    def step(change: dict[str, Any], *, helps: bool) -> str:
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        made = diagnosed(root, change).answers("med_cls_toy", outcomes()).repairs("med_cls_toy", helps=helps)
        (step,) = section_of(made.write()).answer.steps
        return step.kind

    assert step({"supported": []}, helps=False) == "no_loss"
    assert step({"supported": []}, helps=True) == "repaired"
    assert step({"named": "connector", "supported": ["connector"]}, helps=False) == "not_repaired"


def test_the_step_is_about_the_best_model_that_was_probed(tmp_path: Path) -> None:
    probed = [diagnosed(tmp_path, {"named": "connector", "supported": ["connector"]}, name) for name in ("m1", "m2")]
    best = model(tmp_path, "m3", outcomes(skill=9))
    steps = section_of(*probed, best).answer.steps
    assert [step.model for step in steps] == ["m1 (tiny)", "m2 (tiny)", "m3 (tiny)"]
    assert [step.kind for step in steps] == ["connector", "connector", "not_probed"]


def test_no_model_no_repair(tmp_path: Path) -> None:
    (step,) = section_of(baseline(tmp_path)).answer.steps
    assert step.kind == "no_model" and step.commands[0].line == "medmllm models"


def test_shortcuts_are_warned_of_before_a_repair(tmp_path: Path) -> None:
    made = diagnosed(tmp_path, {"named": "connector", "supported": ["connector"]})
    path = made.folder / "med_probe_toy.probes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["shortcuts"]["warnings"] = ["The border tells the class."]
    path.write_text(json.dumps(content), encoding="utf-8")
    (step,) = section_of(made).answer.steps
    assert step.caution.startswith("A shortcut warning") and step.evidence[0] == "table-toy.shortcuts"


def test_the_repairs_are_those_of_the_command_in_its_order() -> None:
    assert tuple(CANDIDATES) == next_step.CHEAP_FIRST


# -- The page
