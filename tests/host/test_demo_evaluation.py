"""The demo, evaluated by the host: metrics, samples, run folder."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.dataset import Dataset

TASK = "med_cls_demo"
LABELS = ["round mass", "spiculated mass", "textured patch", "no finding"]
METRICS = {"accuracy", "auroc", "balanced", "macro_f1", "mcc", "parsed"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def answers(evaluated: Any) -> list[tuple[str, str, list[float]]]:
    """True class, answered text and label scores of each document, read from the host's log and not by our parser."""
    rows = []
    for sample in evaluated.samples(TASK):
        reply = json.loads(sample["filtered_resps"][0])
        rows.append((sample["target"], reply["text"], reply["scores"]))
    return rows


def predictions(evaluated: Any) -> tuple[list[str], list[str], np.ndarray[Any, Any]]:
    truth, text, scores = zip(*answers(evaluated), strict=True)
    # Anything but a class name would need our parser, which these tests do not rest on.
    assert set(text) <= set(LABELS)
    return list(truth), list(text), np.array(scores)


def test_every_metric_is_there(demo: Any) -> None:
    assert set(demo.values(TASK)) == {f"{metric},none" for metric in METRICS}
    assert demo.values(TASK)["accuracy,none"] >= 0.8
    assert demo.returned["config"]["model_backend"] == "medmllm_plugins.host.registered_models.medm_vl (chat)"


def test_the_host_can_print_the_table(demo: Any) -> None:
    from lmms_eval.utils import make_table

    printed = make_table(json.loads(json.dumps(demo.returned, default=str)))
    assert {row.split("|")[4].strip() for row in printed.splitlines()[2:] if row} == METRICS


def test_batch_size_changes_no_answer(demo_by_batch: dict[int, Any]) -> None:
    whole, five, single = (answers(demo_by_batch[size]) for size in (16, 5, 1))
    assert [row[:2] for row in whole] == [row[:2] for row in five] == [row[:2] for row in single]
    for other in (five, single):
        np.testing.assert_allclose([row[2] for row in other], [row[2] for row in whole], rtol=0, atol=1e-4)
    assert demo_by_batch[16].values(TASK) == pytest.approx(demo_by_batch[1].values(TASK), abs=1e-12)
    assert [demo_by_batch[size].manifest["model"]["batch_size"] for size in (16, 5, 1)] == [16, 5, 1]


def test_samples_carry_our_id_and_label(demo: Any) -> None:
    known = {f"phantom-{index:05d}": record for index, record in enumerate(phantoms.records())}
    samples = demo.samples(TASK)
    for sample in samples:
        # No image and no path among them, so that none reaches a log that is shared.
        assert set(sample["doc"]) == {"id", "document", "label", "group", "fold", "finding", "variant", "answers"}
        record = known[sample["doc"]["id"]]
        assert sample["target"] == sample["doc"]["label"] == record.label
        assert sample["doc"]["fold"] == record.fold == "test"
    assert len({sample["doc"]["id"] for sample in samples}) == len(samples) == demo.manifest["tasks"][TASK]["evaluated"]


def test_a_limit_takes_a_sample_of_all_classes(demo: Any) -> None:
    counts = Counter(sample["target"] for sample in demo.samples(TASK))
    assert set(counts) == set(LABELS)
    assert max(counts.values()) < 0.5 * counts.total()


