"""Which methods and layers can be asked for, and what is said of those that cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.loading import load

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks import randomisation
from medmllm_plugins.attribution.methods import input_methods as at_inputs
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.methods.method_registry import select_methods, specs
from medmllm_plugins.attribution.methods.rollout import attention_rollout
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.errors import ModelError, OptionError, PluginError
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models import native
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.specs import AttributionSpec

torch.set_num_threads(1)

QUESTION = "Is it benign?"
LABELS = ("benign", "malignant")
TARGET = Target.of_label("benign", LABELS, LABELS)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
HOW = MethodConfig(steps=2, samples=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load("llava", tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def missed(model: LoadedModel) -> frozenset[str]:
    return unused_layers(model, model.prepare([QUESTION], [IMAGE]))


@pytest.fixture
def case(model: LoadedModel) -> AttributionInput:
    return AttributionInput(model, QUESTION, IMAGE, TARGET)


def test_every_method_that_is_declared_gives_values(
    model: LoadedModel, missed: frozenset[str], case: AttributionInput
) -> None:
    chosen = select_methods(list(specs()), ["vision.0", "connector", "llm.1"], model, missed)
    assert {selected.spec.name for selected in chosen} == set(specs())
    for selected in chosen:
        by_layer = selected.method(case, selected.layers, HOW)
        assert set(by_layer) == set(selected.layers)
        for scores in by_layer.values():
            assert scores.values.isfinite().all() and not scores.values.requires_grad
            assert (scores.gap is not None) == (selected.spec.name in PATHS)


PATHS = {"integrated_gradients", "layer_integrated_gradients", "layer_conductance"}


def test_layers_by_name(model: LoadedModel, missed: frozenset[str]) -> None:
    (selected,) = select_methods(["layer_grad_cam"], ["vision.0", "llm.001", "vision.00", "llm.embed"], model, missed)
    assert selected.layers == ("vision.00", "llm.01", "llm.embed") and selected.method is layer_methods.layer_grad_cam
    (selected,) = select_methods(["layer_grad_cam"], [], model, missed)
    assert selected.layers == ("vision.00", "connector")  # the last that is read
    (selected,) = select_methods(["saliency", "saliency"], ["llm.01"], model, missed)
    assert selected.layers == ("pixels",)


def test_an_unknown_method(model: LoadedModel, missed: frozenset[str]) -> None:
    with pytest.raises(OptionError, match=r"`method` to be some of saliency, .*kernel_shap, got smooth, other\."):
        select_methods(["saliency", "smooth", "other"], [], model, missed)


@pytest.mark.parametrize("name", ["vision.02", "llm.3", "head", "vision", "llm.-1", "pixels", ""])
def test_an_unknown_layer(model: LoadedModel, missed: frozenset[str], case: AttributionInput, name: str) -> None:
    said = r"LLaVA.*: expected `layer` to be some of vision.00, vision.01, .*connector, llm.embed, .*llm.norm, got "
    with pytest.raises(OptionError, match=said) as raised:
        select_methods(["layer_grad_cam"], ["connector", name], model, missed)
    assert str(raised.value).endswith(f"got {name!r}.")
    with pytest.raises(OptionError, match=r"expected `layer` to be one of vision.00, .*llm.norm, got"):
        case.layer(name)


@pytest.mark.parametrize("name", ["vision.01", "vision.1", "vision.norm"])
def test_a_layer_that_is_never_read(model: LoadedModel, missed: frozenset[str], name: str) -> None:
    full = "vision.01" if name == "vision.1" else name
    with pytest.raises(OptionError, match=rf"got {full}: the LLM reads an earlier layer of the tower. Use vision\.00,"):
        select_methods(["layer_grad_cam"], [name], model, missed)


def test_a_layer_that_is_never_read_has_no_gradient(case: AttributionInput) -> None:
    for method in (
        layer_methods.layer_grad_cam,
        layer_methods.layer_gradient_x_activation,
        layer_methods.layer_conductance,
    ):
        with pytest.raises(
            ModelError,
            match=r"gradient of the target at vision\.01, got none: .*the target does not depend on the layer",
        ):
            method(case, ["vision.00", "vision.01"], HOW)


def test_quantised_weights(model: LoadedModel, missed: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    usual = list(model.model.parameters())
    monkeypatch.setattr(model.model, "parameters", lambda *args: iter([*usual, packed]))
    with pytest.raises(OptionError, match=r"weights are quantised, got saliency, layer_grad_cam\. Use") as raised:
        select_methods(["occlusion", "saliency", "layer_grad_cam"], [], model, missed)
    free = [name for name, spec in specs().items() if not spec.gradients]
    assert f"Use {', '.join(free)}, or load the model without load_in." in str(raised.value)
    assert {"occlusion", "layer_feature_ablation", "attention_rollout", "kernel_shap"} <= set(free)
    assert len(select_methods(free, [], model, missed)) == len(free)


def test_weights_that_bitsandbytes_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing where it is installed; elsewhere the test above, with a stand-in for its weights, is all there is.

    The command asks for CUDA; bitsandbytes packs and multiplies on a CPU as well.
    """
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # Its fastest kernel for CPUs takes no matrices as small as these.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    from transformers import BitsAndBytesConfig

    packing = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    monkeypatch.setattr(native, "quantisation", lambda _: packing)
    packed = load("llava", tmp_path / "checkpoint")
    assert any(value.dtype == torch.uint8 for value in packed.model.parameters())
    with pytest.raises(OptionError, match=r"weights are quantised, got saliency\. Use occlusion"):
        select_methods(["saliency"], [], packed, ())
    free = [name for name, spec in specs().items() if not spec.gradients]
    for selected in select_methods(free, ["vision.0", "connector"], packed, ()):
        for scores in selected.method(AttributionInput(packed, QUESTION, IMAGE, TARGET), selected.layers, HOW).values():
            assert scores.values.isfinite().all()
    assert not randomisation.can_shuffle(packed)


