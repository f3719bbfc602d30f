"""Hooks on every family: what they record is what transformers itself says of single images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.control_features import RandomEncoder
from medmllm_plugins.features.hooks import ActivationHooks
from medmllm_plugins.features.unused_layers import unused_layers
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.plugins.specs import ModelSpec
from medmllm_plugins.prompts.feature_options import POOLINGS, FeatureOptions
from medmllm_plugins.testing.check_subjects import ModelSubject
from medmllm_plugins.testing.resources import Resources
from medmllm_plugins.testing.stage_checks import check_rows_belong_to_their_document
from medmllm_plugins.testing.tiny_families import FAMILIES as TINY
from medmllm_plugins.testing.tiny_families import write_family

QUESTIONS = ["What?", "Is it benign or malignant, and why?", "a"]
LABELS = ["benign", "malignant tumour", "no"]
UNREAD = {
    "llava": {"vision.01", "vision.norm"},
    "llava_next": {"vision.01", "vision.norm"},
    "llava_onevision": {"vision.norm"},
}
"""Vision layers behind the one that LLaVA takes."""


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(0, 60, 40), picture(1, 64, 64), picture(2, 50, 90)]


@pytest.fixture(scope="module", params=list(TINY))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = write_family(request.param, tmp_path_factory.mktemp(request.param))
    return ChatModel(open_native(LoadOptions(str(folder), device="cpu")))


@pytest.fixture
def hook(model: ChatModel) -> Iterator[Callable[..., ActivationHooks]]:
    made: list[ActivationHooks] = []

    def make(poolings: tuple[str, ...] = POOLINGS) -> ActivationHooks:
        made.append(ActivationHooks(model, poolings))
        return made[-1]

    yield make
    for hooks in made:
        hooks.close()


def alone(model: ChatModel, question: str, image: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All hidden states of the LLM for one image, by transformers called plainly, and the input."""
    inputs = model.prepare([question], [image])
    if hasattr(model.model.model, "rope_deltas"):
        model.model.model.rope_deltas = None
    kind = model.model.config.model_type
    more = {}
    if not hasattr(model.model.model, "rope_deltas"):
        start = 1 if kind == "paligemma" else 0
        more = {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None] + start}
    with torch.inference_mode():
        out = model.model(**inputs, **more, output_hidden_states=True, use_cache=False)
    return dict(enumerate(out.hidden_states)), inputs  # type: ignore[arg-type]


def test_no_full_hidden_states_are_kept_alive(model: ChatModel, hook: Callable[..., ActivationHooks]) -> None:
    hooks = hook()
    model.generate(QUESTIONS, IMAGES, max_new_tokens=2, watch=hooks)
    assert any(pooling == "answer" for _, pooling in hooks.activations)
    for key, value in hooks.activations.items():
        # A view would hold on to all that the stage returned.
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key


def test_llm_states_equal_output_hidden_states_of_single_images(
    model: ChatModel, hook: Callable[..., ActivationHooks]
) -> None:
    hooks = hook()
    model.generate(QUESTIONS, IMAGES, max_new_tokens=0, watch=hooks)
    blocks = [layer.name for layer in hooks.layers if layer.part == "llm"]
    for row, (question, image) in enumerate(zip(QUESTIONS, IMAGES, strict=True)):
        states, inputs = alone(model, question, image)
        mask = model.image_positions(inputs)[0]
        # Embeddings, what each block but the last returns, and what the norm behind the last returns.
        expected = dict(zip([*blocks[:-2], "llm.norm"], states.values(), strict=True))
        if model.model.config.model_type == "qwen3_vl":
            # It adds deepstack features to the states between blocks, behind what the block itself returned.
            expected = {name: expected[name] for name in ("llm.embed", blocks[-3], "llm.norm")}
        for name, state in expected.items():
            for pooling, value in (
                ("last", state[0, -1]),
                ("mean", state[0, mask].mean(0)),
                ("max", state[0, mask].amax(0)),
            ):
                torch.testing.assert_close(
                    hooks.activations[name, pooling][row], value, atol=1e-3, rtol=1e-3, msg=f"{name} {pooling}"
                )


@pytest.mark.parametrize("kind", TINY)
def test_a_batch_of_different_sizes_gives_what_single_images_give(kind: str) -> None:
    spec = ModelSpec(name=kind, summary="A tiny random model.")
    check_rows_belong_to_their_document(ModelSubject(spec, Resources(checkpoint=partial(write_family, kind))))


def test_vision_and_connector_are_means_of_plain_hooks(model: ChatModel, hook: Callable[..., ActivationHooks]) -> None:
    hooks = hook(("mean",))
    seen: dict[str, torch.Tensor] = {}
    inputs = model.prepare(QUESTIONS[:1], IMAGES[:1])
    handles = [
        place.module.register_forward_hook(
            lambda _, __, out, name=place.name: seen.__setitem__(name, out[0] if isinstance(out, tuple) else out)
        )
        for place in layers_of(model)
        if place.part != "llm"
    ]
    with hooks.prompt(inputs):
        model.prefill(inputs)
    for handle in handles:
        handle.remove()
    for name, output in seen.items():
        if (name, "mean") not in hooks.activations:
            assert name == "vision.norm" and output.dim() == 2  # CLIP's norm is given the class token alone
            continue
        rows = output
        has_class = model.model.config.model_type in ("llava", "llava_next", "internvl") and name.startswith("vision")
        if has_class:
            rows = output[:, 1:]
        if model.model.config.model_type == "gemma4" and name.startswith("vision"):
            rows = output[inputs["image_position_ids"][..., 0] >= 0]
            assert len(rows) < output.shape[1]
        torch.testing.assert_close(
            hooks.activations[name, "mean"][0], rows.reshape(-1, rows.shape[-1]).mean(0), atol=1e-4, rtol=1e-4
        )
        if has_class:
            cls_hooks = ActivationHooks(model, ("cls",))
            with cls_hooks.prompt(inputs):
                model.prefill(inputs)
            cls_hooks.close()
            torch.testing.assert_close(
                cls_hooks.activations[name, "cls"][0], output[:, 0].mean(0), atol=1e-4, rtol=1e-4
            )


