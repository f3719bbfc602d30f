"""Interchange against plain hooks, and its effects against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.phantom_images import phantom_dataset

from medmllm_plugins.errors import ModelError
from medmllm_plugins.interventions.interchange import (
    Exchange,
    Scores,
    exchanges_at,
    interchange,
    interchange_sites,
)
from medmllm_plugins.interventions.interchange_effects import headline, interchange_effects
from medmllm_plugins.interventions.twin_patching import PatchSite
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)
QUESTION, LABELS = "Is it benign or malignant?", ("benign", "malignant tumour", "x")
IMAGE, LAST = PatchSite("llm.00", "image"), PatchSite("llm.00", "last")
CONNECTOR = PatchSite("connector")


def pictures(*seeds: int, height: int = 64) -> list[Image.Image]:
    return [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, 64, 3), dtype=np.uint8)) for seed in seeds
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    models: dict[str, LoadedModel] = {}

    def opened(kind: str) -> LoadedModel:
        if kind not in models:
            folder = write_family(kind, tmp_path_factory.mktemp(kind), 0)
            models[kind] = ChatModel(open_native(LoadOptions(str(folder), device="cpu")))
        return models[kind]

    return opened


def shown(loaded: LoadedModel, images: list[Image.Image]) -> list[Any]:
    return [[image] if loaded.shows == "images" else image for image in images]


def as_array(scores: Scores, key: Any) -> np.ndarray:
    return np.array(scores[key])


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "gemma3", "llava", "internvl"])
def test_the_whole_image_of_a_donor_gives_the_donors_scores(model: Callable[[str], LoadedModel], kind: str) -> None:
    loaded = model(kind)
    images, other, same = (shown(loaded, pictures(*seeds)) for seeds in ((0, 1, 2), (3, 4, 5), (6, 7, 8)))
    last_block = interchange_sites(loaded, every=1)[-1]
    exchanges = [
        *(Exchange(site, "other class") for site in (CONNECTOR, IMAGE, last_block)),
        Exchange(CONNECTOR, "same class"),
        *(Exchange(CONNECTOR, control) for control in ("permuted tokens", "noise")),
    ]
    donors: Any = {"other class": other, "same class": same}
    scores = interchange(loaded, QUESTION, images, donors, LABELS, exchanges)
    expected = [
        np.array([item.scores for item in loaded.generate([QUESTION] * 3, some, max_new_tokens=0, labels=LABELS)])
        for some in (images, other, same)
    ]
    np.testing.assert_allclose(as_array(scores, "own"), expected[0], atol=3e-4)
    np.testing.assert_allclose(as_array(scores, "other class"), expected[1], atol=3e-4)
    # Nothing but the image differs, so another image is another document.
    np.testing.assert_allclose(as_array(scores, Exchange(CONNECTOR, "other class")), expected[1], atol=3e-4)
    np.testing.assert_allclose(as_array(scores, Exchange(CONNECTOR, "same class")), expected[2], atol=3e-4)
    # The last token after the last block decides the first token of the answer.
    assert last_block.tokens == "last" and len(loaded.label_ids(QUESTION, LABELS)[2]) == 1 + loaded.prefix_length
    first_token = as_array(scores, Exchange(last_block, "other class"))[:, 2]
    np.testing.assert_allclose(first_token, expected[1][:, 2], atol=3e-4)
    # After one block the text has read a part of the document's own image.
    assert not np.allclose(as_array(scores, Exchange(IMAGE, "other class")), expected[1], atol=1e-3)
    for control in ("permuted tokens", "noise"):
        patched = as_array(scores, Exchange(CONNECTOR, control))  # type: ignore[arg-type]
        assert np.isfinite(patched).all() and not np.allclose(patched, expected[1], atol=1e-3)


def test_donors_of_another_size_are_refused(model: Callable[[str], LoadedModel]) -> None:
    loaded = model("qwen2_5_vl")
    donors: Any = {"other class": shown(loaded, pictures(1, height=128)), "same class": shown(loaded, pictures(2))}
    with pytest.raises(ModelError, match="same tokens"):
        interchange(loaded, QUESTION, shown(loaded, pictures(0)), donors, LABELS, [Exchange(CONNECTOR, "noise")])


def made_up(margins: dict[Any, float], n: int = 40) -> Scores:
    """Return scores of two labels, document by document, by the log-odds of the donor's label; small noise added."""
    noise = np.random.default_rng(0).normal(0, 0.2, n)
    return {key: [(0.0, margin + extra) for extra in noise] for key, margin in margins.items()}


