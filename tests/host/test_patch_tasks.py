"""med_patch tasks through the host: a checkpoint with a broken module, and the demo as its twin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from host.conftest import PROBE_LIMIT, Evaluated
from safetensors.torch import load_file, save_file
from support import plugin_intervention
from tokenizers import Tokenizer

from medmllm_plugins import Run
from medmllm_plugins.cli.app import main
from medmllm_plugins.errors import ModelError, OptionError, PluginError
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import task_settings
from medmllm_plugins.report.figures.figure_style import style
from medmllm_plugins.report.figures.intervention_figures import interventions
from medmllm_plugins.report.intervention_curves import CONTROLS, intervention_evidence
from medmllm_plugins.report.run_collection import collect_runs
from medmllm_plugins.report.sections import build_section
from medmllm_plugins.results.probe_files import read_probes
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.runtime import interchange_loop, patch_loop, steering_loop, twin, twin_turns
from medmllm_plugins.runtime.intervention_loop import check_scores

TASK = "med_patch_demo:n=4:every=3:tokens=last+all:interchange=off:knockout=off"
SITES = ["vision", "connector alone", "connector", *(f"llm.{n:02d}" for n in (2, 5)), "llm.embed", "llm.norm"]
SETTINGS: dict[str, Any] = {"tasks": [TASK], "batch_size": 8, "limit": 96}


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with the sign of half of the connector's outputs changed."""
    folder = tmp_path_factory.mktemp("broken") / "demo"
    shutil.copytree(demo_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    (weight, bias) = sorted(name for name in weights if "connector" in name)[-2:][::-1]
    for name in (weight, bias):
        weights[name][::2] *= -1
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def patched(evaluate: Callable[..., Evaluated], broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The broken model, patched with the healthy one."""
    arguments = f"pretrained={broken},twin=demo,device=cpu"
    return evaluate(tmp_path_factory.mktemp("patched"), model_args=arguments, **SETTINGS)


def test_the_host_prints_the_gain_by_the_twin_and_by_each_module(patched: Evaluated) -> None:
    values = patched.values(TASK)
    assert set(values) == {
        f"{name},none" for name in ("accuracy", "balanced", "twin_gain", "gain_vision", "gain_connector", "gain_llm")
    }
    gains = [values[f"gain_{module},none"] for module in ("vision", "connector", "llm")]
    assert sum(gains) == pytest.approx(values["twin_gain,none"])
    assert values["gain_connector,none"] > 0.9 * values["twin_gain,none"] > 0.3


def test_the_broken_stage_is_named(patched: Evaluated) -> None:
    record = json.loads((patched.folder / f"{TASK.replace(':', '+')}.patching.json").read_text("utf-8"))
    assert (record["worse"], record["better"], record["stages"]) == ("model", "twin", ["connector"])
    assert (record["first_restoring"], record["first_breaking"]) == ("connector", "connector")
    assert record["checkpoints"]["twin"] == "demo" and record["n"] == 16
    entry = patched.manifest["tasks"][TASK]["patching"]
    assert entry["headline"] == record["headline"] and "the difference lies in the connector" in entry["headline"]
    assert patched.manifest["model"]["twin_fingerprint"] not in (None, patched.manifest["model"]["fingerprint"])
    assert patched.manifest["finished"]


def test_frames_agree_with_the_table_of_answers(patched: Evaluated) -> None:
    run = Run(patched.folder)
    assert not run.notes
    answers = pd.read_csv(patched.folder / f"{TASK.replace(':', '+')}.patched_answers.csv", keep_default_na=False)
    answers["hit"] = answers["predicted"] == answers["label"]
    by_hand = answers.groupby(["recipient", "layer", "tokens"])["hit"].mean()
    sites = run.patching.query("kind == 'site' and metric == 'accuracy'")
    assert set(sites["layer"]) == set(SITES)
    for row in sites.itertuples():
        recipient = {"restore": "model", "break": "twin"}[row.direction]
        assert by_hand[recipient, row.layer, row.tokens] == pytest.approx(row.value)
    own = {name: by_hand[name, "", ""] for name in ("model", "twin")}
    share = run.patching.query("kind == 'share' and metric == 'accuracy'")["value"].sum()
    assert share == pytest.approx(own["twin"] - own["model"])
    combinations = run.patching.query("kind == 'combination' and metric == 'accuracy'")
    assert len(combinations) == 8
    mixed = combinations.query("vision == 'model' and connector == 'twin' and llm == 'model'")["value"].item()
    assert mixed == pytest.approx(by_hand["model", "connector alone", "all"])
    # The documents are a balanced sample of the test fold, a group each where there are enough.
    asked = answers.query("recipient == 'model' and layer == ''")
    assert asked["label"].value_counts().tolist() == [4] * 4 and asked["document"].is_unique


def test_the_models_own_answers_are_those_of_the_run(patched: Evaluated) -> None:
    answers = pd.read_csv(patched.folder / f"{TASK.replace(':', '+')}.patched_answers.csv", keep_default_na=False)
    own = answers.query("recipient == 'model' and layer == ''").set_index("document")["answer"]
    outcomes = Run(patched.folder).outcomes.set_index("document")["answer"]
    assert (outcomes.loc[own.index] == own).all()


@pytest.mark.slow
def test_patching_that_was_stopped_goes_on(
    evaluate: Callable[..., Evaluated],
    patched: Evaluated,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = patch_loop._patch_batch, []

    def stopping(*arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(patch_loop, "_patch_batch", stopping)
    arguments = f"pretrained={broken},twin=demo,device=cpu"
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, model_args=arguments, **SETTINGS)
    again = evaluate(tmp_path, model_args=arguments, **SETTINGS)
    assert calls == [8, 8, 8]
    for suffix in ("patching.json", "patched_answers.csv"):
        name = f"{TASK.replace(':', '+')}.{suffix}"
        assert (again.folder / name).read_text("utf-8") == (patched.folder / name).read_text("utf-8")


@pytest.mark.slow
def test_twins_in_turn_give_the_answers_of_twins_in_memory(
    evaluate: Callable[..., Evaluated],
    patched: Evaluated,
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """States go through files, also in a run that is stopped and continued; the weights of the twin are freed."""
    real, discarded, batches = twin_turns.answers_with_states, [], []
    freeing = twin.discard

    def stopping(*arguments: Any, **options: Any) -> Any:
        batches.append(len(arguments[1].inputs["input_ids"]))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    def noting(model: Any) -> None:
        freeing(model)
        discarded.append(sum(parameter.numel() for parameter in model.parameters()))

    monkeypatch.setattr(twin_turns, "answers_with_states", stopping)
    monkeypatch.setattr(twin, "discard", noting)
    arguments = f"pretrained={broken},twin=demo,device=cpu,twin_states=disk"
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, model_args=arguments, **SETTINGS)
    run = evaluate(tmp_path, model_args=arguments, **SETTINGS)
    # The twin answers sixteen documents, of which the first eight had no text at all sites before the stop.
    assert batches == [8, 8, 8, 8, 8, 8] and len(discarded) >= 4 and not any(discarded)
    assert not list(tmp_path.rglob("*-model.safetensors"))
    assert run.manifest["model"]["twin_states"] == "disk" and run.manifest["finished"]
    name = TASK.replace(":", "+")
    both = [pd.read_csv(each.folder / f"{name}.patched_answers.csv", keep_default_na=False) for each in (run, patched)]
    keys = ["recipient", "layer", "tokens", "document"]
    ours, theirs = (table.set_index(keys).sort_index() for table in both)
    np.testing.assert_allclose(ours["log_odds"], theirs["log_odds"], atol=1e-3)
    assert (ours["answer"] == theirs["answer"]).all()


@pytest.mark.slow
def test_two_processes_of_twins_in_turn_give_what_twins_in_memory_do(
    patched: Evaluated, broken: Path, tmp_path: Path
) -> None:
    """The processes share the documents, and each has a folder of states of its own."""
    torchrun = Path(sysconfig.get_path("scripts")) / "torchrun"
    arguments = f"pretrained={broken},twin=demo,twin_states=disk,device=cpu"
    subprocess.run(
        [
            *(str(torchrun), "--nproc_per_node", "2", "--master_port", "29543", "-m", "lmms_eval"),
            *("--model", "medm_vl", "--model_args", arguments, "--tasks", TASK, "--batch_size", "8"),
            *("--limit", str(SETTINGS["limit"]), "--output_path", str(tmp_path)),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=400,
    )
    (folder,) = (tmp_path / "medmllm_runs").glob("2*")
    name = f"{TASK.replace(':', '+')}.patched_answers.csv"
    keys = ["recipient", "layer", "tokens", "document"]
    ours, theirs = (
        pd.read_csv(each / name, keep_default_na=False).set_index(keys).sort_index()
        for each in (folder, patched.folder)
    )
    assert ours.index.equals(theirs.index) and (ours["answer"] == theirs["answer"]).all()
    np.testing.assert_allclose(ours["log_odds"], theirs["log_odds"], atol=1e-3)
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["finished"]


def test_a_failure_while_patching_costs_no_answers(
    evaluate: Callable[..., Evaluated], broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(patch_loop, "_patch_batch", failing)
    run = evaluate(tmp_path, model_args=f"pretrained={broken},twin=demo,device=cpu", **SETTINGS)
    values = run.values(TASK)
    assert values["twin_gain,none"] == "N/A" and isinstance(values["accuracy,none"], float)
    assert "a kernel failed" in run.manifest["tasks"][TASK]["patching"]["failed"]
    with pytest.warns(UserWarning, match="no interventions, or not all of them: .*a kernel failed"):
        assert Run(run.folder).patching.empty


def test_without_a_twin_nothing_is_loaded(evaluate: Callable[..., Evaluated], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a second checkpoint to take states from, got none"):
        evaluate(tmp_path, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_twin_of_another_tokenizer_is_refused_before_the_answers(
    evaluate: Callable[..., Evaluated], patched: Evaluated, broken: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(broken, other)
    path = other / "tokenizer.json"
    tokens = json.loads(path.read_text("utf-8"))
    used = Tokenizer.from_file(str(path)).encode(patched.manifest["tasks"][TASK]["prompt"]).ids[-12:-10]
    vocabulary = tokens["model"]["vocab"]
    first, second = (name for name, number in vocabulary.items() if number in used)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokens), "utf-8")
    with pytest.raises(ModelError, match="Expected both models to see the same tokens"):
        evaluate(tmp_path / "out", model_args=f"pretrained=demo,twin={other},device=cpu", **SETTINGS)


@pytest.mark.slow
def test_a_twin_that_is_the_model_itself_has_nothing_to_restore(
    evaluate: Callable[..., Evaluated], tmp_path: Path
) -> None:
    task = "med_patch_demo:n=2:every=6:interchange=off:knockout=off"
    settings = {**SETTINGS, "tasks": [task]}
    run = evaluate(tmp_path, model_args="pretrained=demo,twin=demo,device=cpu", **settings)
    record = json.loads(next(run.folder.glob("*.patching.json")).read_text("utf-8"))
    assert record["stages"] == [] and "do not differ clearly enough" in record["headline"]
    values = run.values(task)
    assert values["twin_gain,none"] == 0 and np.isfinite(record["worse_accuracy"]["value"])
    assert {share["accuracy"]["value"] for share in record["shares"]} == {0}


def test_the_report_shows_where_the_checkpoints_differ(patched: Evaluated) -> None:
    (dataset,) = collect_runs([patched.folder]).datasets
    section = build_section(dataset)
    (twins,) = section.tables["twins"].record().to_dict()["rows"]
    assert (twins["first_breaking"], twins["first_restoring"], twins["stages"]) == (*["connector"] * 2, "connector")
    assert twins["accuracy"]["value"] < 0.5 < twins["twin_accuracy"]["value"] and twins["better"] == "twin"
    assert twins["share_connector"]["value"] == pytest.approx(twins["difference"]["value"])
    rows = section.tables["patches"].record().to_dict()["rows"]
    effects = {(row["layer"], row["tokens"]): row["restored_effect"]["value"] for row in rows}
    assert effects["vision", "all"] == 0 and effects["connector", "all"] == pytest.approx(1)
    (evidence,) = intervention_evidence(dataset)
    with style():
        drawing = interventions(evidence, dataset, 1)
    assert "no interchange" in drawing.svg and "no twin" not in drawing.svg


def diagnosed_again(folder: Path, task: str) -> ProbeAnalysis:
    """Repeat the diagnosis without the model, as ``medmllm diagnose`` does."""
    target = folder.parent / "again"
    assert main(["diagnose", str(folder), "--output", str(target), "--permutations", "1", "--refits", "2"]) == 0
    analysis = read_probes(target, task.replace(":", "+"))
    assert analysis is not None
    return analysis


@pytest.mark.slow
def test_a_diagnosis_with_a_twin_rests_on_patching(
    evaluate: Callable[..., Evaluated], broken: Path, tmp_path: Path
) -> None:
    task = "med_probe_demo:n=4:every=6:tokens=all"
    arguments = f"pretrained={broken},twin=demo,device=cpu"
    run = evaluate(tmp_path, model_args=arguments, tasks=[task], batch_size=16, limit=PROBE_LIMIT)
    stem = task.replace(":", "+")
    record = json.loads((run.folder / f"{stem}.probes.json").read_text("utf-8"))
    assert record["diagnosis"]["patched"] == ["connector"] and record["diagnosis"]["named"] == "connector"
    assert "Twin patching shows" in record["headline"]
    assert record["patching"] == json.loads((run.folder / f"{stem}.patching.json").read_text("utf-8"))
    analysis = diagnosed_again(run.folder, task)
    assert analysis.diagnosis.patched == ("connector",)


EXCHANGED = "med_patch_demo:n=8:every=3"


@pytest.fixture(scope="session")
def exchanged(evaluate: Callable[..., Evaluated], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The demo, with states of other documents put in."""
    return evaluate(tmp_path_factory.mktemp("exchanged"), tasks=[EXCHANGED], batch_size=8, limit=240)


def test_without_a_twin_states_of_other_documents_show_what_the_answer_uses(exchanged: Evaluated) -> None:
    values = exchanged.values(EXCHANGED)
    assert values["twin_gain,none"] == "N/A" and values["accuracy,none"] > 0.9
    run = Run(exchanged.folder)
    assert not run.notes and run.patching.empty
    effects = run.interchange.query("metric == 'effect'").set_index(["layer", "tokens", "donor"])["value"]
    assert effects["connector", "all", "other class"] == pytest.approx(1, abs=0.05)
    assert effects["llm.05", "last", "other class"] == pytest.approx(1, abs=0.05)
    assert abs(effects["llm.05", "image", "other class"]) < 0.05
    assert abs(effects["connector", "all", "same class"]) < 0.2
    entry = exchanged.manifest["tasks"][EXCHANGED]["patching"]
    assert entry["failed"] is None and "the answers depend on image tokens up to" in entry["headline"]
    record = json.loads((exchanged.folder / f"{EXCHANGED.replace(':', '+')}.interchange.json").read_text("utf-8"))
    assert record["n"] == 32 and record["left_out"] == 0
    blind = run.knockout.query("queries == 'text' and metric == 'accuracy'")["value"].item()
    assert blind < 0.5 and "With the image hidden from all text in all layers" in entry["headline"]
    (dataset,) = collect_runs([exchanged.folder]).datasets
    assert len(build_section(dataset).tables["knockout"].rows) == 7
    rows = build_section(dataset).tables["interchange"].record().to_dict()["rows"]
    assert rows[0]["layer"] == "connector" and rows[0]["flips"]["value"] > 0.9
    (evidence,) = intervention_evidence(dataset)
    with style():
        drawing = interventions(evidence, dataset, 1)
    assert "the answers depend on image tokens up to" in drawing.alt
    svg = drawing.svg
    assert all(text in svg for text in ("no med_probe run", "used (interchange)", "no twin", "image tokens"))
    shown = drawing.interactive
    assert "used (interchange)" in shown and "readable by a probe" not in shown, "panels without a curve are left out"
    assert "last token" in shown and '"llm.05"' in shown and CONTROLS in shown


@pytest.mark.slow
def test_exchanges_that_were_stopped_go_on(
    evaluate: Callable[..., Evaluated], exchanged: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = interchange_loop._exchange_batch, []

    def stopping(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(interchange_loop, "_exchange_batch", stopping)
    settings: dict[str, Any] = {"tasks": [EXCHANGED], "batch_size": 8, "limit": 240}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, **settings)
    again = evaluate(tmp_path, **settings)
    assert calls == [8, 8, 8, 8, 8]
    name = f"{EXCHANGED.replace(':', '+')}.interchange.json"
    assert (again.folder / name).read_text("utf-8") == (exchanged.folder / name).read_text("utf-8")


STEERED = "med_patch_demo:n=3:every=3:interchange=off:knockout=off:steering=on"


@pytest.mark.slow
def test_the_demo_follows_the_direction_of_a_probe_and_stopped_pushes_go_on(
    evaluate: Callable[..., Evaluated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"tasks": [STEERED], "batch_size": 4, "limit": 60}
    whole = evaluate(tmp_path / "whole", **settings)
    shifts = Run(whole.folder).steering.query("metric == 'shift' and dose == 0.8")
    mean = shifts.set_index(["layer", "tokens", "direction"])["value"]
    for layer, tokens in (("llm.02", "image"), ("llm.02", "last")):
        probe, *others = (mean[layer, tokens, name] for name in ("probe", "random", "permuted", "opposite"))
        assert probe > 2 * max(others[:2]) and others[2] < 0
    assert "The answers depend on what the probe reads." in whole.manifest["tasks"][STEERED]["patching"]["headline"]
    (dataset,) = collect_runs([whole.folder]).datasets
    assert len(build_section(dataset).tables["steering"].rows) == 10
    real, calls = steering_loop.steer, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(steering_loop, "steer", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "stopped", **settings)
    again = evaluate(tmp_path / "stopped", **settings)
    assert calls == [4, 4, 4, 4]
    name = f"{STEERED.replace(':', '+')}.steering.json"
    assert (again.folder / name).read_text("utf-8") == (whole.folder / name).read_text("utf-8")


@pytest.fixture
def with_plugin() -> Iterator[None]:
    """A plugin that brings interventions, registered in process."""
    manager = get_manager()
    manager.pluggy.register(plugin_intervention, "of_mine")
    yield
    manager.pluggy.unregister(name="of_mine")


@pytest.mark.usefixtures("with_plugin")
def test_interventions_of_plugins(evaluate: Callable[..., Evaluated], tmp_path: Path) -> None:
    task = "med_patch_demo:n=8:every=3:interchange=off:knockout=off:intervention=other_image"
    run = evaluate(tmp_path, tasks=[task], batch_size=8, limit=160)
    result = Run(run.folder)
    assert not result.notes
    accuracy = result.interventions.query("metric == 'accuracy'").set_index("condition")["value"]
    assert set(accuracy.index) == {"grey", "turned"} and accuracy["grey"] < 0.5 < accuracy["turned"]
    lost = result.interventions.query("metric == 'lost' and condition == 'grey'")
    assert lost["low"].item() > 0.3
    entry = run.manifest["tasks"][task]["patching"]
    assert entry["failed"] is None and "other_image: the label scores lose most under 'grey'" in entry["headline"]
    (dataset,) = collect_runs([run.folder]).datasets
    assert [row["condition"] for row in build_section(dataset).tables["interventions"].record().to_dict()["rows"]] == [
        "grey",
        "turned",
    ]


@pytest.mark.usefixtures("with_plugin")
def test_a_faulty_intervention_costs_no_answers(evaluate: Callable[..., Evaluated], tmp_path: Path) -> None:
    task = "med_patch_demo:n=2:interchange=off:knockout=off:intervention=broken"
    run = evaluate(tmp_path, tasks=[task], batch_size=8, limit=32)
    assert isinstance(run.values(task)["accuracy,none"], float)
    failed = run.manifest["tasks"][task]["patching"]["failed"]
    assert "Intervention broken: expected label scores by condition, 8 rows of 4 finite numbers" in failed


@pytest.mark.parametrize(
    "scores",
    [None, {}, {"": [(0.0, 1.0)]}, {"x": [(0.0,)]}, {"x": []}, {"x": [(0.0, float("nan"))]}, {1: [(0.0, 1.0)]}],
)
def test_what_a_plugin_returns_is_checked(scores: Any) -> None:
    with pytest.raises(PluginError, match="Intervention mine: expected label scores by condition"):
        check_scores("mine", scores, 1, 2)


def test_an_unknown_intervention_is_refused() -> None:
    with pytest.raises(OptionError, match=r"Expected `intervention` to be some of .*got nothing_like_it"):
        task_settings("med_patch_demo:intervention=nothing_like_it")