def test_metrics_are_those_of_scikit_learn(demo: Any) -> None:
    truth, text, scores = predictions(demo)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = {
        "accuracy": sk.accuracy_score(truth, text),
        "balanced": sk.balanced_accuracy_score(truth, text),
        "macro_f1": sk.f1_score(truth, text, labels=LABELS, average="macro"),
        "mcc": sk.matthews_corrcoef(truth, text),
        "auroc": np.mean(
            [sk.roc_auc_score([t == label for t in truth], shares[:, k]) for k, label in enumerate(LABELS)]
        ),
        "parsed": 1.0,
    }
    written = json.loads((demo.folder / f"{TASK}.metrics.json").read_text(encoding="utf-8"))
    values = {name: metric["value"] for name, metric in written["metrics"].items()}
    assert set(values) == set(expected) | {"auprc", "ece", "brier"}  # in the files, not in the host's table
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert demo.values(TASK) == pytest.approx({f"{name},none": value for name, value in expected.items()}, abs=1e-9)
    assert all(metric["low"] <= metric["value"] <= metric["high"] for metric in written["metrics"].values())
    assert demo.manifest["tasks"][TASK]["metrics"] == written["metrics"]
    # Something is wrong and something is right, else half of the numbers above would be 1 by any formula.
    assert 0 < expected["accuracy"] < 1
    assert written["n"] == len(truth)
    majority = max(Counter(truth).values()) / len(truth)
    assert written["baselines"]["majority_class"]["accuracy"] == pytest.approx(majority)


def test_the_hosts_standard_errors_know_our_groups(demo: Any) -> None:
    samples = demo.samples(TASK)
    hits = np.array([json.loads(sample["filtered_resps"][0])["text"] == sample["target"] for sample in samples], float)
    spread = hits - hits.mean()
    naive = hits.std(ddof=1) / len(hits) ** 0.5
    # Pairs of images of one patient add what they have in common (Miller, arXiv:2411.00640, equation 4).
    patients = np.array([sample["doc"]["group"] for sample in samples])
    same = (patients[:, None] == patients) & ~np.eye(len(hits), dtype=bool)
    assert same.any()
    shared = (spread[:, None] * spread)[same].sum() / len(hits) ** 2
    results = demo.returned["results"][TASK]
    assert results["accuracy_stderr_clt,none"] == pytest.approx(naive)
    assert results["accuracy_stderr_clustered,none"] == pytest.approx((naive**2 + shared) ** 0.5)


def test_tables_are_those_of_scikit_learn(demo: Any) -> None:
    truth, text, _ = predictions(demo)
    confusion = table(demo.folder / f"{TASK}.confusion.csv")
    assert list(confusion[0]) == ["true", *LABELS, "(ambiguous)", "(out_of_list)", "(refusal)"]
    assert [row["true"] for row in confusion] == LABELS
    counts = [[int(row[label]) for label in LABELS] for row in confusion]
    assert counts == sk.confusion_matrix(truth, text, labels=LABELS).tolist()

    per_class = table(demo.folder / f"{TASK}.per_class.csv")
    assert [row["label"] for row in per_class] == LABELS
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, text, labels=LABELS)
    assert [int(row["n"]) for row in per_class] == support.tolist()
    for column, expected in (("precision", precision), ("sensitivity", recall), ("f1", f1)):
        assert [float(row[column]) for row in per_class] == pytest.approx(expected.tolist())
    others = [[t != label for t in truth] for label in LABELS]
    specificity = [
        sk.recall_score(other, [t != label for t in text]) for other, label in zip(others, LABELS, strict=True)
    ]
    assert [float(row["specificity"]) for row in per_class] == pytest.approx(specificity)

    written = json.loads((demo.folder / f"{TASK}.metrics.json").read_text(encoding="utf-8"))
    values = {row["metric"]: float(row["value"]) for row in table(demo.folder / f"{TASK}.metrics.csv")}
    assert {name: values[name] for name in METRICS} == {name: written["metrics"][name]["value"] for name in METRICS}


def test_run_folder_holds_these_files_and_no_drafts(demo: Any) -> None:
    ends = ("metrics.json", "metrics.csv", "per_class.csv", "confusion.csv", "label_scores.csv", "outcomes.jsonl")
    expected = {"manifest.json", "seal.json", "demo.folds.json", *(f"{TASK}.{end}" for end in ends)}
    assert {path.name for path in demo.folder.iterdir()} == expected


