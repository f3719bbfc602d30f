"""Gemma 4: images that are padded to one number of patches, and blocks that read keys of earlier ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medmllm_plugins.errors import ModelError, OptionError
from medmllm_plugins.features.hooks import ActivationHooks
from medmllm_plugins.features.pooling import BatchLayout, pool_images
from medmllm_plugins.models import generation
from medmllm_plugins.models.chat import ChatModel
from medmllm_plugins.models.families.family import replace_rows, select_rows
from medmllm_plugins.models.families.gemma4 import Gemma4
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of
from medmllm_plugins.testing.tiny_families import write_family

KINDS = ("gemma4", "gemma4_moe", "gemma4_e")
QUESTIONS = ["What is it?", "Is it benign or malignant, and why?", "a"]
LABELS = ["benign", "malignant tumour", "benign tumour", "no"]
SIZES = [(60, 40), (64, 64), (30, 120)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_family(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Callable[[str], ChatModel]:
    made: dict[str, ChatModel] = {}

    def loaded(kind: str) -> ChatModel:
        if kind not in made:
            made[kind] = ChatModel(open_native(LoadOptions(str(folders[kind]), device="cpu")))
        return made[kind]

    return loaded


def pictures(offset: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(offset)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def narrowed(folder: Path, target: Path, window: int) -> ChatModel:
    """The same checkpoint, half of whose blocks see a limited number of tokens."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"]["sliding_window"] = window
    (target / "config.json").write_text(json.dumps(config))
    return ChatModel(open_native(LoadOptions(str(target), device="cpu")))