def test_the_first_answer_token_is_recorded_on_request(model: ChatModel, hook: Callable[..., ActivationHooks]) -> None:
    hooks = hook(("mean", "last", "answer"))
    plain = model.generate(QUESTIONS, IMAGES, max_new_tokens=4, labels=LABELS)
    watched = model.generate(QUESTIONS, IMAGES, max_new_tokens=4, labels=LABELS, watch=hooks)
    assert [item.text for item in watched] == [item.text for item in plain]
    np.testing.assert_allclose([item.scores for item in watched], [item.scores for item in plain], atol=1e-4)
    assert ("llm.norm", "answer") in hooks.activations and ("connector", "answer") not in hooks.activations
    assert not torch.allclose(hooks.activations["llm.norm", "answer"], hooks.activations["llm.norm", "last"])


def test_the_lens_at_the_end_is_the_logits_of_the_labels(
    model: ChatModel, hook: Callable[..., ActivationHooks]
) -> None:
    hooks = hook()
    inputs = model.prepare(QUESTIONS, IMAGES)
    with hooks.prompt(inputs):
        start = model.prefill(inputs)
    tokens = [[5], [17], [40]]
    names, logits = hooks.lens(tokens)
    assert names[0] == "llm.embed" and names[-1] == "llm.norm" and logits.shape == (len(names), 3, 3)
    head: Any = model.model.lm_head
    bias = 0.0 if head.bias is None else head.bias[[5, 17, 40]]
    torch.testing.assert_close(logits[-1] + bias, start.logits[:, [5, 17, 40]], atol=1e-3, rtol=1e-3)
    # What the last block returned, read through the norm, is what the norm returned.
    torch.testing.assert_close(logits[-2], logits[-1], atol=1e-3, rtol=1e-3)
    # Labels that begin alike are read by the mean of their tokens' rows.
    shared = hooks.lens([[5, 17], [5, 40]])[1]
    expected = torch.stack([(logits[..., 0] + logits[..., 1]) / 2, (logits[..., 0] + logits[..., 2]) / 2], dim=-1)
    torch.testing.assert_close(shared, expected, atol=1e-3, rtol=1e-3)


def test_layers_that_are_never_read_are_found(model: ChatModel) -> None:
    kind = model.model.config.model_type
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    inputs = model.prepare(QUESTIONS[:1], IMAGES[:1])
    assert unused_layers(model, inputs) == UNREAD.get(kind, set())
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert all("forward" not in module.__dict__ for module in model.model.modules())


def test_a_random_encoder_leaves_the_model_as_it_was(model: ChatModel) -> None:
    inputs = model.prepare(QUESTIONS, IMAGES)
    before = model.prefill(inputs).logits
    encoder = RandomEncoder(model, FeatureOptions().poolings)
    first, again = encoder.features(inputs), encoder.features(inputs)
    encoder.close()
    other = RandomEncoder(model, FeatureOptions().poolings, seed=1)
    second = other.features(inputs)
    other.close()
    assert {name for name, _ in first} >= {"control.random_encoder.vision.00", "control.random_encoder.connector"}
    assert not any("llm" in name for name, _ in first)
    for key, value in first.items():
        assert value.isfinite().all()
        assert torch.equal(value, again[key])
    assert not torch.allclose(
        first["control.random_encoder.vision.00", "mean"], second["control.random_encoder.vision.00", "mean"]
    )
    assert torch.equal(model.prefill(inputs).logits, before)
    answers = model.generate(QUESTIONS, IMAGES, max_new_tokens=3)
    assert len(answers) == 3


def test_hooks_go_when_closed_and_rest_in_between(model: ChatModel) -> None:
    model.generate(QUESTIONS[:1], IMAGES[:1], max_new_tokens=1)  # transformers puts on hooks of its own when first run
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    hooks = ActivationHooks(model, ("mean", "last"))
    model.generate(QUESTIONS, IMAGES, max_new_tokens=2)
    assert hooks.activations == {}
    hooks.close()
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()) == count


def test_a_stage_that_is_passed_twice_is_an_error(model: ChatModel, hook: Callable[..., ActivationHooks]) -> None:
    hooks = hook()
    inputs = model.prepare(QUESTIONS[:1], IMAGES[:1])
    with pytest.raises(ModelError, match="every stage to be run once"), hooks.prompt(inputs):
        model.prefill(inputs)
        model.prefill(inputs)


def test_an_llm_that_ignores_the_image_reads_the_tower_all_the_same(tmp_path: Path) -> None:
    """And where the connector hands nothing over, no single layer can be blamed."""
    from medmllm_plugins.probes.validation.fault_kinds import Fault
    from medmllm_plugins.probes.validation.planted_faults import plant_faults

    model = ChatModel(open_native(LoadOptions(str(write_family("llava", tmp_path / "llava")), device="cpu")))
    inputs = model.prepare(QUESTIONS[:1], IMAGES[:1])
    with plant_faults(model, Fault("blind", 3)):
        assert unused_layers(model, inputs) == UNREAD["llava"]
    connector = model.model.get_submodule(model.family.connector)
    handle = connector.register_forward_hook(lambda _, __, output: output * 0)
    assert unused_layers(model, inputs) == frozenset()
    handle.remove()