def test_methods_without_gradients_need_none(
    model: LoadedModel, missed: frozenset[str], case: AttributionInput
) -> None:
    """As with weights that give none: every pass is taken where gradients are switched off."""
    with torch.inference_mode():
        case = AttributionInput(model, QUESTION, IMAGE, TARGET)
        for selected in select_methods(
            [name for name, spec in specs().items() if not spec.gradients], [], model, missed
        ):
            assert all(
                scores.values.isfinite().all() for scores in selected.method(case, selected.layers, HOW).values()
            )


def test_a_label_outside_the_set() -> None:
    with pytest.raises(OptionError, match=r"`target` to be decision, .* or one of \['benign', 'malignant'\], got 'no'"):
        Target.of_label("no", LABELS, LABELS)


@pytest.fixture
def without_gradients(model: LoadedModel) -> Iterator[None]:
    usual = model.model.forward
    model.model.forward = torch.no_grad()(usual)
    try:
        yield
    finally:
        del model.model.forward


def test_a_model_that_switches_gradients_off(case: AttributionInput, without_gradients: None) -> None:
    said = "got none: the model disables gradients in between"
    for method in (
        layer_methods.layer_grad_cam,
        layer_methods.layer_gradient_x_activation,
        layer_methods.layer_conductance,
        layer_methods.layer_integrated_gradients,
    ):
        with pytest.raises(ModelError, match=said):
            method(case, ["connector"], HOW)
    for method in (at_inputs.saliency, at_inputs.integrated_gradients):
        with pytest.raises(ModelError, match=said):
            method(case, ["pixels"], HOW)
    assert layer_methods.layer_feature_ablation(case, ["connector"], HOW)["connector"].values.isfinite().all()
    assert at_inputs.occlusion(case, ["pixels"], HOW)["pixels"].values.isfinite().all()


def test_layers_without_attention_weights(case: AttributionInput, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in case.loaded.model.get_submodule(case.loaded.family.llm_blocks):
        usual: Any = block.self_attn.forward
        monkeypatch.setattr(
            block.self_attn, "forward", lambda *args, usual=usual, **kwargs: (usual(*args, **kwargs)[0], None)
        )
    with pytest.raises(ModelError, match="expected layers that return attention weights, got none"):
        attention_rollout(case, ["llm.embed"], HOW)


# -- a third party's ------------------------------------------------------------------------------------------------


@pytest.fixture
def third_party() -> Iterator[type]:
    module = ModuleType("throwaway_attribution")

    def ones(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
        return {layer: Scores(torch.ones(states.shape[1])) for layer, states in case.states(layers).items()}

    module.ones = ones  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module

    class Plugin:
        @staticmethod
        @hookimpl
        def medmllm_attributions() -> list[AttributionSpec]:
            return [
                AttributionSpec(
                    name="ones", target="throwaway_attribution:ones", summary="The same everywhere.", gradients=False
                ),
                AttributionSpec(
                    name="lost", target="throwaway_attribution:none", summary="A function there is none of."
                ),
            ]

    manager = get_manager()
    manager.pluggy.register(Plugin, name="throwaway")
    try:
        yield Plugin
    finally:
        manager.pluggy.unregister(Plugin)
        del sys.modules[module.__name__]


def test_a_third_partys_method(
    model: LoadedModel, missed: frozenset[str], case: AttributionInput, third_party: type
) -> None:
    selected, own = select_methods(["ones", "layer_activation"], ["connector", "llm.01"], model, missed)
    scores = selected.method(case, selected.layers, HOW)
    assert set(scores) == {"connector", "llm.01"} == set(own.layers)
    assert (scores["connector"].values == 1).all() and len(scores["connector"].values) == 16
    with pytest.raises(PluginError, match="Expected 'throwaway_attribution:none' to be importable"):
        select_methods(["lost"], [], model, missed)


def test_it_goes_with_its_plugin() -> None:
    assert "ones" not in specs()


def test_patches_are_taken_together_where_there_are_many(
    case: AttributionInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_inputs, "MOST_GROUPS", 5)
    patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)
    values = at_inputs.occlusion(case, ["pixels"], HOW)["pixels"].values
    assert len(values) == len(patches) == 16  # in blocks of two by two
    for corner in (0, 2, 8, 10):
        block = torch.tensor([corner, corner + 1, corner + 4, corner + 5])
        shown = patches.clone()
        shown[block] = blank[block]
        with torch.no_grad():
            lost = case.value - float(case.values(1, (), from_patches(case.loaded, shown, case.pixels)[None]))
        torch.testing.assert_close(values[block], torch.full((4,), lost / 4), atol=1e-5, rtol=1e-3)