def plain_inputs(model: ChatModel, question: str, image: Image.Image) -> dict[str, Tensor]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return dict(
        model.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def whole_score(model: ChatModel, inputs: dict[str, Tensor], ids: list[int]) -> float:
    more = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    more["mm_token_type_ids"] = torch.zeros(1, len(ids), dtype=torch.long)
    longer = {name: torch.cat([value, more[name]], 1) if name in more else value for name, value in inputs.items()}
    with torch.no_grad():
        logits = model.model(**longer).logits[0].double().log_softmax(-1)
    start = inputs["input_ids"].shape[1] - 1
    return float(sum(logits[start + number, token] for number, token in enumerate(ids)))


# -- rows of padding ---------------------------------------------------------------------------------------------------


def test_rows_of_documents_are_those_of_the_processor(load: Callable[[str], ChatModel]) -> None:
    model, shown = load("gemma4"), pictures()
    inputs = model.prepare(QUESTIONS[:2], [shown[:2], shown[2:]])
    (mask, none) = (model.family.row_mask(model.model, stage, inputs) for stage in ("vision", "connector"))  # type: ignore[arg-type]
    assert none is None and mask is not None and mask.shape == inputs["pixel_values"].shape[:2]
    patches = [
        int(model.processor.image_processor(image, return_tensors="pt")["num_soft_tokens_per_image"][0]) * 4
        for image in shown
    ]  # type: ignore[misc]
    assert mask.sum(1).tolist() == patches and not mask.all(1).any()
    assert model.rows_per_document("vision", inputs) == [patches[0] + patches[1], patches[2]]
    assert model.rows_per_document("connector", inputs) == [(patches[0] + patches[1]) // 4, patches[2] // 4]
    own = model.family.pixels_by_document(model.model, inputs)
    assert [len(part) for part in own] == [patches[0] + patches[1], patches[2]]
    torch.testing.assert_close(own[1], inputs["pixel_values"][2, : patches[2]])


@pytest.mark.parametrize("kind", KINDS)
def test_what_padding_holds_moves_no_feature_and_no_answer(load: Callable[[str], ChatModel], kind: str) -> None:
    model, shown = load(kind), pictures()
    inputs = model.prepare(QUESTIONS, [[image] for image in shown])
    padding = ~model.family.row_mask(model.model, "vision", inputs)  # type: ignore[operator]
    noisy = dict(inputs, pixel_values=torch.where(padding[..., None], torch.tensor(7.0), inputs["pixel_values"]))
    hooks = ActivationHooks(model, ("mean", "max"))
    recorded, logits = [], []
    for some in (inputs, noisy):
        with hooks.prompt(some):
            logits.append(model.prefill(some).logits)
        recorded.append(dict(hooks.activations))
    hooks.close()
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    for site, values in recorded[0].items():
        torch.testing.assert_close(recorded[1][site], values, atol=1e-4, rtol=1e-4, msg=str(site))


def test_another_padding_changes_no_row(load: Callable[[str], ChatModel]) -> None:
    model, image = load("gemma4"), pictures()[0]
    inputs = model.prepare(QUESTIONS[:1], [image])
    tighter = {
        **inputs,
        "pixel_values": inputs["pixel_values"][:, :256],
        "image_position_ids": inputs["image_position_ids"][:, :256],
    }
    torch.testing.assert_close(model.prefill(tighter).logits, model.prefill(inputs).logits, atol=1e-4, rtol=1e-4)
    assert model.rows_per_document("vision", tighter) == model.rows_per_document("vision", inputs) == [240]


def test_rows_are_chosen_and_put_back() -> None:
    rows = torch.arange(12.0).reshape(2, 3, 2).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    chosen = select_rows(rows, mask)
    assert chosen.tolist() == [[0, 1], [4, 5], [10, 11]]
    changed = replace_rows(rows, mask, -chosen)
    assert changed.tolist() == [[[0, -1], [2, 3], [-4, -5]], [[6, 7], [8, 9], [-10, -11]]]
    (gradient,) = torch.autograd.grad(changed.sum(), rows)
    assert gradient[..., 0].tolist() == [[-1, 1, -1], [1, 1, -1]]
    assert select_rows(rows, None) is rows and replace_rows(rows, None, -rows).tolist() == (-rows).tolist()
    with pytest.raises(ModelError, match=r"Expected \(2, 2\) rows from the vision stage.* got \(2, 3\)"):
        select_rows(rows, mask[:, :2])


def test_an_output_without_padding_is_an_error(load: Callable[[str], ChatModel]) -> None:
    model = load("gemma4")
    inputs = model.prepare(QUESTIONS, [[image] for image in pictures()])
    with pytest.raises(ModelError, match="rows from the vision stage, by the batch's input, got"):
        pool_images("vision", torch.zeros(3, 200, 32), BatchLayout.of(model, inputs), ("mean",))


def test_images_with_as_many_tokens_may_lie_otherwise(load: Callable[[str], ChatModel]) -> None:
    model = load("gemma4")
    keys = []
    for size in ((120, 30), (30, 120), (121, 30)):
        inputs = model.prepare(["a"], [Image.new("RGB", size)])
        keys.append((int(model.image_positions(inputs).sum()), model.family.grid_key(inputs)))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1] and keys[0] == keys[2]


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_image_tokens_without_their_types_would_not_see_each_other(load: Callable[[str], ChatModel]) -> None:
    model = load("gemma4")
    inputs = model.prepare(QUESTIONS[:1], pictures()[:1])
    assert int(inputs["mm_token_type_ids"].sum()) == int(model.image_positions(inputs).sum())
    blind = {**inputs, "mm_token_type_ids": torch.zeros_like(inputs["mm_token_type_ids"])}
    assert (model.prefill(inputs).logits - model.prefill(blind).logits).abs().max() > 1e-3
    del inputs["mm_token_type_ids"]
    with pytest.raises(ModelError, match="gemma4: expected `mm_token_type_ids` among the inputs"):
        model.prefill(inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_that_slide_past_the_image(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = narrowed(folders[kind], tmp_path / kind, 24)
    shown = pictures()
    answers = model.generate(QUESTIONS, [[image] for image in shown], max_new_tokens=6, labels=LABELS)
    for question, image, answer in zip(QUESTIONS, shown, answers, strict=True):
        inputs = plain_inputs(model, question, image)
        assert inputs["input_ids"].shape[1] > 48
        for ids, score in zip(model.label_ids(question, LABELS), answer.scores or (), strict=True):
            assert score == pytest.approx(whole_score(model, inputs, ids), abs=1e-3)
        written = model.model.generate(
            **inputs, do_sample=False, max_new_tokens=6, eos_token_id=list(model.eos_token_ids), pad_token_id=0
        )[0, inputs["input_ids"].shape[1] :]
        assert answer.text == model.tokenizer.decode(written, skip_special_tokens=True)


# -- the small sizes ---------------------------------------------------------------------------------------------------


def test_blocks_without_keys_of_their_own_are_run_on_all_tokens(load: Callable[[str], ChatModel]) -> None:
    """Transformers runs them on the last token alone where the logits of one are asked for by a number."""
    model = load("gemma4_e")
    inputs = model.prepare(QUESTIONS, [[image] for image in pictures()])
    lengths: dict[str, int] = {}
    states: dict[str, Tensor] = {}
    handles = [
        layer.module.register_forward_hook(lambda _, __, out, name=layer.name: states.__setitem__(name, out))
        for layer in layers_of(model)
        if layer.part == "llm" and not layer.enters
    ]
    start = model.prefill(inputs)
    recorded = dict(states)
    with torch.no_grad():
        logits = model.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits
    lengths = {name: state.shape[1] for name, state in recorded.items()}
    for handle in handles:
        handle.remove()
    assert set(lengths.values()) == {inputs["input_ids"].shape[1]} and len(lengths) == 7
    for name, state in recorded.items():
        torch.testing.assert_close(state, states[name], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(start.logits, logits[:, -1], atol=1e-4, rtol=1e-4)


def _stores_keys(model: ChatModel, block: int) -> bool:
    return bool(model.model.get_submodule(f"model.language_model.layers.{block}.self_attn").store_full_length_kv)


def test_keys_that_blocks_share(load: Callable[[str], ChatModel]) -> None:
    model, family = load("gemma4_e"), Gemma4()
    assert family.key_stores(model.model) == {2: "sliding_attention", 3: "full_attention"}
    assert [family.cache_layer(model.model, block) for block in range(6)] == [0, 1, 2, 3, 2, 3]
    assert family.blocks_with_keys(model.model, 6) == 4 and family.reads_embeddings(model.model)
    # Before transformers 5.23, blocks say it themselves.
    modes = getattr(model.model.config.text_config, "kv_sharing_modes", None)
    stores = [mode == "store" for mode in modes] if modes else [_stores_keys(model, block) for block in range(6)]
    assert stores == [block in family.key_stores(model.model) for block in range(6)]
    for kind in ("gemma4", "gemma4_moe"):
        assert not family.key_stores(load(kind).model) and not family.reads_embeddings(load(kind).model)
        assert family.blocks_with_keys(load(kind).model, 4) == 4 and not family.further_embeddings(load(kind).model)


def test_an_audio_tower_is_no_connector_and_takes_its_own_kernel(folders: dict[str, Path]) -> None:
    options = LoadOptions(str(folders["gemma4_e"]), device="cpu", attn_implementation="sdpa")
    model = ChatModel(open_native(options))
    config: Any = model.model.config
    assert config.audio_config._attn_implementation == "eager"
    assert {config._attn_implementation, config.text_config._attn_implementation} == {"sdpa"}
    from medmllm_plugins.models.stages import connectors_of

    assert [layer.module for layer in connectors_of(model)] == [model.model.get_submodule("model.embed_vision")]


def test_a_kernel_that_drops_the_mask_of_images_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadOptions, "check", lambda _: None)  # which refuses it without a GPU
    options = LoadOptions(str(folders["gemma4"]), device="cpu", attn_implementation="flash_attention_2")
    # Before transformers 5.23, a package that is not installed is missed first.
    with pytest.raises((ModelError, OptionError), match=r"does not support Flash Attention 2|FlashAttention2 has been"):
        open_native(options)


# -- the head ----------------------------------------------------------------------------------------------------------


def test_the_lens_bends_logits_as_the_model_does(
    load: Callable[[str], ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("gemma4")
    monkeypatch.setattr(model.model.config.text_config, "final_logit_softcapping", 0.5)
    hooks = ActivationHooks(model, ("last",))
    inputs = model.prepare(QUESTIONS, [[image] for image in pictures()])
    with hooks.prompt(inputs):
        start = model.prefill(inputs)
    _, logits = hooks.lens([[5], [17], [40]])
    hooks.close()
    torch.testing.assert_close(logits[-1], start.logits[:, [5, 17, 40]], atol=1e-3, rtol=1e-3)
    assert float(logits.abs().max()) <= 0.5


def test_label_scores_by_tree_and_by_row_leave_the_cache_as_it_was(load: Callable[[str], ChatModel]) -> None:
    for kind in KINDS:
        model = load(kind)
        inputs = model.prepare(QUESTIONS, [[image] for image in pictures()])
        ids = [model.label_ids(question, LABELS) for question in QUESTIONS]
        with torch.no_grad():
            start = model.prefill(inputs)
            kept = [
                layer.keys.clone() for layer in start.cache.layers if isinstance(getattr(layer, "keys", None), Tensor)
            ]
            tree = generation._score_tree(model.model, start, ids, 0)
            rows = generation._score_rows(model.model, start, ids, 0)
        torch.testing.assert_close(tree, rows, atol=1e-4, rtol=1e-4)
        after = [layer.keys for layer in start.cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
        assert len(kept) == 4 and all(torch.equal(*pair) for pair in zip(kept, after, strict=True))