def test_effects_are_shares_of_the_distance_to_the_donor() -> None:
    late = PatchSite("llm.01", "image"), PatchSite("llm.01", "last")
    margins: dict[Any, float] = {
        "own": -2.0,
        "other class": 2.0,
        "same class": -2.0,
        Exchange(IMAGE, "other class"): 1.0,
        Exchange(IMAGE, "same class"): -2.0,
        Exchange(IMAGE, "noise"): -1.6,
        Exchange(LAST, "other class"): -1.9,
        Exchange(LAST, "noise"): -1.0,
        Exchange(late[0], "other class"): -2.0,
        Exchange(late[1], "other class"): 2.0,
        Exchange(late[1], "noise"): -1.6,
    }
    zeros, ones = np.zeros(40, dtype=np.intp), np.ones(40, dtype=np.intp)
    result = interchange_effects(made_up(margins), zeros, ones, np.arange(40))
    effects = {(point.layer, point.tokens, point.donor): point for point in result.points}
    assert effects["llm.00", "image", "other class"].effect.value == pytest.approx(0.75)
    assert effects["llm.00", "image", "noise"].effect.value == pytest.approx(0.1)
    assert effects["llm.01", "last", "other class"].effect.value == pytest.approx(1)
    assert effects["llm.00", "image", "other class"].flips.value == 1
    assert effects["llm.00", "image", "same class"].flips.value == 0
    # At the first block the last token moves the answer less than noise does.
    assert (result.image_until, result.last_from) == ("llm.00", "llm.01")
    assert "depend on image tokens up to llm.00, and the last token carries the class from llm.01 on" in headline(
        result
    )
    assert Interchange.from_dict(result.to_dict()) == result


def test_without_a_distance_between_classes_there_is_no_effect() -> None:
    margins: dict[Any, float] = {"own": 0.5, "other class": 0.5, "same class": 0.5, Exchange(IMAGE, "other class"): 1.0}
    result = interchange_effects(
        made_up(margins), np.zeros(40, dtype=np.intp), np.ones(40, dtype=np.intp), np.arange(40)
    )
    assert np.isnan(result.points[0].effect.value) and "do not separate documents of two classes" in headline(result)


def test_the_demo_reads_the_image_early_and_carries_the_class_in_the_last_token() -> None:
    loaded, data = load(LoadOptions("demo", device="cpu", dtype="float32")), phantom_dataset()
    question, labels = ask("closed_set", data.spec.modality, data.spec.classes), list(data.spec.labels)
    by_class = {label: [d for d in data.select(["test"]) if d.labels[0] == label][:16] for label in labels}
    documents = [document for some in by_class.values() for document in some[:8]]
    donors: Any = {
        "other class": [data.image(document) for k in range(4) for document in by_class[labels[(k + 1) % 4]][8:]],
        "same class": [data.image(document) for label in labels for document in by_class[label][8:]],
    }
    exchanges = exchanges_at(interchange_sites(loaded, every=1))
    images = [data.image(document) for document in documents]
    scores = interchange(loaded, question.text, images, donors, list(question.labels), exchanges)
    truth = np.repeat(np.arange(4), 8)
    group = np.unique([document.group for document in documents], return_inverse=True)[1]
    result = interchange_effects(scores, truth, (truth + 1) % 4, group)
    effects = {(point.layer, point.tokens, point.donor): point.effect.value for point in result.points}
    assert effects["connector", "all", "other class"] == pytest.approx(1, abs=0.02)
    assert effects["llm.05", "last", "other class"] == pytest.approx(1, abs=0.05)
    assert abs(effects["llm.05", "image", "other class"]) < 0.02
    image, last = ([effects[f"llm.{n:02d}", tokens, "other class"] for n in range(6)] for tokens in ("image", "last"))
    assert image == sorted(image, reverse=True) and last == sorted(last)
    assert result.image_until >= "llm.02" and result.last_from in ("llm.01", "llm.02")
    # The demo reads a bag of image tokens.
    assert effects["connector", "all", "permuted tokens"] == pytest.approx(1, abs=0.05)


def test_noise_and_order_do_not_depend_on_the_batch(model: Callable[[str], LoadedModel]) -> None:
    for kind in ("qwen2_5_vl", "gemma3"):
        loaded = model(kind)
        images, other, same = (shown(loaded, pictures(*seeds)) for seeds in ((0, 1, 2), (3, 4, 5), (6, 7, 8)))
        exchanges = [Exchange(site, donor) for site in (CONNECTOR, IMAGE) for donor in ("noise", "permuted tokens")]  # type: ignore[arg-type]
        whole: Any = {"other class": other, "same class": same}
        scores = interchange(loaded, QUESTION, images, whole, LABELS, exchanges, seeds=[11, 12, 13])
        single: Any = {"other class": other[1:2], "same class": same[1:2]}
        alone = interchange(loaded, QUESTION, images[1:2], single, LABELS, exchanges, seeds=[12])
        for exchange in exchanges:
            np.testing.assert_allclose(as_array(scores, exchange)[1], as_array(alone, exchange)[0], atol=3e-4)
