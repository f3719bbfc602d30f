"""Answers through the host's interface: our wrapper against the host's own ``qwen2_5_vl``, on one checkpoint.

Both get the same requests, batches and dtype (bfloat16, the only one that the host's wrapper knows), and no labels to
score. The checkpoint has random weights in a small Qwen2.5-VL, so that what differs is the wrappers' own work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import images
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.options import resolve_device

BATCH, IMAGES, TOKENS = 8, 32, 8
TARGETS: Mapping[str, float] = {"cpu": 1.0, "cuda": 1.3}
QUESTION = "Classify this synthetic phantom image. Answer with the category name only."
_PIXELS = 256 * 28 * 28  # the host's own least size of an image
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_checkpoint(folder: Path) -> Path:
    """A small Qwen2.5-VL with random weights and the demo's tokenizer, in transformers' format."""
    import transformers as hf

    words: Any = load_qwen_tokenizer(demo_folder())
    words.add_special_tokens({"additional_special_tokens": ["<|video_pad|>"]})
    image_token = words.convert_tokens_to_ids("<|image_pad|>")
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words) + 8,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
        },
        vision_config={
            "hidden_size": 128,
            "out_hidden_size": 256,
            "intermediate_size": 256,
            "depth": 4,
            "num_heads": 4,
            "fullatt_block_indexes": [3],
        },
        image_token_id=image_token,
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|im_start|>"),
    )
    torch.manual_seed(0)
    model: Any = hf.Qwen2_5_VLForConditionalGeneration(config)
    # No token ends an answer, so that both sides write the same number.
    model.generation_config.eos_token_id = len(words) + 7
    model.generation_config.pad_token_id = words.pad_token_id
    words.eos_token_id = None
    processor: Any = hf.Qwen2_5_VLProcessor
    made = processor(
        image_processor=hf.Qwen2VLImageProcessor(min_pixels=_PIXELS, max_pixels=4 * _PIXELS),
        tokenizer=words,
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=_TEMPLATE,
    )
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def requests(pictures: Sequence[Image.Image]) -> tuple[list[Any], dict[str, Any]]:
    """The host's requests for the pictures, and the task dictionary that they refer to."""
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "temperature": 0.0, "until": []}

    def messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": pictures[doc["index"]]}, {"type": "text", "text": QUESTION}]
        return [{"role": "user", "content": content}]

    found = [
        SimpleNamespace(args=("", messages, dict(settings), index, "benchmark", "test"), metadata={}, idx=0, repeats=1)
        for index in range(len(pictures))
    ]
    return found, {"benchmark": {"test": [{"index": index} for index in range(len(pictures))]}}


def run(settings: Settings) -> Record:
    """Compare the two wrappers.

    Raises:
        OptionError: the device is not there.
        ModelError: the host's wrapper cannot be used here, or the sides do not answer as much.
    """
    device = resolve_device(settings.device)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint")
        asked, tasks = requests(images(IMAGES))
        host, ours = _host(checkpoint, str(device)), _ours(checkpoint, str(device), Path(folder))
        for model in (host, ours):
            model.task_dict = tasks
        counts = [[one.token_counts.output_tokens for one in model.generate_until(asked)] for model in (host, ours)]
        if counts[0] != counts[1]:
            raise ModelError(
                f"Expected both wrappers to write as many tokens, found {counts[0][:4]} and {counts[1][:4]}."
            )
        single = _ours(checkpoint, str(device), Path(folder), batch=1)
        single.task_dict = tasks
        pairs = zip(ours.generate_until(asked), single.generate_until(asked), strict=True)
        agree = sum(one.text == other.text for one, other in pairs) / IMAGES
        comparison = compare(
            stopwatch(_answering(host, asked), device),
            stopwatch(_answering(ours, asked), device),
            repeats=settings.repeats,
        )
    return Record(
        settings=settings,
        sides=(("host", "lmms-eval's own qwen2_5_vl"), ("ours", "medmllm_hf on the same checkpoint")),
        comparison=comparison,
        target=Target("at least", TARGETS[device.type]),
        details={
            "images": IMAGES,
            "batch": BATCH,
            "answer_tokens": TOKENS,
            "host_images_per_s": IMAGES / comparison.numerator.median,
            "ours_images_per_s": IMAGES / comparison.denominator.median,
            "dtype": "bfloat16",
            "batched_equals_single": agree,
            "threads": torch.get_num_threads(),
        },
    )


def _answering(model: Any, asked: list[Any]) -> Callable[[], Any]:
    return lambda: model.generate_until(asked)


def _host(checkpoint: Path, device: str) -> Any:
    try:
        from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
    except ImportError as error:
        raise ModelError(f"lmms-eval's qwen2_5_vl needs more: {error}; pip install decord qwen-vl-utils.") from error
    model: Any = Qwen2_5_VL
    return model(
        pretrained=str(checkpoint),
        device=device,
        device_map="",
        batch_size=BATCH,
        min_pixels=_PIXELS,
        max_pixels=4 * _PIXELS,
    )


def _ours(checkpoint: Path, device: str, folder: Path, batch: int = BATCH) -> Any:
    from medmllm_plugins.host import registered_models

    made: Any = registered_models.medmllm_hf
    return made(
        pretrained=str(checkpoint),
        device=device,
        dtype="bfloat16",
        batch_size=batch,
        system="You are a helpful assistant.",
        run_dir=str(folder / "run"),
    )
