"""A hybrid of two models equals one model that is put together from their modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medmllm_plugins.interventions.hybrid_model import HybridModel
from medmllm_plugins.interventions.twin_patching import CONNECTOR_ALONE, PatchSite, patch_twins
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.models.stages import connectors_of
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)
QUESTIONS = ("What is it?", "Is it benign or malignant? Look at this breast ultrasound image.", "Is it no mass?")
LABELS = ("benign", "malignant tumour", "no")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[LoadedModel, LoadedModel]]:
    """Return a function that makes two models of a family with different weights."""
    models: dict[str, tuple[LoadedModel, LoadedModel]] = {}

    def loaded(kind: str) -> tuple[LoadedModel, LoadedModel]:
        if kind not in models:
            folders: list[Path] = [write_family(kind, tmp_path_factory.mktemp(kind), seed) for seed in (0, 1)]
            first, second = (ChatModel(open_native(LoadOptions(str(folder), device="cpu"))) for folder in folders)
            models[kind] = first, second
        return models[kind]

    return loaded


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, last = name.rpartition(".")
    setattr(stage_module(model, parent), last, module)


def take_inputs_of_blocks(model: nn.Module, donor: nn.Module, blocks: int) -> None:
    """Take over the parts of the small Gemma 4 that make the inputs of the first blocks."""
    upper, lower = (stage_module(each, "model.language_model") for each in (model, donor))
    rows = blocks * int(lower.config.hidden_size_per_layer_input)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        upper.embed_tokens_per_layer.weight[:, :rows] = lower.embed_tokens_per_layer.weight[:, :rows]  # type: ignore[union-attr, index]
        upper.per_layer_model_projection.weight[:rows] = lower.per_layer_model_projection.weight[:rows]  # type: ignore[union-attr, index]


KINDS = ("qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4", "gemma4_e", "llava", "internvl")


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        *((kind, site) for kind in KINDS for site in ("llm.embed", "llm.00", "llm.01", "llm.norm")),
        # Behind these, blocks read keys of one earlier block, of two, and states that read them.
        *(("gemma4_e", site) for site in ("llm.02", "llm.03", "llm.04")),
    ],
)
def test_a_hybrid_equals_a_model_put_together_from_two(
    pair: Callable[[str], tuple[LoadedModel, LoadedModel]], kind: str, site: str
) -> None:
    upper, lower = pair(kind)
    family = upper.family
    made = copy.copy(upper)
    made.model = copy.deepcopy(upper.model)
    donor = copy.deepcopy(lower.model)
    every = len(list(stage_module(donor, family.llm_blocks).children()))
    blocks = {"llm.embed": 0, "llm.norm": every}.get(site) or int(site[-2:] if site[-2:].isdigit() else -1) + 1
    names = [family.tower, family.connector, family.embed]
    names += [f"{family.llm_blocks}.{index}" for index in range(blocks)]
    names += [family.llm_norm] if site == "llm.norm" else []
    if kind == "gemma4_e":
        # One norm makes the inputs of all blocks, so that it cannot be that of both models.
        norm = "model.language_model.per_layer_projection_norm"
        for some in (upper, made):
            stage_module(some.model, norm).load_state_dict(stage_module(donor, norm).state_dict())
        take_inputs_of_blocks(made.model, donor, blocks)
    for name in names:
        put(made.model, name, stage_module(donor, name))
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for seed in range(3)
    ]
    inputs = upper.prepare(list(QUESTIONS), [[image] if upper.shows == "images" else image for image in images])
    ids = [upper.label_ids(question, LABELS) for question in QUESTIONS]
    passes = [RecordedPass(model, inputs, [site]) for model in (upper, lower)]
    hybrid = HybridModel(passes[0], passes[1], site)
    start, expected = hybrid.prefill(), made.prefill(inputs)
    torch.testing.assert_close(start.logits, expected.logits, atol=3e-4, rtol=1e-4)
    scores = [generation.score_labels(*pair_of, ids) for pair_of in ((hybrid, start), (made.model, expected))]
    torch.testing.assert_close(scores[0], scores[1], atol=3e-4, rtol=1e-4)
    texts = [
        generation.greedy(*pair_of, max_new_tokens=6, eos_token_ids=made.eos_token_ids)
        for pair_of in ((hybrid, start), (made.model, expected))
    ]
    assert texts[0] == texts[1] and any(texts[0])
    own = upper.prefill(inputs)
    assert not torch.allclose(own.logits, expected.logits, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_another_connector_alone_equals_a_model_with_that_module(
    pair: Callable[[str], tuple[LoadedModel, LoadedModel]], kind: str
) -> None:
    recipient, donor = pair(kind)
    made = copy.copy(recipient)
    made.model = copy.deepcopy(recipient.model)
    other = copy.copy(donor)
    other.model = copy.deepcopy(donor.model)
    # Qwen3-VL has several.
    for own, theirs in zip(connectors_of(made), connectors_of(other), strict=True):
        own.module.load_state_dict(theirs.module.state_dict())
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for seed in range(3)
    ]
    visuals = [[image] if recipient.shows == "images" else image for image in images]
    site = PatchSite(CONNECTOR_ALONE)
    answers, _ = patch_twins(recipient, donor, QUESTIONS[1], visuals, LABELS, [site], max_new_tokens=6)
    expected = made.generate([QUESTIONS[1]] * 3, visuals, max_new_tokens=6, labels=LABELS)
    assert [answer.text for answer in answers[site]] == [generation.text for generation in expected]
    scores = [np.array([item.scores for item in some]) for some in (answers[site], answers[None], expected)]
    np.testing.assert_allclose(scores[0], scores[2], atol=3e-4)
    assert not np.allclose(scores[1], scores[2], atol=1e-2)
