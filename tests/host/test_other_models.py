"""Models that are not ours on our tasks: text gets every metric that text allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASK = "med_cls_demo"
TEXT_METRICS = {"accuracy", "balanced", "macro_f1", "mcc", "parsed"}


def answering(text: str) -> Any:
    """The host's own model that gives one answer to everything."""
    import lmms_eval.models

    return lmms_eval.models.get_model("dummy")(response=text)


def test_dummy_gets_every_metric_that_text_allows(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    evaluated = evaluate(tmp_path / "out", model="dummy", model_args="response=round mass", batch_size=1, limit=40)
    assert evaluated.returned["config"]["model_backend"] == "lmms_eval.models.simple.dummy.Dummy (simple)"
    values = evaluated.values(TASK)
    assert set(values) == {f"{metric},none" for metric in TEXT_METRICS}
    share = sum(sample["target"] == "round mass" for sample in evaluated.samples(TASK)) / 40
    assert values["accuracy,none"] == pytest.approx(share)
    assert values["balanced,none"] == pytest.approx(0.25)
    assert values["mcc,none"] == 0.0
    assert values["parsed,none"] == 1.0
    written = json.loads((evaluated.folder / f"{TASK}.metrics.json").read_text())
    assert set(written["metrics"]) == TEXT_METRICS
    # The manifest is written for a model of the host's too; what only our wrapper knows is not made up.
    assert evaluated.folder.parent == tmp_path / "out" / "medmllm_runs"
    assert evaluated.manifest["model"] is None
    assert evaluated.manifest["tasks"][TASK]["evaluated"] == 40


def test_the_kind_of_task_follows_the_model(task_manager: Any, drawn_once: None) -> None:
    from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask

    from medmllm_plugins.host.task_loading import task_loading

    simple = task_manager.load_task_or_group(TASK, "simple")[TASK]
    chat = task_manager.load_task_or_group([TASK], task_type="chat")[TASK]
    assert isinstance(simple, ConfigurableTask) and not isinstance(simple, ConfigurableMessagesTask)
    assert isinstance(chat, ConfigurableMessagesTask)
    doc = simple.test_docs()[0]
    assert chat.test_docs()[0] == doc
    (image,) = simple.doc_to_visual(doc)
    (message,) = chat.doc_to_messages(doc)
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][0]["url"].tobytes() == image.tobytes() and image.mode == "RGB"
    assert message["content"][1]["text"] == simple.doc_to_text(doc)
    # The kind that one load asked for must not stay for the next.
    assert task_loading().task_type == "simple"


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("I cannot answer this.", False),
        # JSON of another model's making, near to our envelope.
        ('{"medmllm": 2, "text": "no finding", "scores": null}', True),
        ("{}", False),
    ],
)
def test_any_text_is_scored(evaluate: Callable[..., Any], tmp_path: Path, answer: str, parsed: bool) -> None:
    evaluated = evaluate(tmp_path, model=answering(answer), model_args=None, limit=8)
    assert set(evaluated.values(TASK)) == {f"{metric},none" for metric in TEXT_METRICS}
    assert evaluated.values(TASK)["parsed,none"] == float(parsed)


def test_group_runs_over_its_tasks(evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path) -> None:
    from lmms_eval.utils import make_table

    evaluated = evaluate(tmp_path / "out", model=answering("benign"), model_args=None, tasks=["med_cls"])
    busi, covid, chest = (evaluated.values(f"med_cls_{name}") for name in ("busi", "covid19_ct", "chest_xray"))
    assert set(busi) == set(covid) == set(chest) == {f"{metric},none" for metric in TEXT_METRICS}
    assert (busi["parsed,none"], covid["parsed,none"]) == (1.0, 0.0)
    assert busi["balanced,none"] == pytest.approx(1 / 3)
    assert covid["accuracy,none"] == 0.0

    group = evaluated.returned["groups"]["med_cls"]
    for metric in ("accuracy", "balanced"):
        assert group[f"{metric},none"] == pytest.approx(
            (busi[f"{metric},none"] + covid[f"{metric},none"] + chest[f"{metric},none"]) / 3
        )
    # No other metric may leak into a group's row: the host finds its metrics by substring.
    assert {key for key in group if "stderr" not in key} == {"accuracy,none", "balanced,none", "alias"}
    _, _, *rows = [
        [cell.strip() for cell in row.split("|")] for row in make_table(evaluated.returned, "groups").split("\n")
    ]
    assert [(row[1], row[4], row[6]) for row in rows if len(row) > 1] == [
        ("med_cls", "accuracy", f"{group['accuracy,none']:.4f}"),
        ("med_cls", "balanced", f"{group['balanced,none']:.4f}"),
    ]
    assert {path.name for path in evaluated.folder.glob("*.metrics.json")} == {
        "med_cls_busi.metrics.json",
        "med_cls_covid19_ct.metrics.json",
        "med_cls_chest_xray.metrics.json",
    }
    assert set(evaluated.manifest["tasks"]) == {"med_cls_busi", "med_cls_covid19_ct", "med_cls_chest_xray"}
    for task, images in (("med_cls_busi", 18), ("med_cls_covid19_ct", 12), ("med_cls_chest_xray", 14)):
        facts = evaluated.manifest["tasks"][task]
        assert sum(sum(counts.values()) for counts in facts["counts"].values()) == images
        assert facts["evaluated"] == facts["documents"] == sum(facts["counts"]["test"].values())


def test_group_runs_with_our_model_over_all_tasks(
    evaluate: Callable[..., Any], tmp_path: Path, data_tree: Path
) -> None:
    """Three tasks in one call of the model: each gets the scores of its own labels, three and two and two."""
    evaluated = evaluate(tmp_path / "out", tasks=["med_cls"], batch_size=16)
    for task, labels in (("med_cls_busi", 3), ("med_cls_covid19_ct", 2), ("med_cls_chest_xray", 2)):
        replies = [json.loads(sample["filtered_resps"][0]) for sample in evaluated.samples(task)]
        assert replies and all(len(reply["scores"]) == labels for reply in replies)
        assert 0.0 <= evaluated.values(task)["auroc,none"] <= 1.0
    prompts = {task: facts["prompt"] for task, facts in evaluated.manifest["tasks"].items()}
    assert "breast ultrasound" in prompts["med_cls_busi"] and "chest CT" in prompts["med_cls_covid19_ct"]
    names = [stage["name"] for stage in evaluated.manifest["stages"]]
    assert sorted(names) == sorted({"data", "load", "score", *(f"answer {task}" for task in prompts)})


def test_real_images(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_data: Path
) -> None:
    monkeypatch.setenv("MEDMLLM_DATA", str(real_data))
    evaluated = evaluate(tmp_path, tasks=["med_cls_busi", "med_cls_covid19_ct"], batch_size=16, limit=16)
    for task, labels in (("med_cls_busi", 3), ("med_cls_covid19_ct", 2)):
        samples = evaluated.samples(task)
        assert len(samples) == 16
        for sample in samples:
            assert len(json.loads(sample["filtered_resps"][0])["scores"]) == labels
            # Where the images lie is nobody's business who gets the log.
            assert str(real_data) not in json.dumps(sample, default=str)
