"""med_probe tasks through the host: one pass gives answers, features and the diagnosis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from host.conftest import PROBE_LIMIT, PROBE_TASK
from safetensors.numpy import load_file

from medmllm_plugins import Run
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.errors import OptionError
from medmllm_plugins.features import store_writer
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.results.feature_store import FeatureStore

matplotlib.use("Agg")
TASK, LIMIT = PROBE_TASK, PROBE_LIMIT
PRINTED = {
    "accuracy", "balanced", "probe", "fhs_vision", "fhs_connector", "fhs_llm", "lost_vision", "lost_connector",
    "lost_comprehension", "lost_mapping",
}  # fmt: skip


def all_features(folder: Path, task: str = TASK) -> FeatureStore:
    return FeatureStore(folder / "features" / task.replace(":", "+"))


def store_of(folder: Path, task: str = TASK) -> FeatureStore:
    """Open the features of a task, without those of masked images."""
    store = all_features(folder, task)
    return store.only(np.flatnonzero(store.index["fold"].isin(FOLDS)))


def test_the_host_prints_answers_probe_health_and_effects(probed: Any) -> None:
    values = probed.values(TASK)
    assert set(values) == {f"{metric},none" for metric in PRINTED}
    assert values["accuracy,none"] > 0.9 and values["probe,none"] > 0.8
    assert values["lost_vision,none"] == "N/A"  # no reference stands beside the run
    assert all(isinstance(values[f"{name},none"], float) for name in PRINTED - {"lost_vision"})
    better = probed.returned["higher_is_better"][TASK]
    assert {name for name in PRINTED if not better[name]} == {name for name in PRINTED if name.startswith("lost_")}
    record = json.loads((probed.folder / f"{TASK}.probes.json").read_text(encoding="utf-8"))
    assert record["diagnosis"]["named"] is None
    assert record["best"]["accuracy"]["value"] == pytest.approx(values["probe,none"])
    assert probed.manifest["finished"] and probed.manifest["tasks"][TASK]["probes"]["named"] is None
    assert {stage["name"] for stage in probed.manifest["stages"]} >= {f"answer {TASK}", f"probe {TASK}"}


def test_every_stage_of_every_document_is_kept_once(probed: Any) -> None:
    store = store_of(probed.folder)
    assert len(store) == LIMIT and store.header.model == "medm_vl"
    names = [layer.name for layer in store.header.layers if layer.part != "control"]
    blocks = [f"{part}.{number:02d}" for part in ("vision", "llm") for number in range(6)]
    assert names == [*blocks[:6], "vision.norm", "connector", "llm.embed", *blocks[6:], "llm.norm"]
    assert [layer.name for layer in store.header.layers if not layer.read] == [
        "vision.norm",
        "control.random_encoder.vision.norm",
    ]
    assert store.header.model_fingerprint == probed.manifest["model"]["fingerprint"]
    assert store.header.dataset_fingerprint == probed.manifest["tasks"][TASK]["dataset_fingerprint"]
    store.check()
    whole = all_features(probed.folder)
    masked = whole.index[whole.index["fold"] == "masked"]
    test = set(store.index["document"][store.index["fold"] == "test"])
    assert set(masked["document"]) == test and len(masked) == len(test) == len(whole) - LIMIT  # fewer than 100
    for layer in store.header.layers:
        for pooling in layer.poolings:
            assert np.isfinite(store.features(layer.name, pooling)).all()


def test_the_public_reader_returns_what_the_run_wrote(probed: Any) -> None:
    run = Run(probed.folder)
    assert run.notes == () and run.tasks == [TASK]
    manifest = run.manifest.to_dict()
    assert {key: manifest[key] for key in probed.manifest} == probed.manifest
    rows = [json.loads(line) for line in (probed.folder / f"{TASK}.outcomes.jsonl").read_text("utf-8").splitlines()]
    for column in ("id", "document", "group", "label", "predicted", "status", "answer", "scores"):
        assert [list(v) if isinstance(v, tuple) else v for v in run.outcomes[column]] == [row[column] for row in rows]
    own = run.metrics.query("source == 'model'").set_index("metric")["value"]
    written = pd.read_csv(probed.folder / f"{TASK}.metrics.csv").set_index("metric")["value"]
    assert own.to_dict() == pytest.approx(written.to_dict(), nan_ok=True)
    for metric in ("accuracy", "balanced"):
        assert own[metric] == probed.values(TASK)[f"{metric},none"]
    curves = json.loads((probed.folder / f"{TASK}.probes.json").read_text("utf-8"))
    tested = run.probes.query("fold == 'test'").pivot(index=["layer", "pooling"], columns="metric", values="value")
    assert len(tested) == len(curves["points"]) > 30
    for point in curves["points"]:
        for metric in ("accuracy", "balanced", "control", "selectivity", "label_permutation", "p"):
            value = point[metric]["value"] if isinstance(point[metric], dict) else point[metric]
            assert tested.loc[(point["layer"], point["pooling"]), metric] == value
    effects = curves["diagnosis"]["effects"]
    assert run.diagnosis[["mode", "verdict"]].to_numpy().tolist() == [[e["mode"], e["verdict"]] for e in effects]
    for layer, pooling in (("llm.02", "last"), ("control.pixels", "mean")):
        features, index = run.features(layer, pooling)
        shards = sorted((probed.folder / "features" / TASK).glob("*.safetensors"))
        stored = {tuple(row) for shard in shards for row in load_file(shard)[f"{layer}/{pooling}"].astype(np.float32)}
        assert len(index) == len(features) == LIMIT and {tuple(row) for row in features} < stored
        assert np.array_equal(features, store_of(probed.folder).features(layer, pooling))
    assert index["fold"].value_counts()["test"] == len(rows)
    folds = run.folds.set_index("id")
    columns = ["fold", "group", "label"]
    assert folds.loc[index["id"], columns].to_numpy().tolist() == index[columns].to_numpy().tolist()


def test_layers_are_plotted_with_all_controls(probed: Any) -> None:
    upper, lower = Run(probed.folder).plot_layers()
    points = json.loads((probed.folder / f"{TASK}.probes.json").read_text("utf-8"))["points"]
    curves = {str(line.get_label()): list(line.get_ydata()) for line in upper.get_lines()}
    encoder = {p["layer"]: 100 * p["accuracy"]["value"] for p in points if "random_encoder" in p["layer"]}
    drawn = [value for value in curves["control: random encoder"] if not np.isnan(value)]
    assert drawn == pytest.approx(list(encoder.values())) and len(drawn) == 8
    (pixels_point,) = [point for point in points if point["layer"] == "control.pixels"]
    assert curves["control: raw pixels"] == pytest.approx([100 * pixels_point["accuracy"]["value"]])
    band = next(item for item in lower.collections if str(item.get_label()).startswith("label permutation"))
    ends = band.get_paths()[0].get_extents()
    mean = [point for point in points if point["pooling"] == "mean" and point["part"] != "control"]
    assert ends.y0 == pytest.approx(100 * min(point["label_permutation"] for point in mean))
    assert ends.y1 == pytest.approx(100 * max(point["label_permutation_high"] for point in mean))


def test_train_and_validation_need_the_prefill_alone(probed: Any) -> None:
    index = store_of(probed.folder).index
    fold = index["fold"].astype(str)
    answered = index["answer"].str.len() > 0
    scored = index["scores"].map(lambda scores: scores is not None)
    assert answered[fold == "test"].all() and not answered[fold != "test"].any()
    assert scored[fold != "train"].all() and not scored[fold == "train"].any()
    assert len(probed.samples(TASK)) == LIMIT
    evaluated = probed.manifest["tasks"][TASK]["evaluated"]
    assert evaluated == int((fold == "test").sum()) > 20


def test_features_and_answers_are_those_of_the_model_called_plainly(probed: Any) -> None:
    from medmllm_plugins.data.loading.catalogue import dataset_specs
    from medmllm_plugins.data.loading.dataset import load_dataset
    from medmllm_plugins.models.formats.medm_vl import load
    from medmllm_plugins.models.options import LoadOptions

    model = load(LoadOptions("demo", device="cpu"))
    data = load_dataset(dataset_specs()["demo"])
    documents = {document.id: document for document in data.documents}
    store = store_of(probed.folder)
    with (probed.folder / f"{TASK}.outcomes.jsonl").open(encoding="utf-8") as handle:
        answers = {row["id"]: row["answer"] for row in map(json.loads, handle)}
    prompt = probed.manifest["tasks"][TASK]["prompt"].split("<image>\n")[1].removesuffix(" ASSISTANT:")
    for row in (0, 101, 239):
        name = str(store.index["id"].iloc[row])
        inputs = model.prepare([prompt], [data.image(documents[name])])
        length = inputs["input_ids"].shape[1]
        out = model.model(**inputs, output_hidden_states=True, use_cache=False)
        mask = inputs["input_ids"][0] == model.model.config.image_token_id
        assert length > int(mask.sum()) > 0
        for layer, state in (("llm.embed", 0), ("llm.02", 3), ("llm.norm", -1)):
            hidden = out.hidden_states[state][0].detach().numpy()
            for pooling, expected in (("last", hidden[-1]), ("mean", hidden[mask].mean(0))):
                vector = store.features(layer, pooling, np.array([row]))[0]
                np.testing.assert_allclose(vector, expected, rtol=2e-3, atol=2e-3)
        if name in answers:
            (plain,) = model.generate([prompt], [data.image(documents[name])], max_new_tokens=8)
            assert answers[name] == plain.text.strip()


@pytest.mark.slow
def test_other_batches_give_the_same(probed: Any, evaluate: Callable[..., Any], tmp_path: Path) -> None:
    other = evaluate(tmp_path, tasks=[TASK], batch_size=7, limit=LIMIT)
    first, second = store_of(probed.folder), store_of(other.folder)
    assert list(first.index["id"]) == list(second.index["id"]) and list(first.index["answer"]) == list(
        second.index["answer"]
    )
    np.testing.assert_allclose(
        first.features("llm.05", "last"), second.features("llm.05", "last"), rtol=2e-3, atol=5e-3
    )
    for name, value in probed.values(TASK).items():
        assert other.values(TASK)[name] == (value if isinstance(value, str) else pytest.approx(value, abs=0.02))


@pytest.mark.slow
def test_a_broken_run_goes_on_and_asks_again_what_has_no_features(
    probed: Any, evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "SHARD_ROWS", 32)
    asked: list[int] = []
    generate = LoadedModel.generate

    def failing(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if "watch" in kwargs:
            asked.append(len(questions))
            if len(asked) == 9:
                raise KeyboardInterrupt
        return generate(self, questions, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LoadedModel, "generate", failing)
        evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=LIMIT)
    (features,) = (tmp_path / "medmllm_runs" / ".unfinished").glob("*/features/*")
    done = len(FeatureStore(features))
    assert 0 < done <= 8 * 16
    # The last shard is lost, though its answers are in the journal.
    last = sorted((features / "index").glob("*.parquet"))[-1]
    lost = len(pd.read_parquet(last))
    last.unlink()
    asked.clear()
    asked.extend([0] * 20)

    def counting(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if "watch" in kwargs:
            asked.append(len(questions))
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counting)
    again = evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=LIMIT)
    assert sum(asked) == len(all_features(probed.folder)) - done + lost
    assert list(all_features(again.folder).index["id"]) == list(all_features(probed.folder).index["id"])
    assert again.values(TASK)["accuracy,none"] == probed.values(TASK)["accuracy,none"]
    assert again.values(TASK)["probe,none"] == pytest.approx(probed.values(TASK)["probe,none"], abs=0.02)
    assert not list((tmp_path / "medmllm_runs").glob(".unfinished/*"))


def test_anchors_are_asked_in_the_same_run(probed: Any, evaluate: Callable[..., Any], tmp_path: Path) -> None:
    from medmllm_plugins.data.core.image_controls import draw_marks
    from medmllm_plugins.data.loading.catalogue import dataset_specs
    from medmllm_plugins.data.loading.dataset import load_dataset
    from medmllm_plugins.models.formats.medm_vl import load
    from medmllm_plugins.models.options import LoadOptions
    from medmllm_plugins.prompts.anchor_prompts import mark_anchors

    record = json.loads((probed.folder / f"{TASK}.probes.json").read_text(encoding="utf-8"))["anchors"]
    table = pd.read_csv(probed.folder / f"{TASK}.anchors.csv", keep_default_na=False)
    tested = pd.DataFrame(store_of(probed.folder).index).query("fold == 'test'")
    count = min(48, len(tested))
    counts = {"text": 20, "presence": count, "position": count, "count": count}
    assert {result["kind"]: result["n"] for result in record["results"]} == counts and record["not_run"] == {}
    assert table["kind"].value_counts().to_dict() == counts
    for result in record["results"]:
        rows = table[table["kind"] == result["kind"]]
        assert result["accuracy"]["value"] == pytest.approx((rows["label"] == rows["predicted"]).mean())
        assert result["parsed"] == pytest.approx((rows["status"] == "parsed").mean())
    assert set(table["document"]) - {""} <= set(tested["document"].astype(str)), "only what was evaluated is shown"
    entry = probed.manifest["tasks"][TASK]["probes"]["anchors"]
    assert set(entry) == {"text", "positive"} and "not run" not in entry.values()
    # The answers are those of the model called plainly.
    model, data = load(LoadOptions("demo", device="cpu")), load_dataset(dataset_specs()["demo"])
    documents = {document.id: document for document in data.documents}
    chosen = [documents[name] for name in tested["document"].astype(str)]
    items = mark_anchors(chosen, data.spec)
    for item in items[::17]:
        assert item.document is not None
        image = draw_marks(data.image(item.document), item.marks)
        (answer,) = model.generate([item.question.text], [image], max_new_tokens=64)
        (row,) = table[(table["kind"] == item.kind) & (table["document"] == item.document.id)].to_dict("records")
        assert (row["question"], row["label"], row["answer"]) == (item.question.text, item.label, answer.text.strip())
    # They change nothing of the task, and can be left out.
    without = evaluate(tmp_path, tasks=[f"{TASK}:anchors=0"], batch_size=16, limit=PROBE_LIMIT)
    stem = f"{TASK}+anchors=0"
    assert (without.folder / f"{stem}.outcomes.jsonl").read_text() == (
        probed.folder / f"{TASK}.outcomes.jsonl"
    ).read_text()
    assert not (without.folder / f"{stem}.anchors.csv").exists()
    left_out = json.loads((without.folder / f"{stem}.probes.json").read_text(encoding="utf-8"))["anchors"]
    assert left_out == {"results": [], "not_run": dict.fromkeys(("text", "positive"), "switched off (anchors=0)")}


@pytest.mark.slow
def test_anchors_of_a_broken_run_are_those_of_a_whole_one(
    probed: Any, evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = LoadedModel.generate
    asked: list[str] = []

    def failing(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["max_new_tokens"] and "watch" not in kwargs:
            asked.extend(questions)
            if len(asked) > 60:
                raise KeyboardInterrupt
        return generate(self, questions, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LoadedModel, "generate", failing)
        evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=PROBE_LIMIT)
    done = sum(text.startswith("Findings") for text in asked)
    assert done == 20 and any(text.startswith("Is there a white square") for text in asked[:-16])
    asked.clear()

    def counting(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["max_new_tokens"]:
            asked.extend(questions)
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counting)
    again = evaluate(tmp_path, tasks=[TASK], batch_size=16, limit=PROBE_LIMIT)
    assert not any(text.startswith("Findings") for text in asked) and asked
    for name in (f"{TASK}.anchors.csv", f"{TASK}.outcomes.jsonl"):
        assert (again.folder / name).read_text() == (probed.folder / name).read_text()
    records = [json.loads((run.folder / f"{TASK}.probes.json").read_text()) for run in (probed, again)]
    assert records[0]["anchors"] == records[1]["anchors"]


def test_a_model_of_the_hosts_gets_what_text_allows(
    evaluate: Callable[..., Any], tmp_path: Path, warned: list[str]
) -> None:
    evaluated = evaluate(
        tmp_path, model="dummy", model_args="response=round mass", tasks=[TASK], batch_size=1, limit=60
    )
    values = evaluated.values(TASK)
    assert 0 <= values["accuracy,none"] < 0.6 and values["balanced,none"] == pytest.approx(0.25)
    assert {values[f"{name},none"] for name in PRINTED - {"accuracy", "balanced"}} == {"N/A"}
    assert any("expected features of the model's stages, got none" in message for message in warned)


@pytest.mark.slow
def test_answers_of_the_hosts_cache_have_no_features(
    evaluate: Callable[..., Any], tmp_path: Path, warned: list[str]
) -> None:
    settings = {"tasks": [TASK], "batch_size": 16, "limit": 120, "use_cache": str(tmp_path / "cache")}
    first = evaluate(tmp_path / "one", **settings)
    assert isinstance(first.values(TASK)["probe,none"], float)
    second = evaluate(tmp_path / "two", **settings)
    assert second.values(TASK)["probe,none"] == "N/A"
    assert second.values(TASK)["accuracy,none"] == first.values(TASK)["accuracy,none"]
    assert any("run again without --use_cache" in message for message in warned)


def test_too_small_a_sample_is_told_and_the_answers_are_scored(
    evaluate: Callable[..., Any], tmp_path: Path, warned: list[str]
) -> None:
    evaluated = evaluate(tmp_path, tasks=[TASK], batch_size=8, limit=8)
    assert evaluated.values(TASK)["probe,none"] == "N/A" and "accuracy,none" in evaluated.values(TASK)
    assert any("no probes: " in message for message in warned)
    assert evaluated.manifest["tasks"][TASK]["probes"]["failed"]


def test_poolings_on_request_and_the_floor_left_out(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    task = f"{TASK}:pool=max+answer:random_encoder=off"
    evaluated = evaluate(tmp_path, tasks=[task], batch_size=16, limit=48)
    store = store_of(evaluated.folder, task)
    poolings = {layer.name: layer.poolings for layer in store.header.layers}
    assert poolings["vision.03"] == ("mean", "max") and poolings["connector"] == ("mean", "max")
    assert set(poolings["llm.03"]) == {"last", "mean", "max", "answer"}
    controls = [name for name in poolings if name.startswith("control")]
    assert controls == ["control.pixels", "control.border", "control.corners", "control.centre"]


def test_few_shot_examples_are_refused(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected no few-shot examples"):
        evaluate(tmp_path, tasks=[TASK], num_fewshot=2, limit=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{TASK}:folds=test", "leave `folds` out"),
        (f"{TASK}:order=varied", "one question for each document"),
        (f"{TASK}:pool=sum", "expected `pool` to be some of"),
        (f"{TASK}:finding=mass", "`finding` does not apply"),
        ("med_probe_chestmnist", "a probe is of one finding"),
        ("med_cls_demo:pool=max", "apply to med_probe tasks only"),
    ],
)
def test_arguments_that_do_not_go_together(name: str, message: str) -> None:
    from medmllm_plugins.prompts.task_names import task_settings

    with pytest.raises(OptionError, match=message):
        task_settings(name)


def test_a_finding_of_a_multilabel_set_is_probed_alone() -> None:
    from medmllm_plugins.prompts.task_names import task_settings
    from medmllm_plugins.prompts.task_rows import TaskRows

    settings = task_settings("med_probe_chestmnist:finding=edema")
    rows = TaskRows(settings, ())
    assert rows.findings == ("edema",) and rows.classes == ("yes", "no")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Torchrun with gloo, as on several GPUs: each rank writes its own shards, rank 0 fits."""
    scripts = Path(sysconfig.get_path("scripts"))
    words = ["-m", "lmms_eval", "--model", "medm_vl", "--model_args", "pretrained=demo,device=cpu", "--tasks", TASK]
    words += ["--batch_size", "16", "--limit", "301"]
    commands = {
        "one": [sys.executable, *words],
        "two": [str(scripts / "torchrun"), "--nproc_per_node", "2", "--master_port", "29541", *words],
    }
    folders = {}
    for name, command in commands.items():
        subprocess.run(
            [*command, "--output_path", str(tmp_path / name)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            timeout=400,
        )
        (folder,) = (tmp_path / name / "medmllm_runs").glob("2*")
        folders[name] = folder
    single, double = (store_of(folder) for folder in folders.values())
    assert list(single.index["id"]) == list(double.index["id"]) and set(double.index["rank"]) == {0, 1}
    np.testing.assert_allclose(
        single.features("llm.05", "last"), double.features("llm.05", "last"), rtol=2e-3, atol=5e-3
    )
    records = [json.loads((folder / f"{TASK}.probes.json").read_text()) for folder in folders.values()]
    assert (
        records[0]["answer"] == records[1]["answer"]
        and records[0]["diagnosis"]["named"] == records[1]["diagnosis"]["named"]
    )


@pytest.mark.parametrize("name", ["busi", "covid19_ct"])
@pytest.mark.slow
def test_real_images_run_to_the_end(
    evaluate: Callable[..., Any], real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MEDMLLM_DATA", str(real_data))
    evaluated = evaluate(tmp_path, tasks=[f"med_probe_{name}"], batch_size=16)
    values = evaluated.values(f"med_probe_{name}")
    assert values["accuracy,none"] < 0.2  # the demo has never seen such images
    assert values["probe,none"] > 0.4  # and yet its tower tells some of them apart
    store_of(evaluated.folder, f"med_probe_{name}").check()