def test_manifest_names_every_package_and_plugin(demo: Any) -> None:
    versions = demo.manifest["versions"]
    needed = {"medmllm-plugins"}
    for requirement in metadata.requires("medmllm-plugins") or []:
        if "extra ==" not in requirement:
            needed.add(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    assert len(needed) > 5
    assert {name: versions.get(name) for name in needed} == {name: metadata.version(name) for name in needed}
    assert re.match(r"3\.\d+\.\d+", versions["python"])
    (builtin,) = [plugin for plugin in demo.manifest["plugins"] if plugin["name"] == "builtin"]
    assert builtin["distribution"] == "medmllm-plugins" and builtin["version"] == versions["medmllm-plugins"]
    assert demo.manifest["platform"] and demo.manifest["started"].endswith("+00:00")


def test_manifest_tells_the_model(demo: Any) -> None:
    from medmllm_plugins.models.checkpoint import demo_folder

    model = demo.manifest["model"]
    assert re.fullmatch(r"[0-9a-f]{64}", model["fingerprint"])
    assert (model["name"], model["pretrained"]) == ("medm_vl", "demo")
    assert (model["device"], model["dtype"], model["batch_size"]) == ("cpu", "float32", 16)
    # A weight has two or four bytes, and there is nothing else of size in the folder.
    size = (demo_folder() / "model.safetensors").stat().st_size
    assert size / 4.2 < model["parameters"] < size / 1.8
    assert demo.manifest["seed"] == [7, 8, 9, 10]


def test_manifest_holds_the_whole_prompt(demo: Any) -> None:
    prompt = demo.manifest["tasks"][TASK]["prompt"]
    question = demo.samples(TASK)[0]["arguments"][0]
    assert all(label in question for label in LABELS)
    # The question is not all that the model reads: the system's words stand before it, the turn's end behind it.
    assert prompt.count(question) == 1
    before, after = prompt.split(question)
    assert before.startswith("A chat between a curious user") and before.count("<image>") == 1
    assert after.strip() == "ASSISTANT:"


def test_manifest_tells_the_data(demo: Any) -> None:
    facts = demo.manifest["tasks"][TASK]
    counted = Counter((record.fold, record.label) for record in phantoms.records())
    assert facts["counts"] == {
        fold: {label: counted[fold, label] for label in LABELS} for fold in ("train", "validation", "test")
    }
    assert facts["documents"] == sum(facts["counts"]["test"].values()) > facts["evaluated"]
    assert re.fullmatch(r"[0-9a-f]{64}", facts["dataset_fingerprint"])
    settings = facts["settings"]
    assert (settings["dataset"], settings["protocol"], settings["folds"]) == ("demo", "closed_set", ["test"])


def test_manifest_tells_time_and_memory_of_each_stage(demo: Any) -> None:
    stages = demo.manifest["stages"]
    assert [stage["name"] for stage in stages] == ["data", "load", f"answer {TASK}", "score"]
    # The phantoms are drawn once in a session, perhaps for another evaluation.
    assert all(stage["seconds"] > 0 for stage in stages if stage["name"] != "data")
    assert sum(stage["seconds"] for stage in stages) <= demo.seconds
    # In bytes: torch alone takes more than 100 MB, and no test machine has 4 TB.
    assert all(100e6 < stage["process_peak_bytes"] < 4e12 for stage in stages)
    assert all(stage["device_peak_bytes"] is None for stage in stages)


def test_run_dir_is_obeyed(demo_by_batch: dict[int, Any]) -> None:
    for size, evaluated in demo_by_batch.items():
        assert evaluated.folder.name == str(size)
        assert not (evaluated.folder.parent / "not_here").exists()
    # Three evaluations, three manifests: none was taken for another's.
    assert len({evaluated.manifest["model"]["batch_size"] for evaluated in demo_by_batch.values()}) == 3


def test_without_run_dir_the_folder_is_below_the_output_path(
    evaluate: Callable[..., Any], tmp_path: Path, everything: Callable[[], set[str]]
) -> None:
    evaluated = evaluate(tmp_path / "out", limit=1)
    assert evaluated.folder.parent == tmp_path / "out" / "medmllm_runs"
    assert "medm_vl" in evaluated.folder.name
    without = evaluate(tmp_path, limit=1, cli_args=None)
    assert without.folder.parent == tmp_path / "medmllm_runs"
    assert all(name.split("/")[0] in ("out", "medmllm_runs") for name in everything())


def test_one_class_alone_has_no_auroc(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    from lmms_eval.utils import make_table

    evaluated = evaluate(tmp_path, limit=1)
    assert evaluated.values(TASK)["auroc,none"] == "N/A"
    assert isinstance(evaluated.values(TASK)["accuracy,none"], float)
    assert "auroc" not in json.loads((evaluated.folder / f"{TASK}.metrics.json").read_text())["metrics"]
    assert "auroc" in make_table(evaluated.returned)


def test_an_answer_cut_short_is_wrong_but_its_scores_count(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    """One token is half of a class name: text metrics fall, the label scores do not depend on the text."""
    evaluated = evaluate(tmp_path, limit=16, batch_size=16, gen_kwargs="max_new_tokens=1")
    values = evaluated.values(TASK)
    assert (values["accuracy,none"], values["parsed,none"]) == (0.0, 0.0)
    assert values["auroc,none"] > 0.9
    written = json.loads((evaluated.folder / f"{TASK}.metrics.json").read_text())
    assert sum(written["statuses"].values()) == 16 and written["statuses"]["parsed"] == 0


def test_folds_of_a_task_are_obeyed(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    from lmms_eval.tasks import TaskManager

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "val.yaml").write_text(
        "task: demo_on_validation\nclass: !function medmllm_plugins.host.tasks.ClassificationTask\n"
        "output_type: generate_until\nmetadata: {version: 1.0, medmllm: {dataset: demo, folds: [validation]}}\n"
    )
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    evaluated = evaluate(tmp_path, model="dummy", model_args="", tasks=["demo_on_validation"], task_manager=manager)
    samples = evaluated.samples("demo_on_validation")
    assert {sample["doc"]["fold"] for sample in samples} == {"validation"}
    assert len(samples) == sum(record.fold == "validation" for record in phantoms.records())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{}", "`metadata: {medmllm: {dataset: NAME}}`"),
        ("{dataset: demo, colour: red}", "unknown keys 'colour'; expected some of dataset"),
        ("{dataset: demo, protocol: opened}", "closed_set"),
        ("{dataset: demo, folds: [tests]}", "validation"),
        ("{dataset: demo, folds: []}", "validation"),
        ("{dataset: nowhere}", "No data set is called 'nowhere'. `medmllm datasets` lists all."),
        ("{dataset: busy}", "No data set is called 'busy'. Did you mean busi?"),
    ],
)
def test_a_faulty_declaration_says_what_was_expected(tmp_path: Path, settings: str, says: str) -> None:
    from lmms_eval.tasks import TaskManager

    from medmllm_plugins.errors import OptionError

    (tmp_path / "t.yaml").write_text(
        "task: faulty\nclass: !function medmllm_plugins.host.tasks.ClassificationTask\n"
        f"output_type: generate_until\nmetadata: {{version: 1.0, medmllm: {settings}}}\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(OptionError) as caught:
        manager.load_task_or_group("faulty", "chat")
    assert says in str(caught.value)


def test_two_evaluations_in_one_process_are_two_runs(task_manager: Any, drawn_once: None, tmp_path: Path) -> None:
    """As in a notebook: the second must neither land in the first one's folder nor add to its manifest."""
    from lmms_eval.evaluator import simple_evaluate

    for name in ("first", "second"):
        simple_evaluate(
            model="medm_vl",
            model_args=f"pretrained=demo,device=cpu,run_dir={tmp_path / name}",
            tasks=["med_cls_demo"],
            task_manager=task_manager,
            bootstrap_iters=0,
            limit=2,
        )
    assert (tmp_path / "second" / "manifest.json").is_file()
    first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("first", "second"))
    assert [stage["name"] for stage in first["stages"]] == [stage["name"] for stage in second["stages"]]


def test_run_dir_is_obeyed_when_all_answers_are_cached(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    settings = {
        "limit": 2,
        "use_cache": str(tmp_path / "cache"),
        "model_args": f"pretrained=demo,device=cpu,run_dir={tmp_path / 'mine'}",
    }
    # The first results stay where they are.
    assert [evaluate(tmp_path / "out", **settings).folder.name for _ in range(2)] == ["mine", "mine-2"]


@pytest.mark.slow
def test_every_model_keeps_its_run_dir(task_manager: Any, drawn_once: None, tmp_path: Path) -> None:
    """As in a notebook: models are made first and evaluated later, and again."""
    import lmms_eval.models
    from lmms_eval.evaluator import simple_evaluate

    model = lmms_eval.models.get_model("medm_vl")
    first, second = (model(pretrained="demo", device="cpu", run_dir=str(tmp_path / name)) for name in ("one", "two"))
    settings = {"tasks": [TASK], "task_manager": task_manager, "bootstrap_iters": 0}
    for made, limit, name in ((first, 1, "one"), (second, 2, "two"), (first, 3, "one-2")):
        simple_evaluate(model=made, limit=limit, **settings)
        assert task_manager.medmllm_hook.session.run.folder == tmp_path / name
    evaluated = {}
    for path in tmp_path.iterdir():
        evaluated[path.name] = json.loads((path / "manifest.json").read_text())["tasks"][TASK]["evaluated"]
    assert evaluated == {"one": 1, "two": 2, "one-2": 3}  # and none was replaced


def test_a_task_loaded_beforehand_is_in_the_manifest_too(
    evaluate: Callable[..., Any], task_manager: Any, tmp_path: Path
) -> None:
    """The host takes task objects as well as names; such a task is there before the run is."""
    task = task_manager.load_task_or_group(TASK, "chat")[TASK]
    facts = evaluate(tmp_path, tasks=[task], limit=1).manifest["tasks"][TASK]
    assert facts["settings"]["dataset"] == "demo" and facts["documents"] == sum(facts["counts"]["test"].values())


def test_nothing_of_a_failed_evaluation_is_in_the_next(
    task_manager: Any, drawn_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: the first attempt fails on its data, the second is of another model and task."""
    from lmms_eval.evaluator import simple_evaluate

    from medmllm_plugins.errors import DataError

    settings = {"task_manager": task_manager, "bootstrap_iters": 0, "limit": 1}
    mine = f"pretrained=demo,device=cpu,run_dir={tmp_path / 'mine'}"
    monkeypatch.setenv("MEDMLLM_DATA", str(tmp_path))
    with pytest.raises(DataError):
        simple_evaluate(model="medm_vl", model_args=mine, tasks=["med_cls_demo", "med_cls_busi"], **settings)
    failed = task_manager.medmllm_hook.session.run
    simple_evaluate(model="dummy", model_args="", tasks=[TASK], **settings)
    run = task_manager.medmllm_hook.session.run
    assert run is not failed
    assert not (tmp_path / "mine").exists()
    assert set(run.manifest.tasks) == {TASK}


def test_cached_answers_are_taken_for_the_same_data_only(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmllm_plugins.host import tasks
    from medmllm_plugins.models.formats import medm_vl

    loads: list[Any] = []
    load, load_dataset = medm_vl.load, tasks.load_dataset
    monkeypatch.setattr(medm_vl, "load", lambda options: loads.append(options) or load(options))
    settings = {"limit": 4, "batch_size": 4, "use_cache": str(tmp_path / "cache")}
    first = evaluate(tmp_path / "first", **settings)
    again = evaluate(tmp_path / "again", **settings)
    assert len(loads) == 1
    # The envelope survives the cache, else AUROC would be gone.
    assert answers(again) == answers(first)
    assert again.values(TASK) == first.values(TASK) and "auroc,none" in again.values(TASK)

    def changed(spec: Any, **how: Any) -> Dataset:
        return replace(load_dataset(spec, **how), fingerprint="0" * 64)

    monkeypatch.setattr(tasks, "load_dataset", changed)
    evaluate(tmp_path / "changed", **settings)
    assert len(loads) == 2


def test_answers_that_can_be_read_are_not_doubted(demo: Any) -> None:
    assert demo.manifest["tasks"]["med_cls_demo"]["unreadable"] == ""
