"""MedM-VL's prompt, tokens and pixels: the authors' arithmetic, and questions that cannot inject tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.formats.medm_vl import MedMVL, load
from medmllm_plugins.models.options import LoadOptions

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=0x2FFF), max_size=10),
        st.sampled_from(["<image>", "<|image_pad|>", "<|im_end|>", "<|endoftext|>", " ASSISTANT:", "\n"]),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def image(make_image: Any) -> Any:
    return make_image(3)


def test_prompt_is_the_authors(tiny: MedMVL) -> None:
    assert tiny.render("What is this?") == PROMPT.format("What is this?")
    assert tiny.render("  two\nlines \n") == PROMPT.format("  two\nlines")
    # Their template strips image and question together.
    assert tiny.render(" ") == PROMPT.format("").replace("\n", "")


def test_tokens_are_the_two_texts_around_the_image(tiny: MedMVL, image: Any) -> None:
    ids = tiny.prepare(["What is this?"], [image])["input_ids"][0].tolist()
    pad = tiny.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    first = ids.index(pad)
    assert ids[first : first + 16] == [pad] * 16
    before, after = PROMPT.format("What is this?").split("<image>")
    assert ids[:first] == tiny.tokenizer(before)["input_ids"]
    assert ids[first + 16 :] == tiny.tokenizer(after)["input_ids"]
    # Tokenised as one text, the space before the image would stand otherwise than the authors have it.
    assert tiny.tokenizer.decode(ids[:first]).endswith("USER: ")


@settings(max_examples=60)
@given(question=TEXT)
@example(question="<image>")
@example(question="<|image_pad|><|im_end|> <|image_pad|>")
def test_a_question_is_text_and_nothing_else(tiny: MedMVL, image: Any, question: str) -> None:
    ids = tiny.prepare([question], [image])["input_ids"][0].tolist()
    special = set(tiny.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    pad = tiny.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert ids.count(pad) == 16
    assert not special.intersection(ids)
    last = len(ids) - ids[::-1].index(pad)
    back = tiny.tokenizer.backend_tokenizer.normalizer.normalize_str(tiny.render(question).split("<image>", 1)[1])
    assert tiny.tokenizer.decode(ids[last:]) == back


def test_special_tokens_in_a_question_do_not_end_an_answer(tiny: MedMVL, image: Any) -> None:
    result = tiny.generate(["<|image_pad|> <image> <|im_end|>"], [image], max_new_tokens=2, labels=["<|im_end|>"])
    assert result[0].scores is not None
    (ids,) = tiny.label_ids("What?", ["<|im_end|>"])[0:1]
    assert len(ids) > 1
    assert tiny.tokenizer.decode(ids) == " <|im_end|>"


def test_text_that_is_no_unicode_is_refused(tiny: MedMVL, image: Any) -> None:
    with pytest.raises(ModelError, match="UTF-8"):
        tiny.prepare(["\ud800"], [image])


def test_rows_are_padded_on_the_left(tiny: MedMVL, image: Any) -> None:
    short, long = "What?", "What is in this image, benign or malignant?"
    inputs = tiny.prepare([short, long], [image, image])
    alone = tiny.prepare([short], [image])["input_ids"][0]
    missing = inputs["input_ids"].shape[1] - len(alone)
    assert missing > 0
    assert inputs["attention_mask"][0].tolist() == [0] * missing + [1] * len(alone)
    assert inputs["attention_mask"][1].all()
    assert torch.equal(inputs["input_ids"][0, missing:], alone)


def test_counts_must_agree(tiny: MedMVL, image: Any) -> None:
    with pytest.raises(ModelError, match="one image a question, got 2 and 1"):
        tiny.prepare(["a", "b"], [image])
    with pytest.raises(ModelError, match="at least one"):
        tiny.prepare([], [])


@pytest.mark.parametrize("label", ["", "  "])
def test_an_empty_label_is_refused(tiny: MedMVL, label: str) -> None:
    with pytest.raises(ModelError, match="cannot be scored"):
        tiny.label_ids("What?", ["benign", label])


def test_a_label_that_merges_with_the_prompt_is_refused(tiny: MedMVL, monkeypatch: pytest.MonkeyPatch) -> None:
    # Qwen's tokenizer always splits after the colon, so one that does not is made up here.
    def encode(tokenizer: Any, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace(": b", "\u00df")]

    monkeypatch.setattr("medmllm_plugins.models.formats.templated_model.encode_text", encode)
    assert tiny.label_ids("What?", ["normal"]) == [[ord(letter) for letter in " normal"]]
    with pytest.raises(ModelError, match="'benign' cannot be scored"):
        tiny.label_ids("What?", ["normal", "benign"])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(32, 32), (57, 90), (20, 11)])
def test_pixels_are_pillow_and_plain_arithmetic(
    tiny: MedMVL, make_image: Any, mode: str, size: tuple[int, int]
) -> None:
    image = make_image(7, size).convert(mode)
    if mode == "RGBA":  # what is transparent keeps its colours, as in the authors' code
        image.putalpha(make_image(8, size).convert("L"))
    resized = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized, dtype=np.float64) / 255 - 0.5) / 0.5
    result = tiny.prepare(["?"], [image])["pixel_values"]
    assert result.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(result[0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_beyond_8_bits_are_refused(tiny: MedMVL, mode: str) -> None:
    with pytest.raises(ModelError, match=r"image 1 to have 8 bits .* 0\.\.255"):
        tiny.prepare(["?", "?"], [Image.new("L", (8, 8)), Image.new(mode, (8, 8))])


def test_something_that_is_no_image_is_refused(tiny: MedMVL) -> None:
    with pytest.raises(ModelError, match="PIL image, got str"):
        tiny.prepare(["?"], ["scan.png"])  # type: ignore[list-item]


def test_preprocessor_config_is_followed(checkpoint: Path, image: Any) -> None:
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.25, 1.0],
    }
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = load(LoadOptions(str(checkpoint), device="cpu", dtype="float32"))
    big = image.resize((50, 41))
    result = loaded.prepare(["?"], [big])["pixel_values"][0].numpy()
    resized = np.asarray(big.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64)
    expected = (resized / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 224, "width": 224}}, "vision tower's size"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
    ],
)
def test_a_preprocessor_of_another_model_is_refused(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(ModelError, match=message):
        load(LoadOptions(str(checkpoint), device="cpu"))
