"""An architecture of a plugin's own, examples/plugin-model's ConvNet: captured and mapped at every layer."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from support.plugin_site import HEAD, Site

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.geometry import cells
from medmllm_plugins.attribution.maps import build_map
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.method_registry import select_methods
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.control_features import RandomEncoder
from medmllm_plugins.features.hooks import ActivationHooks
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.interventions.interchange import Exchange, interchange
from medmllm_plugins.interventions.knockout import cuts_of, knock_out
from medmllm_plugins.interventions.twin_patching import PatchSite, patch_sites, patch_twins
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family_registry import find_family
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.plugins.manager import discover, get_manager
from medmllm_plugins.testing import run_checks
from medmllm_plugins.testing.tiny_checkpoints import CHATML, TEXT, tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-model"
LAYERS = ["vision.00", "vision.01", "vision.02", "connector", "llm.embed", "llm.00", "llm.01", "llm.02", "llm.norm"]
QUESTION = "Benign?"
LABELS = ("benign", "malignant", "normal")
BRIGHT = (32, 16, 48, 32)
"""Left, top, right and bottom of a bright square on a black picture of 64 x 64: one token of the LLM."""


def write_convnet(folder: Path) -> Path:
    from medmllm_of_mine import convnet  # type: ignore[import-not-found]

    words = tokenizer(["<image>"], image_token="<image>")
    config = convnet.ConvConfig(
        vision_config=convnet.VisionConfig(),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = convnet.ConvForConditionalGeneration(config)
    for name, value in model.named_parameters():  # without biases black stays 0 up to the LLM
        if name.startswith(("model.tower", "model.projector")):
            torch.nn.init.zeros_(value) if name.endswith("bias") else torch.nn.init.normal_(value, std=0.3)
    image = hf.CLIPImageProcessorPil(
        size={"height": 64, "width": 64}, do_center_crop=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    hf.LlavaProcessor(
        image_processor=image,
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("SLOT", "<image>"),
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    """Installed as a third party's package, found by its entry point, loaded by its name."""
    site.metadata("medmllm-of-mine", "[medmllm_plugins]\nof_mine = medmllm_of_mine\n")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    spec = discover().models()["convnet_of_mine"]
    assert "medmllm_of_mine.convnet" not in sys.modules  # declaring imports nothing heavy
    import medmllm_of_mine.convnet  # type: ignore[import-not-found]  # noqa: F401

    folder = write_convnet(tmp_path / "checkpoint")
    yield load_model(spec, LoadOptions(str(folder), device="cpu", dtype="float32"))
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for registry in (CONFIG_MAPPING, hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, hf.PROCESSOR_MAPPING):
        for key in [key for key in registry._extra_content if "of_mine" in str(key)]:
            del registry._extra_content[key]
    for name in [name for name in sys.modules if name.startswith("medmllm_of_mine")]:
        del sys.modules[name]


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(image_pixels) for image_pixels in pixels]


def plain_outputs(model: LoadedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What each layer's module is given or returns, by hooks of torch alone."""
    seen: dict[str, Any] = {}
    handles = []
    for layer in layers_of(model):
        if layer.enters:

            def before(_: Any, args: Any, kwargs: Any, name: str = layer.name) -> None:
                seen[name] = args[0] if args else kwargs["hidden_states"]

            handles.append(layer.module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_: Any, __: Any, output: Any, name: str = layer.name) -> None:
                seen[name] = output[0] if isinstance(output, tuple) else output

            handles.append(layer.module.register_forward_hook(after))
    with torch.no_grad():
        model.model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def test_every_layer_is_captured_as_plain_hooks_see_it(model: LoadedModel) -> None:
    layers = layers_of(model)
    assert [layer.name for layer in layers] == LAYERS
    images = pictures(3)
    hooks = ActivationHooks(model, ("mean", "max", "last", "cls"))
    answers = model.generate([QUESTION, "Is it benign?", "a"], images, max_new_tokens=3, labels=LABELS, watch=hooks)
    hooks.close()
    assert all(answer.scores is not None and np.isfinite(answer.scores).all() for answer in answers)
    for index, (question, image) in enumerate(zip([QUESTION, "Is it benign?", "a"], images, strict=True)):
        inputs = model.prepare([question], [image])
        seen = plain_outputs(model, inputs)
        image_tokens = model.image_positions(inputs)[0]
        for layer in layers:
            output = seen[layer.name]
            if layer.part == "vision":
                rows = output[0].flatten(1).T
            elif layer.part == "connector":
                rows = output[0]
            else:
                rows = output[0][image_tokens]
                torch.testing.assert_close(
                    hooks.activations[layer.name, "last"][index], output[0, -1], atol=1e-4, rtol=1e-4
                )
            for pooling, value in (("mean", rows.mean(0)), ("max", rows.amax(0))):
                recorded = hooks.activations[layer.name, pooling][index]
                torch.testing.assert_close(recorded, value, atol=1e-4, rtol=1e-4, msg=f"{layer.name} {pooling}")
            assert (layer.name, "cls") not in hooks.activations


def test_the_model_for_any_checkpoint_opens_it_too(model: LoadedModel, tmp_path: Path, fresh: None) -> None:
    options = LoadOptions(str(tmp_path / "checkpoint"), device="cpu", dtype="float32")
    general = load_model(get_manager().models()["medmllm_hf"], options)
    assert type(general.family) is type(model.family) and general.family.model_type == "convnet_of_mine"
    assert [layer.name for layer in layers_of(general)] == LAYERS
    (image,) = pictures(1)
    answers = [each.generate([QUESTION], [image], max_new_tokens=3, labels=LABELS)[0] for each in (model, general)]
    assert answers[0].text == answers[1].text and answers[0].scores == answers[1].scores


def test_a_family_that_cannot_be_imported_hides_no_other(site: Site, fresh: None, model: LoadedModel) -> None:
    declared = 'ModelSpec(name="broken_model", summary="A model.", family="not_installed:Missing")'
    site.add("a-broken", f"{HEAD}\n@hookimpl\ndef medmllm_models():\n    return [{declared}]\n")
    assert find_family("convnet_of_mine", "a checkpoint").title == "ConvNet of mine"
    with pytest.raises(ModelError, match=r"mistral3, convnet_of_mine, got 'unknown'.*family of broken_model cannot be"):
        find_family("unknown", "a checkpoint")


def test_it_goes_through_the_checks_for_plugins(model: LoadedModel) -> None:
    spec = discover().models()["convnet_of_mine"]
    results = {result.check: result for result in run_checks(spec, checkpoint=write_convnet, device="cpu")}
    assert not [result for result in results.values() if result.status == "failed"]
    assert {result.status for result in results.values()} == {"passed"}


def test_controls_and_unused_layers(model: LoadedModel) -> None:
    inputs = model.prepare([QUESTION], pictures(1))
    assert unused_layers(model, inputs) == frozenset()
    encoder = RandomEncoder(model, ("mean",))
    features = encoder.features(inputs)
    encoder.close()
    assert {name for name, _ in features} == {f"control.random_encoder.{name}" for name in LAYERS[:4]}


def test_a_bright_square_is_found_in_its_position_at_every_layer(model: LoadedModel) -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), BRIGHT)
    case = AttributionInput(model, QUESTION, [image], Target.of_label("m", ("b", "m", "n"), LABELS))
    methods = select_methods(["layer_activation", "layer_gradient_x_activation"], [], model, ())
    assert [method.layers for method in methods] == [("vision.02", "connector")] * 2
    explained = LAYERS[:-2]  # after the last block only the last token's state reaches the answer
    scores = layer_methods.layer_activation(case, explained, layer_methods.MethodConfig())
    for layer in explained:
        painted = build_map(case, layer, scores[layer]).painted
        assert painted is not None and painted.shape == (1, 64, 64)
        row, column = np.unravel_index(np.nanargmax(painted[0]), (64, 64))
        # A convolution sees a pixel beyond the borders of its cell.
        assert BRIGHT[1] - 8 <= row < BRIGHT[3] + 8 and BRIGHT[0] - 8 <= column < BRIGHT[2] + 8, layer
        inside = painted[0, BRIGHT[1] : BRIGHT[3], BRIGHT[0] : BRIGHT[2]]
        assert np.nanmean(inside) > 1.5 * np.nanmean(painted[0]), layer
    gradients = case.gradients(["pixels", *explained])
    assert all(bool((item.gradients != 0).any()) for item in gradients.values())


