"""MedM-VL for chest CT: the authors' arithmetic written out, volume preparation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_medm_vl
from torch import nn

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families.medm_vl_ct import volume_pixels
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.options import LoadOptions

LABELS = ["benign", "malignant tumour", "no"]
QUESTIONS = ["What?", "Classify this chest CT: benign, malignant."]


def volume(seed: int, shape: tuple[int, int, int] = (20, 30, 26), unit: Any = "HU") -> Volume:
    voxels = np.full(shape, -1024, np.float32)
    inner = np.random.default_rng(seed).uniform(-990, 1500, [size - 6 for size in shape])
    voxels[2:-4, 3:-3, 4:-2] = inner
    return Volume(voxels, (2.5, 0.7, 0.7), "RAS", unit)


def reference_pixels(shown: Volume, side: int) -> torch.Tensor:
    """The preparation written out voxel by voxel: linear interpolation between centres, edges repeated."""
    grey = (np.clip(shown.voxels, -1000, 1000) + 1000) / 2000 * 255
    where = np.argwhere(grey > 0)
    if len(where):
        (z0, y0, x0), (z1, y1, x1) = where.min(0), where.max(0) + 1
        grey = grey[z0:z1, y0:y1, x0:x1]
    for axis, size in enumerate((32, side, side)):
        old = grey.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (places - low).reshape([-1 if other == axis else 1 for other in range(3)])
        grey = np.take(grey, low, axis) * (1 - share) + np.take(grey, high, axis) * share
    levels = torch.from_numpy(np.floor(grey + 1e-4).astype(np.float32))
    return ((levels / 255 - 0.5) / 0.5)[:, None].repeat(1, 3, 1, 1)


@pytest.mark.parametrize(
    "shown",
    [
        volume(0),
        volume(1, (64, 40, 50)),
        volume(2, (9, 200, 100)),
        Volume(np.full((5, 6, 7), -2000, np.float32), (1, 1, 1), "RAS", "HU"),
    ],
    ids=["small", "deep", "wide", "nothing but air"],
)
def test_volumes_are_prepared_as_written_out(shown: Volume) -> None:
    ours, reference = volume_pixels(shown, 32), reference_pixels(shown, 32)
    assert ours.shape == (32, 3, 32, 32) and ours.dtype == torch.float32
    # Where a level lies on the border of two, rounding in float32 may fall on the other side: one level, rarely.
    assert (ours - reference).abs().max() <= 2.01 / 255
    assert ((ours - reference).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("form", ["april", "october"])
@torch.no_grad()
def test_scores_are_those_of_the_authors_arithmetic(tmp_path: Path, form: str) -> None:
    folder = tiny_medm_vl.write_ct_checkpoint(tmp_path, form)
    loaded = medm_vl.load_ct(LoadOptions(str(folder), device="cpu"))
    volumes = [volume(0), volume(1, (40, 30, 33))]
    result = loaded.generate(QUESTIONS, volumes, max_new_tokens=5, labels=LABELS)

    state = load_file(folder / "model.safetensors")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    tower = hf.SiglipVisionModel(hf.SiglipVisionConfig(**tiny_medm_vl.vision_config()))
    wanted = tower.state_dict()
    inner = part("encoder_image.encoder.vision_model.")
    tower.load_state_dict({name: inner[name.removeprefix("vision_model.")] for name in wanted})
    tower.eval()
    attention = nn.MultiheadAttention(24, 8, batch_first=True)
    attention.load_state_dict(part("connector_image.attn."))
    mlp = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32))
    mlp.load_state_dict(part("connector_image.connector."))
    llm = hf.Qwen2ForCausalLM(hf.Qwen2Config(**tiny_medm_vl.llm_config(tied=False)))
    llm.load_state_dict(part("llm."))
    llm.eval()
    words = loaded.tokenizer
    embed = llm.get_input_embeddings()
    for question, item, answer in zip(QUESTIONS, volumes, result, strict=True):
        slices = [
            tower(picture[None], output_hidden_states=True).hidden_states[-1][0] for picture in volume_pixels(item, 32)
        ]
        tokens = torch.cat(slices)[None]
        pooled, _ = attention(state["connector_image.query"][None], tokens, tokens)
        features = mlp(pooled)[0]
        before, behind = loaded.render(question).split("<image>")
        for label, score in zip(LABELS, answer.scores or (), strict=True):
            prompt = words(behind)["input_ids"]
            ids = words(f"{behind} {label}")["input_ids"][len(prompt) :]
            text = [embed(torch.tensor(words(before)["input_ids"])), features, embed(torch.tensor([*prompt, *ids]))]
            logits = llm(inputs_embeds=torch.cat(text)[None]).logits[0].double().log_softmax(-1)
            at = len(logits) - len(ids) - 1
            expected = sum(float(logits[at + place, token]) for place, token in enumerate(ids))
            assert score == pytest.approx(expected, abs=1e-3)
        (alone,) = loaded.generate([question], [item], max_new_tokens=5, labels=LABELS)
        assert alone.text == answer.text and alone.scores == pytest.approx(answer.scores, abs=1e-4)
    in_words = loaded.generate(QUESTIONS, [], max_new_tokens=5, inputs=loaded.prepare_text(QUESTIONS))
    for question, answer in zip(QUESTIONS, in_words, strict=True):
        prompt = torch.tensor([words(f"{medm_vl.SYSTEM} USER: {question} ASSISTANT:")["input_ids"]])
        out = llm.generate(prompt, do_sample=False, max_new_tokens=5, eos_token_id=loaded.eos_token_ids[0])
        assert answer.text == words.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)


def test_the_two_models_name_each_other(tmp_path: Path) -> None:
    folder = tiny_medm_vl.write_ct_checkpoint(tmp_path / "ct")
    with pytest.raises(ModelError, match=r"this is one of medm_vl_ct: load it with --model medm_vl_ct"):
        medm_vl.load(LoadOptions(str(folder), device="cpu"))
    tiny_medm_vl.write_checkpoint(tmp_path / "2d")
    with pytest.raises(ModelError, match=r"this is one of medm_vl: load it with --model medm_vl"):
        medm_vl.load_ct(LoadOptions(str(tmp_path / "2d"), device="cpu"))


def test_what_is_no_ct_volume(tmp_path: Path) -> None:
    loaded = medm_vl.load_ct(LoadOptions(str(tiny_medm_vl.write_ct_checkpoint(tmp_path)), device="cpu"))
    with pytest.raises(ModelError, match=r"Expected a volume, which is what MedM-VL-CT takes, got Image"):
        loaded.generate(QUESTIONS[:1], [Image.new("RGB", (32, 32))], max_new_tokens=0)
    with pytest.raises(ModelError, match="Expected a CT volume in Hounsfield units"):
        loaded.generate(QUESTIONS[:1], [volume(0, unit="any")], max_new_tokens=0)


def test_a_query_that_is_missing(tmp_path: Path) -> None:
    folder = tiny_medm_vl.write_ct_checkpoint(tmp_path)
    path = folder / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != "connector_image.query"}, path)
    with pytest.raises(ModelError, match=r"1 missing from the checkpoint: model\.multi_modal_projector\.query"):
        medm_vl.load_ct(LoadOptions(str(folder), device="cpu"))
