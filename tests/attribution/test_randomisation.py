"""Weights are shuffled level by level, and restored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.loading import load
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks import randomisation
from medmllm_plugins.attribution.checks.randomisation import cascading_randomisation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.results.attribution_records import RANDOMISATION_LEVELS

torch.set_num_threads(1)

QUESTION = "Is it benign?"
LABELS = ("benign", "malignant tumour", "no")
TARGET = Target.of_label("m", ("b", "m", "n"), LABELS)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


def weights(model: LoadedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def part_of(model: LoadedModel, name: str) -> str:
    """By the names in the checkpoint, of which level a weight is."""
    parts = {id(value): "head" for value in model.model.get_submodule(model.family.head).parameters()}
    layers = [place for place in layers_of(model) if not place.enters]
    llm = [place.module for place in layers if place.part == "llm"]
    for place in layers:
        level = {"vision": "tower", "connector": "connector"}.get(place.part, "LLM")
        if place.part == "llm" and place.module in llm[len(llm) // 2 :]:
            level = "upper LLM"
        for value in place.module.parameters():
            parts.setdefault(id(value), level)
    return parts.get(id(dict(model.model.named_parameters())[name]), "none")


@contextmanager
def shuffled(model: LoadedModel, wanted: str, seed: int = 0) -> Iterator[None]:
    """The model with its weights shuffled down to a level."""
    with cascading_randomisation(model, seed) as levels:
        assert wanted in iter(levels)  # goes as far as that level
        yield


def test_levels_are_nested_and_weights_are_restored(model: LoadedModel) -> None:
    before = weights(model)
    inputs = model.prepare([QUESTION], [IMAGE])
    of = {name: part_of(model, name) for name in before}
    reached: list[str] = []
    moved_before: set[str] = set()
    with cascading_randomisation(model) as levels:
        for level in levels:
            reached.append(level)
            during = weights(model)
            moved = {name for name in before if not torch.equal(before[name], during[name])}
            for name in moved:
                assert torch.equal(before[name].flatten().sort().values, during[name].flatten().sort().values)
            matrices = {name for name, value in before.items() if value.dim() > 1 and of[name] in reached}
            assert moved == matrices and moved_before < moved, level
            moved_before = moved
    assert tuple(reached) == RANDOMISATION_LEVELS
    after = weights(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any("embed_tokens" in name for name in moved_before)
    again = AttributionInput(model, QUESTION, IMAGE, TARGET)
    value = again.value
    with shuffled(model, "head"):
        again.clear_cache()
        assert abs(again.value - value) > 1e-3
        first = again.value
    with shuffled(model, "head", seed=1):
        again.clear_cache()
        assert abs(again.value - first) > 1e-3
    again.clear_cache()
    assert again.value == value
    assert inputs.keys() == model.prepare([QUESTION], [IMAGE]).keys()


def test_each_matrix_is_shuffled_once_and_restored_once(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many levels there are: at 7 billion weights nothing else is as long."""
    calls: list[tuple[int, bool]] = []
    usual = randomisation._shuffle

    def counted(value: Tensor, seed: int, *, back: bool) -> None:
        calls.append((id(value), back))
        usual(value, seed, back=back)

    monkeypatch.setattr(randomisation, "_shuffle", counted)
    with cascading_randomisation(model) as levels:
        assert tuple(levels) == RANDOMISATION_LEVELS
        assert not any(back for _, back in calls)
    there, again = ([identity for identity, way in calls if way == back] for back in (False, True))
    assert len(set(there)) == len(there) and again == there[::-1]


@pytest.mark.parametrize("shape", [(6, 8), (64, 40), (7, 100), (8, 3, 2, 2), (12, 1)])
def test_large_matrices_are_shuffled_in_bands(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(randomisation, "BAND", 96)
    before = torch.arange(float(np.prod(shape))).view(shape)
    value = before.clone()
    randomisation._shuffle(value, 3, back=False)
    assert torch.equal(value.flatten().sort().values, before.flatten())
    assert float((value == before).float().mean()) < 0.2
    was = (value.flatten() // before[0].numel()).view(shape[0], -1)
    if shape == (64, 40):  # in bands of two rows: each row has entries of both
        assert all(len(row.unique()) == 2 for row in was)
    randomisation._shuffle(value, 3, back=True)
    assert torch.equal(value, before)


def test_shuffling_takes_little_memory_and_time() -> None:
    """No order of all entries: one of 40 million would take 320 MB and some seconds."""
    value = torch.zeros(8192, 5000, dtype=torch.bfloat16)
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        usual = torch.randperm
        patch.setattr(torch, "randperm", lambda count, **more: drawn.append(count) or usual(count, **more))
        randomisation._shuffle(value, 0, back=False)
    assert max(drawn) <= randomisation.BAND and min(drawn) > 1


def test_weights_are_restored_after_an_error(model: LoadedModel) -> None:
    before = weights(model)
    with pytest.raises(RuntimeError, match="in between"), shuffled(model, "tower"):
        raise RuntimeError("in between")
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_tied_head_leaves_the_embeddings_alone(model: LoadedModel) -> None:
    head: Any = model.model.get_submodule(model.family.head)
    embed: Any = model.model.get_submodule(model.family.embed)
    own, tied = head.weight, embed.weight
    head.weight = tied
    try:
        kept = tied.detach().clone()
        with shuffled(model, "tower"):
            assert embed.weight is tied and torch.equal(tied, kept)
            assert head.weight is not tied and not torch.equal(head.weight, kept)
        assert head.weight is tied and embed.weight is tied and torch.equal(tied, kept)
    finally:
        head.weight = own


def test_quantised_weights_cannot_be_shuffled(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert randomisation.can_shuffle(model)
    packed = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(model.model, "parameters", lambda: iter([packed]))
    assert not randomisation.can_shuffle(model)
