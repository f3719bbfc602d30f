"""Attributions of a model on another device: those of the CPU, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.fake_device import on_both_devices
from support.loading import load

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore, gather_index
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.explainer import explain
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig
from medmllm_plugins.attribution.methods.method_registry import select_methods, specs
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.prompts.attribution_options import AttributionOptions

QUESTION = "Benign?"
LABELS = ("benign", "malignant", "normal")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def by_every_method(model: LoadedModel) -> dict[tuple[str, str], Any]:
    """Scores by method and layer."""
    scores_by_key = {}
    label, answer = Target.of_label("benign", LABELS, LABELS), Target.of_answer("normal")
    for target, names in ((label, list(specs())), (answer, ["saliency"])):
        case = AttributionInput(model, QUESTION, IMAGE, target, batch=64)
        for chosen in select_methods(names, ["vision.0", "connector", "llm.0"], model, ()):
            for layer, scores in chosen.method(case, chosen.layers, MethodConfig(steps=2, samples=1)).items():
                scores_by_key[f"{chosen.spec.name} of {target.name}", layer] = scores.values.detach().cpu().numpy()
    return scores_by_key


@pytest.mark.parametrize("kind", ["medm_vl", "qwen2_5_vl", "gemma3"])
def test_methods_compute_where_the_model_stands(kind: str, tmp_path: Path) -> None:
    model = load(kind, tmp_path / "model")
    here, there = on_both_devices(model, lambda _: by_every_method(model))
    assert set(there) == set(here) and {name.split()[0] for name, _ in here} == set(specs())
    for key, wanted in here.items():
        np.testing.assert_allclose(
            there[key], wanted, rtol=0, atol=1e-2 * np.abs(wanted).max() + 1e-9, err_msg=str(key)
        )


def explained(model: LoadedModel, folder: Path) -> dict[str, Any]:
    """A document explained, with all checks."""
    (answer,) = model.generate([QUESTION], [IMAGE], max_new_tokens=4, labels=LABELS)
    identity: dict[str, Any] = {"id": "p", "document": "p", "group": "p", "label": "normal", "predicted": None}
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:24] = True
    item = AttributionItem(
        **identity,
        answer=answer.text,
        scores=answer.scores or (),
        question=QUESTION,
        visual=IMAGE,
        classes=LABELS,
        answers=LABELS,
        mask=mask,
    )
    asked = AttributionOptions(
        methods=("saliency", "layer_grad_cam", "prompt_ablation"), layers=("connector",), steps=2
    )
    explain(model, asked, [item], AttributionStore(folder, asked.to_dict()), 4)
    return gather_index(folder, "task", "tiny", LABELS).to_dict()


@pytest.mark.slow
def test_checks_are_made_where_the_model_stands(tmp_path: Path) -> None:
    model = load("medm_vl", tmp_path / "model")
    here, there = on_both_devices(model, lambda where: explained(model, tmp_path / where))
    assert there["warnings"] == here["warnings"] and not here["faults"] and not there["faults"]
    for entry, other in zip(there["entries"], here["entries"], strict=True):
        assert entry["checks"].keys() == other["checks"].keys()
        for name, value in other["checks"].items():
            assert entry["checks"][name] == (value if value is None else pytest.approx(value, abs=0.02)), name
    for row, wanted in zip(there["summary"], here["summary"], strict=True):
        levels = {level["randomised"]: level["similarity"] for level in row["randomisation"]}
        assert levels == pytest.approx(
            {level["randomised"]: level["similarity"] for level in wanted["randomisation"]}, abs=0.1
        )
        assert len(levels) >= 3
