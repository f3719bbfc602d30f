"""med_attr tasks through the host: answers, then maps of some of them, checked, on disk; and explained again."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host.conftest import ATTRIBUTION_LIMIT, ATTRIBUTION_TASK
from PIL import Image

from medmllm_plugins import Run
from medmllm_plugins.attribution import explainer
from medmllm_plugins.cli.app import main
from medmllm_plugins.data.layouts.phantoms import LABELS, phantom
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.results.attribution_files import read_attributions
from medmllm_plugins.results.seal import check_seal, write_seal

TASK, LIMIT = ATTRIBUTION_TASK, ATTRIBUTION_LIMIT
pytestmark = pytest.mark.usefixtures("few_checks")

METHODS = {("integrated_gradients", "pixels"), ("prompt_ablation", "prompt"), ("layer_grad_cam", "connector")}


def shelf_of(folder: Path) -> Path:
    (shelf,) = (folder / "attributions").iterdir()
    return shelf


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((shelf_of(folder) / "index.json").read_text(encoding="utf-8"))
    return index


def test_the_host_prints_answers_and_checks(explained: Any) -> None:
    values = explained.values(TASK)
    assert set(values) == {f"{name},none" for name in ("accuracy", "balanced", "deletion_gain", "inside", "trusted")}
    assert values["accuracy,none"] > 0.9 and 0 < values["inside,none"] <= 1
    assert explained.manifest["finished"]
    assert {stage["name"] for stage in explained.manifest["stages"]} >= {f"answer {TASK}", f"explain {TASK}"}


def test_one_document_of_each_class_is_explained_by_every_method(explained: Any) -> None:
    entries = index_of(explained.folder)["entries"]
    by_document = {entry["id"]: entry["label"] for entry in entries}
    assert Counter(by_document.values()) == Counter(dict.fromkeys(LABELS, 1))
    for name in by_document:
        assert {(entry["method"], entry["layer"]) for entry in entries if entry["id"] == name} == METHODS


def test_what_the_index_names_is_there_and_fits(explained: Any) -> None:
    shelf = shelf_of(explained.folder)
    for entry in index_of(explained.folder)["entries"]:
        held = np.load(shelf / entry["map"])
        original = Image.open(shelf / entry["original"])
        if entry["method"] == "prompt_ablation":
            assert entry["heat"] is None and "map" not in held
            assert "".join(token["text"] for token in entry["tokens"]).count("round mass") == 1
            continue
        assert held["map"].shape == (1, 64, 64) and np.isfinite(held["map"]).all()
        heat = Image.open(shelf / entry["heat"])
        assert heat.size == original.size and heat.mode == "RGBA" and entry["slices"] == 1
        assert Image.open(shelf / entry["overlay"]).width >= heat.width
        assert entry["scale"][0] <= 0 < entry["scale"][1]


def test_the_public_reader_returns_what_the_run_wrote(explained: Any) -> None:
    run = Run(explained.folder)
    assert run.notes == ()
    entries = index_of(explained.folder)["entries"]
    columns = ["id", "document", "method", "layer", "label", "predicted", "answer", "target", "mode"]
    assert run.attributions[columns].to_numpy().tolist() == [[entry[name] for name in columns] for entry in entries]
    for column in ("deletion", "insertion", "stability", "inside", "area", "completeness_gap"):
        expected = np.array([entry["checks"][column] for entry in entries], dtype=float)
        np.testing.assert_array_equal(run.attributions[column], expected)
    for entry in entries:
        values = run.attribution_map(entry["document"], entry["method"], entry["layer"])
        stored = np.load(shelf_of(explained.folder) / entry["map"])
        np.testing.assert_array_equal(values, stored["tokens" if entry["layer"] == "prompt" else "map"])


def test_checks_stand_beside_every_map(explained: Any) -> None:
    for entry in index_of(explained.folder)["entries"]:
        checks = entry["checks"]
        for name in ("deletion", "deletion_random", "insertion", "insertion_random"):
            assert 0 <= checks[name] <= 1
        assert -1 <= checks["stability"] <= 1
        assert (checks["completeness_gap"] is not None) == (entry["method"] == "integrated_gradients")
        mask = phantom(int(entry["document"].removeprefix("phantom-"))).mask
        if entry["layer"] != "prompt" and mask.any():
            assert checks["area"] == pytest.approx(mask.mean(), abs=1e-6)
            held = np.load(shelf_of(explained.folder) / entry["map"])["map"][0].clip(min=0)
            assert checks["inside"] == pytest.approx(held[mask].sum() / held.sum(), abs=1e-5)
        else:
            assert checks["inside"] is None


def test_the_table_holds_the_summary(explained: Any) -> None:
    summary = {(row["method"], row["layer"]): row for row in index_of(explained.folder)["summary"]}
    (path,) = explained.folder.glob("*.attributions.csv")
    with path.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {(row["method"], row["layer"]) for row in rows} == METHODS == set(summary)
    for row in rows:
        expected = summary[row["method"], row["layer"]]
        assert float(row["deletion_gain"]) == pytest.approx(expected["deletion_gain"]["value"])
        assert expected["randomisation"][0]["randomised"] == "head"
        assert row["failed"] == "; ".join(expected["failed"])


def test_documents_are_explained_again_beside_what_was_there(
    explained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(explained.folder, tmp_path / "run"))
    before = index_of(folder)["entries"]
    name = before[0]["id"]
    words = ["attribute", str(folder), "--ids", name, "--method", "layer_activation", "--layer", "vision.0", "llm.1"]
    assert main(words) == 0
    assert "layer_activation" in capsys.readouterr().out
    after = index_of(folder)["entries"]
    new = [entry for entry in after if (entry["method"], entry["layer"]) not in METHODS]
    assert [(entry["id"], entry["layer"]) for entry in new] == [(name, "vision.00"), (name, "llm.01")]
    assert [entry for entry in after if entry not in new] == before
    assert new[1]["tokens"] is not None and new[0]["tokens"] is None


def test_explaining_again_keeps_what_was_found_before(explained: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(explained.folder, tmp_path / "run"))
    name = index_of(folder)["entries"][0]["id"]
    rows = {}
    for method in ("layer_activation", "saliency"):
        words = ["attribute", str(folder), "--ids", name, "--method", method, "--layer", "vision.0"]
        assert main(words) == 0
        rows = {row["method"]: row for row in index_of(folder)["summary"]}
        assert rows["layer_activation"]["randomisation"]
    assert set(rows) == {"layer_activation", "saliency", *(method for method, _ in METHODS)}
    assert all(row["randomisation"] for row in rows.values())
    assert {record["name"] for record in index_of(folder)["methods"]} == set(rows)


def test_a_command_that_was_broken_off_can_be_started_again(
    explained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmllm_plugins.cli import attribute

    folder = Path(shutil.copytree(explained.folder, tmp_path / "run"))
    name = index_of(folder)["entries"][0]["id"]
    words = ["attribute", str(folder), "--ids", name, "--method", "layer_activation", "--layer", "vision.0"]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attribute, "gather_index", killed)  # the document's entry is written anew by then
        assert main(words) == 130
    assert not check_seal(folder).differing
    assert main(words) == 0
    assert not check_seal(folder).differing


def test_settings_are_told_and_not_mixed(explained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(explained.folder, tmp_path / "run"))
    name, *others = dict.fromkeys(entry["id"] for entry in index_of(folder)["entries"])
    words = ["--method", "layer_grad_cam", "--layer", "connector", "--target", "truth", "--baseline", "blank"]
    assert main(["attribute", str(folder), "--ids", name, *words, "--steps", "7"]) == 0
    assert check_seal(folder, lambda _: True).sealed and not check_seal(folder, lambda _: True).differing
    said = capsys.readouterr().out
    assert "decision, blurred, 4" in said and "truth, blank, 7" in said
    rows = [row for row in index_of(folder)["summary"] if row["method"] == "layer_grad_cam"]
    by_settings = {(row["mode"], row["baseline"], row["steps"]): row for row in rows}
    assert {how: row["n"] for how, row in by_settings.items()} == {
        ("decision", "blurred", 4): len(others),
        ("truth", "blank", 7): 1,
    }
    assert all(row["randomisation"] for row in rows)
    (path,) = folder.glob("*.attributions.csv")
    with path.open(encoding="utf-8", newline="") as opened:
        table = [row for row in csv.DictReader(opened) if row["method"] == "layer_grad_cam"]
    assert {(row["mode"], row["baseline"], row["steps"]) for row in table} == {
        ("decision", "blurred", "4"),
        ("truth", "blank", "7"),
    }
    read = read_attributions(index_of(folder), shelf_of(folder))
    assert {(row.method, read.settings_of(row)) for row in read.summary} >= {
        ("layer_grad_cam", "decision, blurred, 4"),
        ("layer_grad_cam", "truth, blank, 7"),
        ("integrated_gradients", ""),
    }
    assert {row.settings for row in read.summary} == {"decision, blurred, 4", "truth, blank, 7"}


def test_what_the_run_answered_is_explained(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    """Not what the model would say of it otherwise: with one token an answer is not parsed."""
    model = "pretrained=demo,device=cpu,max_new_tokens=1"
    evaluated = evaluate(tmp_path, model_args=model, tasks=["med_cls_demo"], limit=4, batch_size=4)
    (path,) = evaluated.folder.glob("*.outcomes.jsonl")
    outcomes = {outcome["id"]: outcome for outcome in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    name = next(document_id for document_id in outcomes if outcomes[document_id]["status"] != "parsed")
    words = ["attribute", str(evaluated.folder), "--ids", name, "--method", "layer_activation", "--layer", "vision.0"]
    assert main(words) == 0
    (entry,) = index_of(evaluated.folder)["entries"]
    assert (entry["answer"], entry["predicted"], entry["hit"]) == (outcomes[name]["answer"], None, False)
    scores = dict(zip(LABELS, outcomes[name]["scores"], strict=True))
    assert entry["target"] == max(scores, key=lambda label: scores[label])
    (unasked,) = [
        document_id
        for document_id in ("phantom-02800", "phantom-02801", "phantom-02802")
        if document_id not in outcomes
    ][:1]
    assert main([*words[:3], unasked, *words[4:]]) == 1


@pytest.mark.parametrize(
    ("task", "settings", "says"),
    [
        (
            "med_cls_demo:image=blank",
            {},
            "expected a run with image=shown, because control images cannot be explained, got blank",
        ),
        ("med_cls_demo", {"shots": 1}, "expected a run without few-shot examples, got --num_fewshot 1"),
    ],
)
def test_what_was_shown_otherwise_is_not_explained(
    evaluate: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    settings: dict[str, Any],
    says: str,
) -> None:
    evaluated = evaluate(tmp_path, tasks=[task], limit=2, batch_size=2)
    manifest = evaluated.folder / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["tasks"][task] |= settings  # the demo takes no examples itself
    manifest.write_text(json.dumps(content), encoding="utf-8")
    write_seal(evaluated.folder)
    (path,) = evaluated.folder.glob("*.outcomes.jsonl")
    name = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["id"]
    assert main(["attribute", str(evaluated.folder), "--ids", name]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ids", "nobody"], "expected ids of documents that the run answered, such as phantom-0"),
        (
            ["--target", "lion"],
            "one of ['round mass', 'spiculated mass', 'textured patch', 'no finding'], got 'lion'",
        ),
        (["--layer", "vision.77"], "expected `layer` to be some of vision.00, vision.01"),
        (["--batch_size", "0"], "Expected `--batch_size` to be at least 1, got 0"),
        (["--method", "magic"], "Expected `method` to be some of saliency"),
        (["--task", "med_cls_busi"], "Expected `--task` to be one of ['med_attr_demo:n=1"),
    ],
)
def test_what_cannot_be_explained_is_told(
    explained: Any, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    name = index_of(explained.folder)["entries"][0]["id"]
    usual = ["attribute", str(explained.folder), *([] if "--ids" in words else ["--ids", name])]
    assert main([*usual, *words]) == 1
    assert says in capsys.readouterr().err


def test_a_model_of_the_hosts_gets_what_text_allows(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    evaluated = evaluate(tmp_path, model="dummy", model_args="", tasks=["med_attr_demo"], limit=8)
    values = evaluated.values("med_attr_demo")
    assert values["deletion_gain,none"] == values["trusted,none"] == "N/A" and "accuracy,none" in values
    assert "got none" in evaluated.manifest["tasks"]["med_attr_demo"]["explanations"]["failed"]


# -- a third party's method, as docs/plugins.md tells it ------------------------------------------------------------


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (example,) = [part.split("```")[0] for part in text.split("```python\n") if "def medmllm_attributions" in part]
    module = ModuleType("medmllm_example")
    exec(compile(example, "docs/plugins.md", "exec"), module.__dict__)

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("not my day")

    def more() -> list[AttributionSpec]:
        return [AttributionSpec(name="broken", target="medmllm_example:broken", summary="It fails.", gradients=False)]

    module.broken = broken  # type: ignore[attr-defined]
    another = SimpleNamespace(medmllm_attributions=hookimpl(more))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    plugins = get_manager().pluggy
    plugins.register(module, name="example of the docs")
    plugins.register(another, name="broken")
    yield
    plugins.unregister(module)
    plugins.unregister(another)


def test_a_third_partys_method_goes_through_the_host(
    evaluate: Callable[..., Any], tmp_path: Path, third_party: None
) -> None:
    task = "med_attr_demo:n=1:method=gradient_norm+broken:layer=vision.0+connector"
    evaluated = evaluate(tmp_path, tasks=[task], limit=8, batch_size=8)
    index = index_of(evaluated.folder)
    ids = {entry["id"] for entry in index["entries"]}
    assert len(ids) >= 2
    assert {(entry["id"], entry["method"], entry["layer"]) for entry in index["entries"]} == {
        (document_id, "gradient_norm", layer) for document_id in ids for layer in ("vision.00", "connector")
    }
    for entry in index["entries"]:
        held = np.load(shelf_of(evaluated.folder) / entry["map"])
        assert held["map"].shape == (1, 64, 64) and (held["values"] > 0).any()
        assert entry["checks"]["deletion"] is not None
    rows = {row["layer"]: row for row in index["summary"]}
    assert rows["vision.00"]["randomisation"] and rows["connector"]["n"] == len(ids)
    (warning,) = index["warnings"]
    assert warning.startswith("broken: left out of phantom-0") and "ZeroDivisionError: not my day" in warning
    assert evaluated.manifest["finished"] and evaluated.values(task)["deletion_gain,none"] != "N/A"


# -- what is wrong is told before anything is answered --------------------------------------------------------------


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model answered."""
    sizes: list[int] = []
    generate = LoadedModel.generate

    def counted(self: LoadedModel, questions: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["max_new_tokens"]:
            sizes.append(len(questions))
        return generate(self, questions, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "generate", counted)
    return sizes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("method=magic", "Expected `method` to be some of saliency"),
        ("target=lion", r"Expected `target` to be decision, truth, answer or one of \['round mass'"),
        ("layer=vision.77", "expected `layer` to be some of vision.00, vision.01"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_answered(
    evaluate: Callable[..., Any], tmp_path: Path, answered: list[int], arguments: str, says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        evaluate(tmp_path, tasks=[f"med_attr_demo:{arguments}"], limit=4)
    assert answered == [] and not list(tmp_path.iterdir())


def test_answers_serve_another_layer_and_method(
    evaluate: Callable[..., Any], tmp_path: Path, answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explainer, "explain", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path, tasks=["med_attr_demo:n=2"], limit=4, batch_size=4)
    assert answered == [4]
    task = "med_attr_demo:n=1:method=layer_activation:layer=vision.0"
    evaluated = evaluate(tmp_path, tasks=[task], limit=4, batch_size=4)
    assert answered == [4] and evaluated.manifest["answers_of_an_earlier_start"] == 4
    assert {entry["layer"] for entry in index_of(evaluated.folder)["entries"]} == {"vision.00"}


def test_answers_are_scored_whatever_explaining_meets(
    evaluate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("nothing to be had here")

    monkeypatch.setattr(explainer, "explain", broken)
    task = "med_attr_demo:n=1"
    evaluated = evaluate(tmp_path, tasks=[task], limit=4, batch_size=4)
    assert evaluated.manifest["finished"] and evaluated.values(task)["deletion_gain,none"] == "N/A"
    why = evaluated.manifest["tasks"][task]["explanations"]["failed"]
    assert "Process 0 stopped explaining: ValueError: nothing to be had here" in why
    assert any("no attributions: ValueError: nothing to be had here" in message for message in warned)