def test_a_patch_changes_the_rows_that_cover_it(model: LoadedModel) -> None:
    (image,) = pictures(1)
    inputs = model.prepare([QUESTION], [[image]])
    patches = to_patches(model, inputs["pixel_values"])
    assert patches.shape == (256, 3, 4, 4)
    pixels = cells(model, inputs, [image], "pixels")
    case = AttributionInput(model, QUESTION, [image], Target.of_label("m", ("b", "m", "n"), LABELS))
    before = case.states(LAYERS[:5])
    for patch in (0, 37, 255):
        other = patches.clone()
        other[patch] += 3
        after = case.states(LAYERS[:5], from_patches(model, other, inputs["pixel_values"])[None])
        box = pixels.box[patch]
        for layer in LAYERS[:5]:
            own = cells(model, inputs, [image], layer)
            assert len(own) == before[layer].shape[1]
            moved = (after[layer] - before[layer])[0].abs().amax(-1).numpy() > 1e-5
            covering = (own.box[:, :2] <= box[:2] + 1e-9).all(1) & (own.box[:, 2:] >= box[2:] - 1e-9).all(1)
            assert moved[covering].any(), layer
            reach = 6 / 64  # a kernel of 3 reaches one cell beyond, of 8 pixels at most, at each of two layers
            near = (own.box[:, :2] < box[2:] + 2 * reach).all(1) & (own.box[:, 2:] > box[:2] - 2 * reach).all(1)
            assert not (moved & ~near).any(), layer


def test_interventions_work_at_every_stage(model: LoadedModel) -> None:
    """States of a twin and of other documents put in, and attention to the image cut."""
    twin = copy.copy(model)
    twin.model = copy.deepcopy(model.model)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.mul_(1.2)
    images = pictures(4)
    own, of_twin, of_others = (
        np.array([item.scores for item in loaded.generate([QUESTION] * 2, some, max_new_tokens=0, labels=LABELS)])
        for loaded, some in ((model, images[:2]), (twin, images[:2]), (model, images[2:]))
    )
    sites = patch_sites(model, every=1)
    forward, backward = patch_twins(model, twin, QUESTION, images[:2], LABELS, sites, max_new_tokens=2)
    np.testing.assert_allclose([answer.scores for answer in forward[None]], own, atol=1e-4)
    np.testing.assert_allclose([answer.scores for answer in backward[None]], of_twin, atol=1e-4)
    whole = Exchange(PatchSite("connector"), "other class")
    donors: Any = {"other class": images[2:], "same class": images[1:3]}
    exchanged = interchange(model, QUESTION, images[:2], donors, LABELS, [whole])
    np.testing.assert_allclose(exchanged[whole], of_others, atol=1e-4)
    (cut,) = [cut for cut in cuts_of(model) if cut.queries == "text"]
    blind = knock_out(model, QUESTION, images, LABELS, [cut])[cut]
    np.testing.assert_allclose(blind, np.tile(blind[0], (4, 1)), atol=1e-4)
