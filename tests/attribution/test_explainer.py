"""Documents explained one after the other: a fault costs only what it is part of, and is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.loading import load
from support.tiny_medm_vl import write_ct_checkpoint

from medmllm_plugins.attribution import explainer
from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore, gather_index
from medmllm_plugins.attribution.checks import map_checks
from medmllm_plugins.attribution.checks.map_checks import Removal
from medmllm_plugins.attribution.explainer import explain
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.data.layouts.phantoms import LABELS, phantom
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import DataError, ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.generation import greedy, score_labels
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)

QUESTION = "Which of these is shown: round mass, spiculated mass, textured patch, no finding?"
LAYERS = ("vision.00", "connector")
MODULE = "throwaway_explaining"


@pytest.fixture(autouse=True)
def few_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw two random orders a document instead of eight, which test_map_checks tests."""
    monkeypatch.setattr(map_checks, "RANDOM_ORDERS", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model: what is tested here does not depend on what it answers."""
    return load("medm_vl", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def items(model: LoadedModel) -> list[AttributionItem]:
    attribution_items = []
    for number in range(2800, 2803):
        drawn = phantom(number)
        shown = Image.fromarray(drawn.image).convert("RGB")
        (reply,) = model.generate([QUESTION], [shown], max_new_tokens=8, labels=list(LABELS))
        attribution_items.append(
            AttributionItem(
                id=f"p{number}",
                document=f"p{number}",
                group=f"g{number}",
                label=drawn.label,
                predicted=None,
                answer=reply.text.strip(),
                scores=reply.scores or (),
                question=QUESTION,
                visual=shown,
                classes=tuple(LABELS),
                answers=tuple(LABELS),
                mask=drawn.mask,
            )
        )
    return attribution_items


def at_all(case: AttributionInput, layers: Sequence[str]) -> dict[str, Scores]:
    generator = torch.Generator().manual_seed(0)
    return {
        layer: Scores(torch.rand(len(states[0]), generator=generator)) for layer, states in case.states(layers).items()
    }


def fine(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    return at_all(case, layers)


def boom(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    raise ValueError("a fault of my own")


def first_alone(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    return at_all(case, layers[:1])


def arrays(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> Any:
    return {layer: Scores(scores.values.numpy()) for layer, scores in at_all(case, layers).items()}  # type: ignore[arg-type]


def nothing(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> Any:
    return None


def too_few(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    return {layer: Scores(torch.ones(3)) for layer in layers}


def hungry(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    if case.batch > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return at_all(case, layers)


FUNCTIONS = (fine, boom, first_alone, arrays, nothing, too_few, hungry)


@pytest.fixture(scope="module", autouse=True)
def third_party() -> Iterator[None]:
    module = ModuleType(MODULE)
    for function in FUNCTIONS:
        setattr(module, function.__name__, function)
    sys.modules[MODULE] = module

    class Plugin:
        @staticmethod
        @hookimpl
        def medmllm_attributions() -> list[AttributionSpec]:
            shared: dict[str, Any] = {"summary": "A plugin's.", "gradients": False}
            specs = [
                AttributionSpec(name=function.__name__, target=f"{MODULE}:{function.__name__}", **shared)
                for function in FUNCTIONS
            ]
            own = {"deep": "llm.0", "deeper": "vision.99"}
            return [
                *specs,
                *(AttributionSpec(name=name, target=f"{MODULE}:fine", at=own[name], **shared) for name in own),
            ]

    plugins = get_manager().pluggy
    plugins.register(Plugin, name="throwaway explaining")
    yield
    plugins.unregister(Plugin)
    del sys.modules[MODULE]


@pytest.fixture
def explained(model: LoadedModel, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Explain some documents, and read the index of what was found."""

    def call(documents: Sequence[AttributionItem], *names: str, batch: int = 16, **asked: Any) -> dict[str, Any]:
        wanted = AttributionOptions(methods=names, layers=LAYERS, steps=2, **asked)
        explain(model, wanted, documents, AttributionStore(tmp_path, wanted.to_dict()), batch)
        return gather_index(tmp_path, "task", "demo", LABELS).to_dict()

    return call


def test_the_cost_is_told_once_the_first_document_is_explained(
    model: LoadedModel, items: list[AttributionItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    calls: list[str] = []
    real = explainer.Explainer.explain

    def timed(self: Any, item: AttributionItem) -> None:
        real(self, item)
        calls.append(item.id)
        if len(calls) == 1:
            self._first = (90.0, 10.0)

    monkeypatch.setattr(explainer.Explainer, "explain", timed)
    asked = AttributionOptions(methods=("fine",), layers=LAYERS, steps=2)

    def say(line: str) -> None:
        lines.append(f"{len(calls)}: {line}")

    explain(model, asked, items[:3], AttributionStore(tmp_path / "med_attr_x", asked.to_dict()), 16, say)
    # Two documents more, and maps of two documents under the model's own weights and at five levels of shuffled ones.
    assert lines == [
        "1: med_attr_x: attributions take about 5 min 0 s more for 3 documents, judged by the first. Fewer documents "
        "(n=), methods (method=) or layers (layer=) take less."
    ]
    lines.clear()
    explain(model, asked, items[:3], AttributionStore(tmp_path / "med_attr_x", asked.to_dict()), 16, say)
    assert lines == []  # all are there from the first start


def maps_of(index: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(entry["id"], entry["method"], entry["layer"]) for entry in index["entries"]}


def all_of(
    documents: Sequence[AttributionItem], method: str, layers: Sequence[str] = LAYERS
) -> set[tuple[str, str, str]]:
    return {(item.id, method, layer) for item in documents for layer in layers}


@pytest.mark.parametrize(
    ("method", "kept", "says"),
    [
        ("boom", (), "boom: left out of p2800 (64 x 64), p2801 (64 x 64): ValueError: a fault of my own"),
        (
            "first_alone",
            ("vision.00",),
            "first_alone, connector: left out of p2800 (64 x 64), p2801 (64 x 64): Expected the method to return "
            "`Scores` with a tensor for connector, got dict for vision.00.",
        ),
        ("arrays", (), "`Scores` with a tensor for vision.00, got ndarray."),
        ("nothing", (), "`Scores` with a tensor for vision.00, got NoneType."),
        ("too_few", (), "too_few, vision.00: left out of p2800"),
    ],
)
def test_a_faulty_method_costs_only_itself(
    explained: Callable[..., Any], items: list[AttributionItem], method: str, kept: tuple[str, ...], says: str
) -> None:
    documents = items[:2]
    index = explained(documents, method, "fine")
    assert maps_of(index) == all_of(documents, method, kept) | all_of(documents, "fine")
    assert any(says in warning for warning in index["warnings"])
    assert {fault["method"] for fault in index["faults"]} == {method}
    (sound,) = [row for row in index["summary"] if (row["method"], row["layer"]) == ("fine", "connector")]
    assert sound["randomisation"]


def test_where_all_is_faulty_the_reasons_are_told(explained: Callable[..., Any], items: list[AttributionItem]) -> None:
    with pytest.raises(DataError, match=r"got none\. boom: left out of p2800 .*a fault of my own"):
        explained(items[:1], "boom")


def test_a_methods_own_layer_is_one_that_the_model_has(
    explained: Callable[..., Any], items: list[AttributionItem]
) -> None:
    index = explained(items[:1], "deep")
    assert maps_of(index) == all_of(items[:1], "deep", ["llm.00"])


def test_a_methods_own_layer_that_is_none(explained: Callable[..., Any], items: list[AttributionItem]) -> None:
    with pytest.raises(OptionError, match=r"expected `at` of deeper to be some of vision\.00, .*, got 'vision\.99'"):
        explained(items[:1], "deeper")


def test_batches_are_halved_where_memory_ends(
    explained: Callable[..., Any], items: list[AttributionItem], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    index = explained(items[:2], "hungry", batch=8)
    assert maps_of(index) == all_of(items[:2], "hungry") and index["warnings"] == []
    assert [record.args for record in caplog.records if "Out of memory" in record.msg] == [(4,), (2,)]
    assert all(entry["checks"]["deletion"] is not None for entry in index["entries"])


def test_documents_without_a_target_are_left_out(
    explained: Callable[..., Any], items: list[AttributionItem], tmp_path: Path
) -> None:
    documents = [replace(items[0], answer=" "), *items[1:]]
    index = explained(documents, "fine", target="answer")
    assert maps_of(index) == all_of(items[1:], "fine")
    assert any("Left out: p2800 (64 x 64): Expected an answer to explain" in warning for warning in index["warnings"])
    shuffled = json.loads((tmp_path / "process-0.json").read_text())["randomised"]
    assert {level["documents"] for row in shuffled for level in row["levels"]} == {2}


def test_documents_without_scores_have_no_decision(explained: Callable[..., Any], items: list[AttributionItem]) -> None:
    index = explained([replace(items[0], scores=()), items[1]], "fine")
    assert maps_of(index) == all_of(items[1:2], "fine")
    assert any(
        "Expected scores of the labels to explain the decision, got none" in warning for warning in index["warnings"]
    )


def test_a_check_that_fails_costs_its_number(
    explained: Callable[..., Any], items: list[AttributionItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise ModelError("no patches here")

    monkeypatch.setattr(Removal, "of_image", none)
    index = explained(items[:1], "fine")
    assert maps_of(index) == all_of(items[:1], "fine")
    for entry in index["entries"]:
        assert entry["checks"]["deletion"] is None and np.isfinite(entry["checks"]["stability"])
    assert any(
        warning.startswith("fine, connector, deletion and insertion: left out of") for warning in index["warnings"]
    )


@pytest.fixture(scope="module")
def cropping(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose tower takes pictures of 38 pixels in patches of 8: it leaves the last 6 out."""
    folder = Path(write_family("llava", tmp_path_factory.mktemp("odd") / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["patch_size"] == 8
    config["vision_config"]["image_size"] = 38
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"] |= {"size": {"shortest_edge": 38}, "crop_size": {"height": 38, "width": 38}}
    path.write_text(json.dumps(processor))
    return ChatModel(open_native(LoadOptions(str(folder), device="cpu")))


def test_towers_that_leave_a_remainder_out(cropping: LoadedModel, items: list[AttributionItem], tmp_path: Path) -> None:
    (reply,) = cropping.generate([QUESTION], [items[0].visual], max_new_tokens=2, labels=list(LABELS))
    asked = AttributionOptions(methods=("occlusion", "layer_activation"), layers=LAYERS, steps=2)
    explain(cropping, asked, [replace(items[0], scores=reply.scores)], AttributionStore(tmp_path, asked.to_dict()), 16)
    index = gather_index(tmp_path, "task", "odd", LABELS).to_dict()
    assert maps_of(index) == all_of(items[:1], "layer_activation") | all_of(items[:1], "occlusion", ["pixels"])
    assert index["warnings"] == [] and all(entry["checks"]["deletion"] is not None for entry in index["entries"])


def test_patches_keep_the_remainder(cropping: LoadedModel, items: list[AttributionItem]) -> None:
    pixels = cropping.prepare([QUESTION], [items[0].visual])["pixel_values"]
    patches = to_patches(cropping, pixels)
    assert pixels.shape[-2:] == (38, 38) and patches.shape == (16, 3, 8, 8)
    assert torch.equal(from_patches(cropping, patches, pixels), pixels)
    moved = from_patches(cropping, torch.zeros_like(patches), pixels)
    assert (moved[..., :32, :32] == 0).all() and torch.equal(moved[..., 32:], pixels[..., 32:])


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return medm_vl.load_ct(LoadOptions(str(write_ct_checkpoint(tmp_path_factory.mktemp("ct") / "model")), device="cpu"))


def test_a_volume_is_explained_where_rows_have_a_place(
    chest: LoadedModel, items: list[AttributionItem], tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).uniform(-900, 200, (40, 30, 30)).astype(np.float32)
    item = replace(items[0], visual=Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU"), mask=None)

    def explained_at(*layers: str) -> dict[str, Any]:
        asked = AttributionOptions(
            methods=("layer_activation", "attention_rollout"), layers=layers, steps=2, target="truth", baseline="blank"
        )
        folder = tmp_path / str(len(layers))
        explain(chest, asked, [item], AttributionStore(folder, asked.to_dict()), 16)
        return gather_index(folder, "task", "ct", LABELS).to_dict()

    index = explained_at("vision.00", "connector", "llm.00")
    entries = {(entry["method"], entry["layer"]): entry for entry in index["entries"]}
    llm, rollout = entries.pop(("layer_activation", "llm.00")), entries.pop(("attention_rollout", "llm.embed"))
    assert set(entries) == {("layer_activation", "vision.00")}  # its map is not lost with the connector's
    assert entries["layer_activation", "vision.00"]["slices"] == 32
    for entry in (llm, rollout):
        assert entry["tokens"] and entry["heat"] is None and entry["checks"]["deletion"] is not None
    warnings = [warning for warning in index["warnings"] if "no position in the volume" in warning]
    assert {warning.split(":")[0] for warning in warnings} == {
        "layer_activation, connector",
        "layer_activation, llm.00, image",
        "attention_rollout, llm.embed, image",
    }
    assert all("p2800 (40 x 30 x 30)" in warning for warning in warnings)
    index = explained_at()
    assert {entry["layer"] for entry in index["entries"]} == {"vision.01", "llm.embed"}
    assert not any(warning.startswith("layer_activation") for warning in index["warnings"])


def test_another_way_of_explaining_forgets_the_first(
    explained: Callable[..., Any], items: list[AttributionItem]
) -> None:
    assert maps_of(explained(items[:2], "fine")) == all_of(items[:2], "fine")
    assert maps_of(explained(items[2:], "fine", target="truth")) == all_of(items[2:], "fine")


# -- the answer itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thinking", "qwen2_5_vl", "medm_vl"])
def test_the_tokens_of_an_answer_are_those_generated(kind: str, items: list[AttributionItem], tmp_path: Path) -> None:
    """And none is taken for given, as the opening before a label is."""
    if kind == "thinking":
        folder = write_family("qwen2_vl", tmp_path / "model")
        options = LoadOptions(str(folder), device="cpu", dtype="float32")
        loaded = load_model(get_manager().models()["medvlm_r1"], options)
        assert loaded.prefix_length > 0
    else:
        loaded = load(kind, tmp_path / "model")
    shown = items[0].visual
    inputs = loaded.prepare([QUESTION], [shown])
    with torch.no_grad():
        (ids,) = greedy(loaded.model, loaded.prefill(inputs), max_new_tokens=6, eos_token_ids=[])
        wanted = float(score_labels(loaded.model, loaded.prefill(inputs), [[ids]], prefix_length=0))
    text = str(loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
    assert text
    asked = AttributionOptions(methods=("layer_activation",), layers=("connector",), steps=2, target="answer")
    explain(loaded, asked, [replace(items[0], answer=text)], AttributionStore(tmp_path / "out", asked.to_dict()), 16)
    index = gather_index(tmp_path / "out", "task", kind, LABELS).to_dict()
    assert index["entries"][0]["value"] == pytest.approx(wanted, abs=1e-3)
    assert index["warnings"] == []


def test_an_answer_that_is_not_generated_again_is_tokenised(
    explained: Callable[..., Any], items: list[AttributionItem]
) -> None:
    index = explained([replace(items[0], answer="quite another answer")], "fine", target="answer")
    assert maps_of(index) == all_of(items[:1], "fine")
    assert any("p2800: alone, the model generates another answer" in warning for warning in index["warnings"])
