"""Single edits of planted faults: images, linear maps, and what an edit needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.planted_faults import (
    QUESTIONS,
    context,
    hooks,
    pictures,
    run,
)

from medmllm_plugins.data.layouts.phantoms import phantom
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models import generation
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.probes.validation.fault_kinds import (
    HEALTHY,
    STRENGTHS,
    Fault,
)
from medmllm_plugins.probes.validation.fault_sites import FaultSites
from medmllm_plugins.probes.validation.image_faults import IMAGE_EDITS, edit_image
from medmllm_plugins.probes.validation.planted_faults import class_directions, plant_faults

torch.set_num_threads(1)


@pytest.mark.parametrize("name", sorted(IMAGE_EDITS))
def test_faults_of_the_preprocessing_edit_the_image_that_is_prepared(
    load: Callable[..., LoadedModel], name: str
) -> None:
    model, image = load("demo"), Image.fromarray(phantom(3).image)
    healthy = model.prepare(QUESTIONS[:1], [image])["pixel_values"]
    sizes = []
    for strength in STRENGTHS:
        fault = Fault(name, strength)
        edited = edit_image(image, fault)
        assert edited.size == image.size and edited.mode == "RGB"
        with plant_faults(model, fault):
            prepared = model.prepare(QUESTIONS[:1], [image])["pixel_values"]
        assert torch.equal(prepared, model.prepare(QUESTIONS[:1], [edited])["pixel_values"])
        sizes.append(float((prepared - healthy).abs().mean()))
    assert min(sizes) > 0 and (name in ("image_rotated", "image_tiled") or sizes == sorted(sizes)), sizes
    assert torch.equal(model.prepare(QUESTIONS[:1], [image])["pixel_values"], healthy)


@pytest.mark.parametrize(
    "name",
    [
        *("tower_signs", "tower_permuted", "tower_rotated", "tower_scaled", "tower_patches_permuted"),
        *("connector_signs", "connector_permuted", "connector_rotated", "connector_scaled"),
        *("final_signs", "final_permuted", "final_rotated"),
    ],
)
def test_linear_faults_of_form_can_be_undone_by_a_linear_map(load: Callable[..., LoadedModel], name: str) -> None:
    """What the stage holds is still there, up to rounding."""
    model = load("demo")
    inputs = model.prepare([QUESTIONS[0]] * 8, pictures(8))
    with ExitStack() as stack:
        end = FaultSites(model, stack).tower_end.name
    at = {"tower": end, "connector": "connector", "final": "llm.norm"}[name.partition("_")[0]]
    healthy = run(model, HEALTHY, inputs)[at].flatten(0, 1)
    broken = run(model, Fault(name, 3, seed=1), inputs)[at].flatten(0, 1)
    if name == "tower_patches_permuted":
        healthy, broken = (rows.reshape(8, 64, -1).sum(1) for rows in (healthy, broken))
    solution = torch.linalg.lstsq(broken.double(), healthy.double(), driver="gelsd").solution
    torch.testing.assert_close(broken.double() @ solution, healthy.double(), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(broken, healthy, atol=1e-3) or name == "tower_patches_permuted"


def test_what_a_fault_needs_and_was_not_given(load: Callable[..., LoadedModel]) -> None:
    model = load("demo")
    removed, bias = Fault("directions_removed"), Fault("label_bias")
    for incomplete in (None, {}, {"connector": torch.ones(3)}):
        with (
            pytest.raises(OptionError, match="directions_removed needs"),
            plant_faults(model, removed, directions=incomplete),
        ):
            pass
    for labels in ((), ("benign",)):
        with (
            pytest.raises(OptionError, match="at least two `labels`"),
            plant_faults(model, bias, question="?", labels=labels),
        ):
            pass
    inputs, narrow = model.prepare(QUESTIONS[:1], pictures(1)), {"connector": torch.eye(3)}
    model.prefill(inputs)
    count = hooks(model)
    with (
        pytest.raises(ModelError, match="Expected directions as wide"),
        plant_faults(model, removed, directions=narrow),
    ):
        model.prefill(inputs)
    permuted, nested = replace(bias, name="labels_permuted"), ("no", "no finding")
    with (
        pytest.raises(OptionError, match="differ at some token"),
        plant_faults(model, permuted, question="?", labels=nested),
    ):
        pass
    with pytest.raises(OptionError, match="at least two of them different"):
        class_directions(torch.ones(2, 3), ["a", "a"])
    assert hooks(model) == count


def test_caches_and_attention_that_a_fault_cannot_work_with(
    load: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("demo")
    inputs = model.prepare(QUESTIONS[:1], pictures(1))
    start = model.prefill(inputs)
    count = hooks(model)
    with context(model, Fault("blind", 3)):
        with pytest.raises(ModelError, match="a cache from before the edit"):
            generation.greedy(model.model, start, max_new_tokens=2, eos_token_ids=())
        with pytest.raises(ModelError, match="with `input_ids`"):
            model.model(inputs_embeds=torch.zeros(1, 2, 128))
    monkeypatch.setattr(model.model.config.get_text_config(), "_attn_implementation", "flash_attention_2")
    with pytest.raises(ModelError, match="got 'flash_attention_2'"), context(model, Fault("blind")):
        pass
    assert hooks(model) == count
