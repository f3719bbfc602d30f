"""What is wrong with a checkpoint is said, with names and counts, and nothing is loaded in silence."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from support.tiny_medm_vl import (
    april_config,
    llm_config,
    october_config,
    vision_config,
    write_checkpoint,
    write_weights,
)
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import demo_folder, fill, find_folder, open_weights, resolve_size
from medmllm_plugins.models.formats.medm_vl import MedMVL, load
from medmllm_plugins.models.formats.medm_vl_config import read_config
from medmllm_plugins.models.options import LoadOptions

EMBED = "llm.model.embed_tokens.weight"


def load_cpu(folder: Path | str) -> MedMVL:
    return load(LoadOptions(str(folder), device="cpu", dtype="float32"))


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    write_weights(folder, weights)


def test_missing_tensors_are_listed(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: [w.pop(name) for name in list(w) if name.startswith("llm.model.layers.1.")])
    with pytest.raises(ModelError, match=r"12 missing from the checkpoint: model.language_model.layers.1.input_layern"):
        load_cpu(checkpoint)


def test_unexpected_tensors_are_listed(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: w.update({f"extra.{i:02}": torch.zeros(1) for i in range(25)}))
    with pytest.raises(ModelError, match=r"25 unknown to the model: extra\.00, .*extra\.19 and 5 more") as caught:
        load_cpu(checkpoint)
    assert "extra.20" not in str(caught.value)


def test_wrong_shapes_are_listed(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: w.update({"connector_image.connector.0.bias": torch.zeros(7)}))
    with pytest.raises(ModelError, match=r"1 of another shape: .*connector\.0\.bias \(expected \(32,\), got \(7,\)\)"):
        load_cpu(checkpoint)


def test_a_tensor_under_two_names_is_refused(checkpoint: Path) -> None:
    name = "encoder_image.encoder.{}post_layernorm.bias"
    spoil(checkpoint, lambda w: w.update({name.format(""): w[name.format("vision_model.")].clone()}))
    with pytest.raises(ModelError, match="given more than once"):
        load_cpu(checkpoint)


def test_tower_names_without_vision_model_load_too(checkpoint: Path, tiny: MedMVL, make_image: Any) -> None:
    def strip(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".vision_model." in name]:
            weights[name.replace(".vision_model.", ".")] = weights.pop(name)

    spoil(checkpoint, strip)
    loaded = load_cpu(checkpoint)
    result, other = (m.model(**m.prepare(["?"], [make_image(0)])).logits for m in (loaded, tiny))
    assert torch.equal(result, other)


def test_only_the_tower_s_own_pooling_head_may_be_left_over(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: w.update({"connector_image.head.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"1 unknown to the model: connector_image.head.weight"):
        load_cpu(checkpoint)


def test_untied_without_a_head_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tied=False)
    spoil(tmp_path, lambda w: w.pop("llm.lm_head.weight"))
    with pytest.raises(ModelError, match=r"1 missing from the checkpoint: lm_head\.weight"):
        load_cpu(tmp_path)


def test_tied_with_a_second_copy(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: w.update({"llm.lm_head.weight": w[EMBED].clone()}))
    loaded = load_cpu(checkpoint)
    assert loaded.model.lm_head.weight is loaded.model.model.language_model.embed_tokens.weight
    spoil(checkpoint, lambda w: w["llm.lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match=r"tie_word_embeddings.*differ"):
        load_cpu(checkpoint)


def test_quantised_weights_are_refused(checkpoint: Path) -> None:
    spoil(checkpoint, lambda w: w.update({EMBED: w[EMBED].to(torch.int8)}))
    with pytest.raises(ModelError, match=r"torch\.int8"):
        load_cpu(checkpoint)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="got no weights"):
        load_cpu(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"got pytorch_model\.bin.*save_file"):
        load_cpu(checkpoint)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", b"\0" * 64])
def test_a_broken_weight_file_is_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read.*fetch it again"):
        load_cpu(checkpoint)


def test_a_truncated_weight_file_is_named(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_cpu(checkpoint)


def test_faults_of_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())

    index.write_text(
        json.dumps({"weight_map": {**whole["weight_map"], "llm.more": "model-00001-of-00003.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"disagree about 1 entries: llm\.more in model-00001"):
        load_cpu(tmp_path)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], EMBED: "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        load_cpu(tmp_path)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], EMBED: "1" * 300}}))
    with pytest.raises(ModelError, match="outside its folder"):
        load_cpu(tmp_path)
    index.write_text("{}")
    with pytest.raises(ModelError, match="weight_map"):
        load_cpu(tmp_path)
    index.write_text(json.dumps(whole))
    shutil.copy(tmp_path / "model-00001-of-00003.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"both model.safetensors and"):
        load_cpu(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks 1 of 3 shards of its index: model-00002-of-00003"):
        load_cpu(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "llava", "text_config": {}}, "no MedM-VL format known.*April 2025.*October 2025"),
        ({"model_type": "lvlm"}, "no MedM-VL format known"),
        ({}, "no MedM-VL format known"),
        ([], "JSON object, got list"),
        (april_config(llm_config(), vision_config(), llm_type="phi3"), "`llm_type` to be 'qwen2'.*'phi3'"),
        (april_config(llm_config(), vision_config(), encoder_image_type="clip"), "'siglip'.*'clip'"),
        (
            april_config(llm_config(), vision_config(), connector_image_type="attn_pooling"),
            "one of medm_vl_ct: load it with --model medm_vl_ct",
        ),
        (april_config(llm_config(), vision_config(), connector_image_name="mlp3x_gelu"), "'mlp2x_gelu'.*'mlp3x_gelu'"),
        (april_config(llm_config(), vision_config(), encoder_image_select_feature="cls"), "'cls_patch' or 'patch'"),
        (april_config(llm_config(), vision_config(), encoder_image_select_layer=7), "3 hidden states"),
        (april_config(llm_config(), vision_config(), encoder_image3d_type="m3dclip"), "2D checkpoint.*m3dclip"),
        (april_config(llm_config(), vision_config(), llm_max_length="2048"), "llm_max_length.*whole number"),
        (april_config(llm_config(), vision_config(), llm_max_length=0), "llm_max_length.*positive"),
        (april_config(llm_config(model_type="llama"), vision_config()), "'qwen2', got 'llama'"),
        (april_config(llm_config(hidden_size="wide"), vision_config()), "settings that Qwen2Config takes"),
        (
            april_config(llm_config(num_attention_heads=5), vision_config()),
            "qwen2 part that divides into num_attention_heads, got 32 and 5",
        ),
        (april_config(llm_config(), vision_config(image_size=[32, 16])), "image_size.*one number"),
        (april_config(llm_config(), vision_config(), llm_config=3), "to be an object, got 3"),
        (october_config("someone/other-llm", "bases/tower"), "builds on 'someone/other-llm'.*Qwen2.5-3B-Instruct"),
        (october_config("Qwen/Qwen2.5-3B-Instruct", ""), "name or path, got ''"),
    ],
)
def test_config_faults(tmp_path: Path, raw: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


def test_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="as JSON"):
        read_config(tmp_path)


def test_named_shapes_that_do_not_fit_the_weights_are_refused(checkpoint: Path) -> None:
    raw = october_config("Qwen/Qwen2.5-0.5B-Instruct", "google/siglip-base-patch16-256-multilingual")
    (checkpoint / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"do not fit the model.*missing from the checkpoint.*of another shape"):
        load_cpu(checkpoint)


def test_bases_are_found_by_table_path_and_folder(tmp_path: Path) -> None:
    for llm in ("Qwen/Qwen2.5-3B-Instruct", "/hdd/someone/ckpts/Qwen2.5-3B-Instruct/"):
        raw = october_config(llm, "google/siglip-base-patch16-256-multilingual")
        (tmp_path / "config.json").write_text(json.dumps(raw))
        config = read_config(tmp_path)
        assert (config.llm.hidden_size, config.llm.num_hidden_layers, config.llm.tie_word_embeddings) == (
            2048,
            36,
            True,
        )
        assert config.llm.rope_parameters["rope_theta"] == 1_000_000.0
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text(json.dumps(llm_config()))
    for llm in ("llm", str(tmp_path / "llm")):
        raw = october_config(llm, "google/siglip-base-patch16-256-multilingual")
        (tmp_path / "config.json").write_text(json.dumps(raw))
        assert read_config(tmp_path).llm.hidden_size == 32


def test_a_whole_folder_needs_no_network(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_cpu(tiny_folder).max_length == 2048


def test_names_become_folders(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo, "*.safetensors" in allow_patterns, any("bin" in p for p in allow_patterns)))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sizes = {"demo": "embedded", "2d-3b": "shiym2000/MedM-VL-2D-3B-en", "small": "demo"}
    for name in ("2d-3b", "2D-3B", "someone/some-model"):
        assert find_folder(resolve_size(name, sizes)) == tiny_folder
    assert [repo for repo, *_ in asked] == ["shiym2000/MedM-VL-2D-3B-en"] * 2 + ["someone/some-model"]
    assert asked[0][1:] == (True, False)
    assert find_folder(resolve_size("demo", sizes)) == find_folder(resolve_size("small", sizes)) == demo_folder()
    assert find_folder(resolve_size(str(tiny_folder), sizes)) == tiny_folder
    for wrong in ("2d-5b", "/no/such/folder", "./nowhere", "a/b/c"):
        with pytest.raises(ModelError, match=r"a folder, a hub id .* demo, 2d-3b, small"):
            resolve_size(wrong, sizes)
        with pytest.raises(ModelError, match=r"a folder, a hub id .* demo; "):
            find_folder(wrong)
    with pytest.raises(ModelError, match="is a file"):
        find_folder(resolve_size(str(tiny_folder / "config.json"), sizes))
    assert len(asked) == 3


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"shiym2000/MedM-VL-2D-3B-en.*HF_HUB_OFFLINE"):
        load_cpu("shiym2000/MedM-VL-2D-3B-en")


def test_tokenizer_comes_from_the_base_where_the_checkpoint_has_none(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, form="october")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(tmp_path / name, tmp_path / "bases" / "llm" / name)
    assert load_cpu(tmp_path).eos_token_ids == load_cpu(tiny_folder).eos_token_ids

    write_checkpoint(tmp_path / "april")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "april" / name).unlink()
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **kwargs: asked.append(repo) or str(tiny_folder)
    )
    assert load_cpu(tmp_path / "april").eos_token_ids == load_cpu(tiny_folder).eos_token_ids
    assert asked == ["Qwen/Qwen2.5-3B-Instruct"]

    def offline(repo: str, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"holds no tokenizer.*copy its tokenizer\.json"):
        load_cpu(tmp_path / "april")


def test_faults_of_tokenizers(checkpoint: Path) -> None:
    file, settings = checkpoint / "tokenizer.json", checkpoint / "tokenizer_config.json"
    whole = file.read_text()
    file.write_text("{}")
    with pytest.raises(ModelError, match="expected a tokenizer, got"):
        load_cpu(checkpoint)
    file.write_text(whole.replace("<|image_pad|>", "<|other_pad|>"))
    with pytest.raises(ModelError, match=r"has no <\|image_pad\|> token"):
        load_cpu(checkpoint)
    file.write_text(whole)
    settings.write_text(json.dumps({"eos_token": None, "pad_token": None}))
    with pytest.raises(ModelError, match="lacks `eos_token` or `pad_token`"):
        load_cpu(checkpoint)
    settings.write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))
    raw = april_config(llm_config(vocab_size=200), vision_config())
    (checkpoint / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="vocabulary has 200: it belongs to another model"):
        load_cpu(checkpoint)


def test_max_length_is_the_config_s(tmp_path: Path, make_image: Any) -> None:
    write_checkpoint(tmp_path, max_length=70)
    loaded = load_cpu(tmp_path)
    assert loaded.max_length == 70
    with pytest.raises(ModelError, match="the model takes 70"):
        loaded.prepare(["What is in this image? " * 3], [make_image(0)])


def test_a_parameter_without_a_value_is_an_error(checkpoint: Path) -> None:
    from accelerate import init_empty_weights
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with init_empty_weights(include_buffers=False):
        model = Qwen2ForCausalLM(Qwen2Config(**llm_config()))
    names = {name: name.removeprefix("llm.") for name in load_file(checkpoint / "model.safetensors") if "llm." in name}
    names.pop("llm.model.norm.weight")
    with pytest.raises(ModelError, match=r"1 parameters got no value .*: model\.norm\.weight"):
        fill(model, open_weights(checkpoint), names, torch.float32, torch.device("cpu"))


def test_fingerprint_follows_the_content(checkpoint: Path, tiny: MedMVL, tmp_path: Path) -> None:
    first = load_cpu(checkpoint).fingerprint
    assert first == tiny.fingerprint
    shutil.copytree(checkpoint, tmp_path / "moved")
    assert load_cpu(tmp_path / "moved").fingerprint == first
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "model.safetensors").write_bytes(data)
    second = load_cpu(checkpoint).fingerprint
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "llm_max_length": 1024}))
    assert len({first, second, load_cpu(checkpoint).fingerprint}) == 3
