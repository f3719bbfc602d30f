"""Explaining a model in memory: the maps and checks of the harness' own explainer, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.loading import load
from support.quick_checks import quick_checks

from medmllm_plugins import LoadedModel, OptionError, attribute
from medmllm_plugins.attribution.attribution_item import AttributionItem
from medmllm_plugins.attribution.attribution_store import AttributionStore, gather_index
from medmllm_plugins.attribution.explainer import Explainer
from medmllm_plugins.data.layouts.phantoms import LABELS, phantom
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.results.attribution_files import read_map

QUESTION = "Which of these is shown: round mass, spiculated mass, textured patch, no finding?"
METHODS = ("occlusion", "layer_grad_cam", "prompt_ablation")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model: what is tested here does not depend on what it answers."""
    return load("medm_vl", tmp_path_factory.mktemp("tiny") / "model")


def test_maps_and_checks_are_those_of_a_run(model: LoadedModel, tmp_path: Path) -> None:
    drawn = phantom(2801)
    image = Image.fromarray(drawn.image).convert("RGB")
    (answer,) = model.generate([QUESTION], [image], max_new_tokens=8, labels=LABELS)
    item = AttributionItem(
        "p", "p", "g", drawn.label, None, answer.text, answer.scores or (), QUESTION, image, LABELS, LABELS, drawn.mask
    )
    options = AttributionOptions(methods=METHODS, layers=("connector",), steps=4)
    store = AttributionStore(tmp_path / "store", options.to_dict(), "0")
    with quick_checks():
        explainer = Explainer(model, options, store, 8, item)
        explainer.explain(item)
        store.finish([], [], [])
        entries = gather_index(store.folder, "task", "demo", LABELS).entries
        results = attribute(
            model, image, QUESTION, LABELS,
            methods=METHODS, layers=["connector"], steps=4, mask=drawn.mask, name="p",
        )  # fmt: skip
    assert [(result.method, result.layer) for result in results] == [(entry.method, entry.layer) for entry in entries]
    for result, entry in zip(results, entries, strict=True):
        assert (result.target, result.warnings) == (entry.target, ())
        assert result.value == pytest.approx(entry.value, abs=1e-5) and result.checks is not None
        assert result.checks.to_dict() == pytest.approx(entry.checks.to_dict(), abs=1e-4, nan_ok=True)
        if result.map is not None:
            assert entry.map is not None
            stored = read_map(replace(entry, map=store.folder / entry.map))
            np.testing.assert_allclose(result.map, stored, atol=1e-3 * np.nanmax(abs(result.map)))
    assert results[-1].map is None and results[-1].tokens and results[0].tokens is None


def test_a_label_may_be_named_and_checks_left_out(model: LoadedModel) -> None:
    image = Image.fromarray(phantom(2801).image).convert("RGB")
    (result,) = attribute(model, image, QUESTION, LABELS, target="no finding", methods=["occlusion"], checks=False)
    (answer,) = model.generate([QUESTION], [image], max_new_tokens=0, labels=LABELS)
    scores = np.array(answer.scores, dtype=np.float64)
    assert result.value == pytest.approx(scores[3] - np.logaddexp.reduce(scores[:3]), abs=1e-4)
    assert result.checks is None and result.target == "no finding"


def test_wrong_arguments_are_named(model: LoadedModel) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(OptionError, match=r"at least two labels, whose log-odds are explained, got \['a'\]"):
        attribute(model, image, QUESTION, ["a"])
    with pytest.raises(OptionError, match="got 'benign'"):
        attribute(model, image, QUESTION, LABELS, target="benign", methods=["occlusion"])
    with pytest.raises(OptionError, match="Expected `method` to be some of"):
        attribute(model, image, QUESTION, LABELS, methods=["oclusion"])
