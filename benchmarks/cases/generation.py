"""Throughput of answers: this package's batches against MedM-VL's reference loop, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL.Image import Image

from benchmarks.harness import Benchmark, Run, Sides, expect
from benchmarks.models import (
    BATCH,
    QUESTION,
    MeasuredModel,
    dtype_name,
    model_of_size,
    phantom_images,
    siglip_processor,
)

Answer = tuple[str, int]
"""Text of an answer, and its number of tokens without the one that ended it."""


def batched(model: MeasuredModel, pictures: Sequence[Image]) -> list[Answer]:
    """Answer as this package does: :meth:`LoadedModel.generate` on batches of 16."""
    answers: list[Answer] = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        questions, limit = [QUESTION] * len(batch), model.max_new_tokens
        generations = model.loaded.generate(questions, batch, max_new_tokens=limit, labels=None)
        answers.extend((generation.text, generation.tokens) for generation in generations)
    return answers


def one_by_one(model: MeasuredModel, pictures: Sequence[Image]) -> list[Answer]:
    """Answer as the inference script of MedM-VL's authors does: batches of 1 through transformers' ``generate``.

    As in theirs, the KV cache serves one answer, and nothing is shared between images.
    """
    loaded, tokenizer = model.loaded, model.loaded.tokenizer
    network: Any = loaded.model
    processor = siglip_processor(int(network.config.vision_config.image_size))
    answers: list[Answer] = []
    for picture in pictures:
        pixels = processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"]
        before, after = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in loaded.render(QUESTION).split("<image>")
        )
        image = [int(network.config.image_token_id)] * loaded.image_tokens
        ids = torch.tensor([[*before, *image, *after]], device=loaded.device)
        output = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.to(device=loaded.device, dtype=loaded.dtype),
            do_sample=False,
            max_new_tokens=model.max_new_tokens,
            eos_token_id=list(loaded.eos_token_ids),
            pad_token_id=loaded.pad_token_id,
        )
        tokens = output[0, ids.shape[1] :].tolist()
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        answers.append((text, sum(token not in loaded.eos_token_ids for token in tokens)))
    return answers


def check(ours: Sequence[Answer], baseline: Sequence[Answer], *, exact: bool) -> None:
    """Check that both sides wrote the same texts (``exact``) or the same numbers of tokens."""
    pairs = [
        (index, plain, fast)
        for index, (fast, plain) in enumerate(zip(ours, baseline, strict=True))
        if fast[1] != plain[1] or (exact and fast[0] != plain[0])
    ]
    got = f"{len(pairs)} different ones of {len(ours)}, such as (image, one by one, batched) {pairs[:1]}"
    expect(not pairs, "the same answers", got, "tests/models")


def setup(run: Run, images: int) -> Sides:
    """Load the model and draw the images."""
    model, pictures = model_of_size(run.size, run.device), phantom_images(images)
    dtype = dtype_name(model)
    return Sides(
        ours=partial(batched, model, pictures),
        baseline=partial(one_by_one, model, pictures),
        check=partial(check, exact=model.exact),
        items=images,
        details=lambda _: {"parameters": model.loaded.model.num_parameters(), "dtype": dtype},
        model=model.loaded.model,
        dtype=dtype,
    )


BENCHMARK = Benchmark(
    name="generation",
    ours=f"LoadedModel.generate, {BATCH} images at a time",
    baseline="MedM-VL's reference loop: transformers' generate, one image at a time",
    setup=setup,
    sizes={"tiny": {"images": 64}, "3b": {"images": 32}, "7b": {"images": 32}, "quick": {"images": 4}},
    targets={("tiny", "cpu"): 2.0, ("3b", "cuda"): 6.0, ("7b", "cuda"): 6.0},
    repeats=7,
    devices=("cpu", "cuda"),
)
