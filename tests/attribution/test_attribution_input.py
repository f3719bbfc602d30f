"""What methods are computed from, on a model of each family: values, states at layers and their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    LayerActivation,
    LayerGradientXActivation,
)
from PIL import Image
from support.loading import ALL, load
from support.plain_target import (
    HOW,
    IMAGE,
    LABELS,
    LAYERS,
    QUESTION,
    STEPS,
    TARGET,
    PlainTarget,
    answered_input,
    at_layers,
    captum,
    close,
)
from support.tiny_medm_vl import write_ct_checkpoint

from medmllm_plugins.attribution.attribution_input import ActivationPatch, AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.methods import input_methods as at_inputs
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.method_registry import select_methods
from medmllm_plugins.attribution.methods.rollout import attention_rollout
from medmllm_plugins.attribution.patches import to_patches
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.native import attention_kernels
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=ALL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def plain(model: LoadedModel) -> PlainTarget:
    return PlainTarget(model)


@pytest.fixture(scope="module")
def case(model: LoadedModel) -> AttributionInput:
    return answered_input(model)


def test_values_are_those_of_plain_calls(model: LoadedModel, case: AttributionInput, plain: PlainTarget) -> None:
    with torch.no_grad():
        both = torch.stack([plain.pixels, plain.blank])
        torch.testing.assert_close(case.scores(2, (), both), plain.scores(both), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(case.values(2, (), both), plain(both), atol=1e-4, rtol=1e-5)
        assert case.value == pytest.approx(float(plain(plain.pixels[None])), abs=1e-4)
        torch.testing.assert_close(case.blank_pixels, plain.blank)
        answer = AttributionInput(model, QUESTION, IMAGE, Target.of_answer("malignant"))
        assert answer.value == pytest.approx(float(plain.scores(plain.pixels[None])[0, 1]), abs=1e-4)


def test_what_stands_at_a_layer_can_be_replaced_in_some_rows(case: AttributionInput) -> None:
    with torch.no_grad():
        for layer in LAYERS:
            blank = case.baseline_states([layer])[layer]
            put = [ActivationPatch(layer, blank.repeat(2, 1, 1), 1)]
            values = case.values(4, put)
            assert values[0] == pytest.approx(case.value, abs=1e-4) == float(values[3])
            assert values[1] == pytest.approx(float(case.values(1, [ActivationPatch(layer, blank)])), abs=1e-4)
            torch.testing.assert_close(values[1], values[2])
            assert abs(float(values[1]) - case.value) > 1e-4


def test_layer_activation(case: AttributionInput, plain: PlainTarget) -> None:
    for layer, scores in at_layers(case, layer_methods.layer_activation).items():
        wanted = captum(plain, layer, lambda tap: LayerActivation(plain, tap).attribute(plain.pixels[None]))
        close(scores.values, wanted[0].norm(dim=-1))
        close(case.states([layer])[layer], wanted)


def test_layer_gradient_x_activation(case: AttributionInput, plain: PlainTarget) -> None:
    for layer, scores in at_layers(case, layer_methods.layer_gradient_x_activation).items():
        wanted = captum(plain, layer, lambda tap: LayerGradientXActivation(plain, tap).attribute(plain.pixels[None]))
        close(scores.values, wanted[0].sum(-1))


def test_attention_rollout(model: LoadedModel, case: AttributionInput, plain: PlainTarget) -> None:
    if model.model.config.model_type == "qwen3_5":
        with pytest.raises(ModelError, match="expected `self_attn` in each layer of the LLM"):
            attention_rollout(case, ["llm.embed"], HOW)
        return
    usual = model.model.config._attn_implementation
    (scores,) = attention_rollout(case, ["llm.embed"], HOW).values()
    assert model.model.config._attn_implementation == usual
    inner: Any = model.model.model
    more = {}
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None
    else:
        first = 1 if model.model.config.model_type == "paligemma" else 0
        more = {"position_ids": torch.arange(plain.length)[None] + first}
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model.model(**plain.inputs, **more, use_cache=False, output_attentions=True).attentions
    finally:
        model.model.set_attn_implementation(attention_kernels(model.model.config, usual))
    whole = np.eye(plain.length)
    for weight in weights:
        whole = (0.5 * weight[0].double().mean(0).numpy() + 0.5 * np.eye(plain.length)) @ whole
    close(scores.values, torch.from_numpy(whole[-1]))
    assert float(scores.values.sum()) == pytest.approx(1, abs=1e-5)


def test_layers_behind_which_no_image_token_is_read_are_refused(model: LoadedModel, case: AttributionInput) -> None:
    """In each family the target has no slope at the image tokens of the last block and the norm, and has before."""
    names = [place.name for place in layers_of(model) if place.part == "llm"]
    # Two blocks of the small Gemma 4 read keys of earlier ones, so that those before are the last to be read.
    shared = getattr(model.model.config.get_text_config(), "num_kv_shared_layers", 0)
    before = names[-3 - shared]
    image = ~case.text
    for layer, item in case.gradients(names[-3 - shared :]).items():
        slope = float(item.gradients[:, image].abs().max())
        assert (slope > 0) == (layer == before)
        if layer == before:
            assert select_methods(["layer_grad_cam"], [layer], model, ())[0].layers == (layer,)
            continue
        said = rf"got {layer}, of which it depends on the last token alone\. Use {before} or"
        with pytest.raises(OptionError, match=said):
            select_methods(["layer_activation"], ["connector", layer], model, ())


@pytest.mark.parametrize("baseline", ["blank", "blurred"])
def test_pictures_of_other_sizes_and_several(model: LoadedModel, baseline: Any) -> None:
    """Tiles, windows and pictures of their own: all that is put back where it was changes nothing."""
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ((75, 41), (40, 90))]
    shown = pictures if model.shows == "images" else pictures[0]
    case = AttributionInput(model, QUESTION, shown, TARGET, baseline=baseline, batch=4)
    asked = model.generate([QUESTION], [shown], max_new_tokens=0, labels=list(LABELS))[0]
    assert asked.scores is not None
    assert case.value == pytest.approx(float(TARGET.value(torch.tensor([asked.scores]))), abs=1e-4)
    layers = [*LAYERS, "llm.embed"]
    states, blank = case.states(layers), case.baseline_states(layers)
    assert not torch.allclose(blank["llm.embed"][:, case.text], states["llm.embed"][:, case.text])
    with torch.no_grad():
        assert float(case.values(1, (), case.blank_pixels[None])) != pytest.approx(case.value, abs=1e-4)
        for layer in layers:
            assert float(case.values(1, [ActivationPatch(layer, states[layer])])) == pytest.approx(case.value, abs=1e-4)
    for layer in layers:
        # Several copies, computed from the layer on and from the pixels.
        mixed = torch.cat([states[layer], blank[layer], (states[layer] + blank[layer]) / 2]).requires_grad_()
        resumed, whole = case.values_from(layer, mixed), case.values(3, [ActivationPatch(layer, mixed)])
        torch.testing.assert_close(resumed, whole, atol=1e-4, rtol=1e-4)
        (got,), (wanted,) = (torch.autograd.grad(value.sum(), mixed) for value in (resumed, whole))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
    scores = layer_methods.layer_gradient_x_activation(case, layers, HOW)
    assert [len(scores[layer].values) for layer in layers] == [states[layer].shape[1] for layer in layers]


def test_gradients_of_all_layers_come_from_one_pass_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = AttributionInput(load("internvl", tmp_path / "model"), QUESTION, IMAGE, TARGET, batch=3)
    passes: list[int] = []
    back: list[int] = []
    usual, usual_grad = LoadedModel.prefill, torch.autograd.grad

    def prefill(self: LoadedModel, inputs: Any) -> Any:
        if torch.is_grad_enabled():
            passes.append(len(inputs["input_ids"]))
        return usual(self, inputs)

    def grad(*args: Any, **kwargs: Any) -> Any:
        back.append(1)
        return usual_grad(*args, **kwargs)

    monkeypatch.setattr(LoadedModel, "prefill", prefill)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    layer_methods.layer_grad_cam(case, LAYERS, HOW)
    assert passes == [1] and len(back) == 1
    layer_methods.layer_integrated_gradients(case, LAYERS, HOW)
    path = [3] * (STEPS // 3) + [STEPS % 3] * bool(STEPS % 3)  # a batch holds 3 steps of one layer
    assert passes[1:] == path * len(LAYERS) and len(back) == len(passes)
    layer_methods.layer_conductance(case, LAYERS, HOW)
    assert passes[1 + len(path) * len(LAYERS) :] == [3] * ((STEPS + 1) // 3) + [(STEPS + 1) % 3] * bool((STEPS + 1) % 3)


def test_slices_of_a_volume(tmp_path: Path) -> None:
    chest = medm_vl.load_ct(LoadOptions(str(write_ct_checkpoint(tmp_path / "ct")), device="cpu"))
    voxels = np.random.default_rng(0).uniform(-900, 200, (40, 30, 30)).astype(np.float32)
    case = AttributionInput(chest, QUESTION, Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU"), TARGET, batch=2)
    for method in (layer_methods.layer_gradient_x_activation, layer_methods.layer_integrated_gradients):
        together = at_layers(case, method)
        for layer in LAYERS:
            close(at_layers(case, method, [layer])[layer].values, together[layer].values)
    (scores,) = at_inputs.saliency(case, ["pixels"], HOW).values()
    given = case.inputs["pixel_values"].clone().requires_grad_()
    ids = chest.label_ids(QUESTION, list(LABELS))
    chances = []
    for token_ids in ids:
        tail = torch.tensor([token_ids])
        logits = chest.model(
            input_ids=torch.cat([case.inputs["input_ids"], tail], 1),
            attention_mask=torch.ones(1, case.inputs["input_ids"].shape[1] + len(token_ids), dtype=torch.long),
            pixel_values=given,
            use_cache=False,
        ).logits.log_softmax(-1)[0, -len(token_ids) - 1 : -1]
        chances.append(logits.gather(1, tail.T).sum())
    value = chances[1] - torch.logaddexp(chances[0], chances[2])
    assert case.value == pytest.approx(float(value.detach()), abs=1e-4)
    (wanted,) = torch.autograd.grad(value, given)
    close(scores.values, to_patches(chest, wanted).abs().sum(1))


def test_a_path_begins_at_its_layer_and_forgets_other_weights(tmp_path: Path) -> None:
    loaded = load("internvl", tmp_path / "model")
    case = AttributionInput(loaded, QUESTION, IMAGE, TARGET, batch=3)
    states = {layer: held.repeat(3, 1, 1) for layer, held in case.states(["vision.01", "llm.01"]).items()}
    case.record(list(states))
    called: dict[str, int] = {}
    length = case.inputs["input_ids"].shape[1]
    names = {layer.name: layer.module for layer in layers_of(loaded)}

    def note(name: str, output: Any) -> None:
        called.setdefault(name, (output[0] if isinstance(output, tuple) else output).shape[1])

    handles = [
        next(names[name].children()).register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name in ("vision.00", "llm.00", "llm.02")
    ]
    with torch.no_grad():
        case.values_from("vision.01", states["vision.01"])
        assert "vision.00" not in called and called["llm.00"] == length
        called.clear()
        case.values_from("llm.01", states["llm.01"])
        # The tokens of labels go through all blocks, those of the prompt through the later ones.
        assert "vision.00" not in called and called["llm.00"] < length == called["llm.02"]
        for handle in handles:
            handle.remove()
        for weight in names["llm.00"].parameters():
            weight.mul_(1.5)
        case.clear_cache()
        patch = ActivationPatch("llm.01", states["llm.01"])
        torch.testing.assert_close(case.values_from("llm.01", states["llm.01"]), case.values(3, [patch]))
