"""Passes that are resumed from other states equal whole passes in which hooks put the same states in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.formats.medm_vl import load as load_medm_vl
from medmllm_plugins.models.generation import Prefill
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.recorded_pass import CONNECTOR, TOWER_END, RecordedPass
from medmllm_plugins.models.stages import connectors_of, layers_of, tower_ends
from medmllm_plugins.testing.tiny_families import FAMILIES, write_family

torch.set_num_threads(1)
QUESTIONS = ("What is it?", "Is it benign or malignant? Look at this breast ultrasound image.")
LABELS = ("benign", "malignant tumour", "no")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return a function that loads the demo or a tiny model of another family, once each."""
    models: dict[str, LoadedModel] = {}

    def loaded(kind: str) -> LoadedModel:
        if kind not in models:
            folder: Path | str = "demo" if kind == "demo" else write_family(kind, tmp_path_factory.mktemp(kind))
            options = LoadOptions(str(folder), device="cpu", dtype="float32")
            models[kind] = load_medm_vl(options) if kind == "demo" else ChatModel(open_native(options))
        return models[kind]

    return loaded


def prepared(model: LoadedModel) -> dict[str, Tensor]:
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for seed in range(2)
    ]
    return model.prepare(list(QUESTIONS), [[image] if model.shows == "images" else image for image in images])


def outputs(model: LoadedModel, start: Prefill) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Return logits, label scores and greedy tokens."""
    ids = [model.label_ids(question, LABELS) for question in QUESTIONS]
    scores = generation.score_labels(model.model, start, ids, prefix_length=model.prefix_length)
    return start.logits, scores, generation.greedy(model.model, start, max_new_tokens=4, eos_token_ids=())


@torch.no_grad()
def whole_pass(model: LoadedModel, inputs: dict[str, Tensor], site: str, states: tuple[Tensor, ...]) -> Prefill:
    """Run the whole model with plain hooks that replace the outputs of a site's modules."""
    layers = {layer.name: layer for layer in layers_of(model)}
    modules = {TOWER_END: tower_ends(model), CONNECTOR: connectors_of(model)}.get(site) or [layers[site]]
    handles = []
    for layer, state in zip(modules, states, strict=True):
        native = layer.from_rows(state)
        if layer.enters:
            handles.append(
                layer.module.register_forward_pre_hook(
                    lambda _module, args, kwargs, native=native: (
                        ((native, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": native})
                    ),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(
                layer.module.register_forward_hook(
                    lambda _module, _args, output, native=native: (
                        (native, *output[1:]) if isinstance(output, tuple) else native
                    )
                )
            )
    try:
        return model.prefill(inputs)
    finally:
        for handle in handles:
            handle.remove()


def sites_of(model: LoadedModel) -> list[str]:
    return [TOWER_END, *(layer.name for layer in layers_of(model) if layer.part != "vision")]


@pytest.mark.parametrize("kind", ["demo", *FAMILIES])
def test_a_resumed_pass_equals_a_whole_one_with_the_same_states(load: Callable[[str], LoadedModel], kind: str) -> None:
    model = load(kind)
    inputs = prepared(model)
    clean = RecordedPass(model, inputs, sites_of(model))
    before = outputs(model, model.prefill(inputs))
    generator = torch.Generator().manual_seed(1)
    moved = 0
    for site in sites_of(model):
        own = outputs(model, clean.resume(site, clean.states[site]))
        for ours, theirs in zip(own[:2], before[:2], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
        assert own[2] == before[2]
        states = tuple(
            state + 0.5 * state.std() * torch.randn(state.shape, generator=generator) for state in clean.states[site]
        )
        resumed = outputs(model, clean.resume(site, states))
        # LLaVA takes its layer from states that transformers records before a plain hook runs.
        if site != TOWER_END or not hasattr(model.model.config, "vision_feature_layer"):
            whole = outputs(model, whole_pass(model, inputs, site, states))
            for ours, theirs in zip(resumed[:2], whole[:2], strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
            assert resumed[2] == whole[2]
        moved += not torch.allclose(resumed[1], before[1], atol=1e-3)
    # A tiny tower may hardly count; all sites of connector and LLM do.
    assert moved >= len(sites_of(model)) - 1
    again = outputs(model, model.prefill(inputs))
    assert torch.equal(again[0], before[0]) and again[2] == before[2]


def test_states_of_another_shape_and_sites_that_there_are_not(load: Callable[[str], LoadedModel]) -> None:
    model = load("demo")
    clean = RecordedPass(model, prepared(model), ["llm.02"])
    (state,) = clean.states["llm.02"]
    with pytest.raises(OptionError, match="the same prompt and as many image tokens"):
        clean.resume("llm.02", (state[:, 1:],))
    with pytest.raises(OptionError, match=r"Expected a site among .*'llm.norm'.*, got 'vision.77'"):
        RecordedPass(model, prepared(model), ["vision.77"])


def test_blocks_below_the_site_are_not_computed(load: Callable[[str], LoadedModel]) -> None:
    model = load("demo")
    clean = RecordedPass(model, prepared(model), ["llm.03"])
    calls: list[str] = []
    names = {layer.name: layer.module for layer in layers_of(model) if layer.name.rpartition(".")[2].isdigit()}
    projections = {
        name: next(child for key, child in module.named_modules() if key.endswith("q_proj"))
        for name, module in names.items()
    }
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, module in projections.items()
    ]
    try:
        clean.resume("llm.03", clean.states["llm.03"])
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["llm.04", "llm.05"]


@pytest.mark.parametrize("kind", ["demo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES)])
def test_the_last_token_alone_gives_what_the_whole_prompt_gives(load: Callable[[str], LoadedModel], kind: str) -> None:
    """The reference computes all tokens of the prompt again behind the site."""
    model = load(kind)
    blocks = [layer.name for layer in layers_of(model) if layer.name.startswith("llm.")]
    inputs = prepared(model)
    recorded = RecordedPass(model, inputs, blocks)
    generator = torch.Generator().manual_seed(0)
    for site in blocks:
        (own,) = recorded.states[site]
        states = own.clone()
        states[:, -1] += own[:, -1].std() * torch.randn(own[:, -1].shape, generator=generator)
        whole = outputs(model, recorded.resume(site, (states,)))
        alone = outputs(model, recorded.resume_last(site, (states,)))
        torch.testing.assert_close(alone[0], whole[0], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(alone[1], whole[1], atol=2e-4, rtol=1e-3)
        assert alone[2] == whole[2]
    # The clean pass is as it was.
    own_start = recorded.resume(blocks[0], recorded.states[blocks[0]])
    torch.testing.assert_close(own_start.logits, recorded.start.logits, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_prompts_that_are_not_causal_are_computed_whole(load: Callable[[str], LoadedModel]) -> None:
    """PaliGemma's prompts see all of themselves; Gemma and Mistral (LLaVA-NeXT) have windows, Qwen3.5 has states."""
    whole = {kind for kind in FAMILIES if not RecordedPass(load(kind), prepared(load(kind)), ())._sees_no_later_token()}
    assert "paligemma" in whole and "llava" not in whole
    gemmas = {"paligemma", "gemma3", "gemma4", "gemma4_moe", "gemma4_e"}
    assert "qwen3_5" in whole and whole <= {*gemmas, "llava_next", "qwen3_5"}
