"""Answers through the host's interface: our wrapper against the host's own ``qwen2_5_vl``, on one small checkpoint.

Both use bfloat16, the only dtype of the host's wrapper, and score no labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.harness import Benchmark, Comparison, Details, Run, Sides, expect
from benchmarks.models import CHECKPOINTS, phantom_images
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer

BATCH, TOKENS = 8, 8
QUESTION = "Classify this synthetic phantom image. Answer with the category name only."
# The host's own least size of an image, and four times that.
_PIXELS: dict[str, Any] = {"min_pixels": 256 * 28 * 28, "max_pixels": 1024 * 28 * 28}


def write_checkpoint(folder: Path) -> Path:
    """Write a small Qwen2.5-VL with random weights and the demo's tokenizer, in transformers' format."""
    import transformers as hf

    tokenizer: Any = load_qwen_tokenizer(demo_folder())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|video_pad|>"]})
    template = (CHECKPOINTS / "qwen2_5_vl" / "chat_template.jinja").read_text(encoding="utf-8")
    config: Any = hf.Qwen2_5_VLConfig.from_pretrained(CHECKPOINTS / "qwen2_5_vl")
    # The demo's tokenizer has no token that begins an image; the one that begins a turn stands before it.
    words = tokenizer.get_vocab()
    config.image_token_id, config.video_token_id = words["<|image_pad|>"], words["<|video_pad|>"]
    config.vision_start_token_id = words["<|im_start|>"]
    config.text_config.vocab_size = len(tokenizer) + 1
    torch.manual_seed(0)
    model: Any = hf.Qwen2_5_VLForConditionalGeneration(config)
    # No token ends an answer, so that both sides write the same number.
    model.generation_config.eos_token_id = config.text_config.vocab_size - 1
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.eos_token_id = None
    processor: Any = hf.Qwen2_5_VLProcessor
    model.save_pretrained(folder)
    images, videos = hf.Qwen2VLImageProcessor(**_PIXELS), hf.Qwen2VLVideoProcessor()
    processor(images, tokenizer, videos, chat_template=template).save_pretrained(folder)
    return folder


def requests(count: int) -> tuple[list[Any], dict[str, Any]]:
    """Return the host's requests for phantoms, and the task dictionary that they refer to."""
    pictures = phantom_images(count)
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "temperature": 0.0, "until": []}

    def messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": pictures[document["index"]]}, {"type": "text", "text": QUESTION}]
        return [{"role": "user", "content": content}]

    arguments = [("", messages, dict(settings), index, "benchmark", "test") for index in range(count)]
    instances = [SimpleNamespace(args=values, metadata={}, idx=0, repeats=1) for values in arguments]
    return instances, {"benchmark": {"test": [{"index": index} for index in range(count)]}}


def host_model(checkpoint: Path, device: str) -> Any:
    """Return the host's own wrapper.

    Raises:
        ModelError: It needs a package that is not installed.
    """
    try:
        from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
    except ImportError as error:
        raise ModelError(
            f"lmms-eval's qwen2_5_vl needs more: {error}. Run `pip install decord qwen-vl-utils`."
        ) from error
    return Qwen2_5_VL(pretrained=str(checkpoint), device=device, device_map="", batch_size=BATCH, **_PIXELS)


def our_model(checkpoint: Path, device: str, folder: Path, batch: int = BATCH) -> Any:
    """Return our wrapper."""
    from medmllm_plugins.host import registered_models

    wrapper: Any = registered_models.medmllm_hf
    options = {"dtype": "bfloat16", "system": "You are a helpful assistant.", "run_dir": str(folder / "run")}
    return wrapper(pretrained=str(checkpoint), device=device, batch_size=batch, **options)


def check(ours: list[Any], baseline: list[Any]) -> None:
    """Check that both wrappers wrote as many tokens."""
    counts = [[result.token_counts.output_tokens for result in side] for side in (ours, baseline)]
    got = f"{counts[0][:4]} from ours and {counts[1][:4]} from the host's"
    expect(counts[0] == counts[1], "answers of the same length", got, "tests/host")


def setup(run: Run, images: int) -> Sides:
    """Write the checkpoint and load it twice; the share of answers that a batch leaves the same is a detail."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    checkpoint = write_checkpoint(run.folder / "checkpoint")
    instances, tasks = requests(images)
    host, ours = host_model(checkpoint, run.device), our_model(checkpoint, run.device, run.folder)
    host.task_dict = ours.task_dict = tasks

    def details(comparison: Comparison) -> Details:
        single = our_model(checkpoint, run.device, run.folder, batch=1)
        single.task_dict = tasks
        pairs = zip(comparison.ours_result, single.generate_until(instances), strict=True)
        return {"batched_equals_single": sum(a.text == b.text for a, b in pairs) / images}

    return Sides(
        ours=lambda: ours.generate_until(instances),
        baseline=lambda: host.generate_until(instances),
        check=check,
        items=images,
        details=details,
    )


BENCHMARK = Benchmark(
    name="host_wrapper",
    ours="medmllm_hf",
    baseline="lmms-eval's own qwen2_5_vl on the same checkpoint",
    setup=setup,
    sizes={"full": {"images": 32}, "quick": {"images": 4}},
    targets={("full", "cpu"): 1.0, ("full", "cuda"): 1.3},
    repeats=5,
    devices=("cpu", "cuda"),
)
