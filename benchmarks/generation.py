"""Throughput of answers: this package's batches against MedM-VL's reference loop, one image at a time.

Both sides get the same model in memory, the same question and the same images as PIL images, and do the same work:
image processing, prompt, greedy decoding and text. Neither scores labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL.Image import Image

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import QUESTION, Subject, checkpoint, images, random_3b
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.options import resolve_device

BATCH = 16
IMAGES: Mapping[str, int] = {"tiny": 64, "3b": 32}
TARGETS: Mapping[tuple[str, str], Target] = {
    ("tiny", "cpu"): Target("at least", 2.0),
    ("3b", "cuda"): Target("at least", 6.0),
}
_SUBJECTS: Mapping[str, Callable[[str], Subject]] = {"tiny": partial(checkpoint, "demo"), "3b": random_3b}

Answer = tuple[str, int]
"""An answer's text, and its number of tokens without the one that ended it."""


def batched(subject: Subject, pictures: Sequence[Image]) -> list[Answer]:
    """Answer as this package's wrapper does: :meth:`LoadedModel.generate` on batches of 16."""
    answers: list[Answer] = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        generations = subject.loaded.generate(
            [QUESTION] * len(batch), batch, max_new_tokens=subject.max_new_tokens, labels=None
        )
        answers.extend((generation.text, generation.tokens) for generation in generations)
    return answers


def one_by_one(subject: Subject, pictures: Sequence[Image]) -> list[Answer]:
    """Answer as the inference script of MedM-VL's authors does: batches of 1 through transformers' ``generate``.

    Nothing is kept from one image to the next, as in theirs; the KV cache serves the tokens of one answer.
    """
    loaded, tokenizer = subject.loaded, subject.loaded.tokenizer
    model: Any = loaded.model
    ends = set(loaded.eos_token_ids)
    answers: list[Answer] = []
    for picture in pictures:
        pixels = subject.processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"]
        before, after = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in loaded.render(QUESTION).split("<image>")
        )
        image = [int(model.config.image_token_id)] * loaded.image_tokens
        ids = torch.tensor([[*before, *image, *after]], device=loaded.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.to(device=loaded.device, dtype=loaded.dtype),
            do_sample=False,
            max_new_tokens=subject.max_new_tokens,
            eos_token_id=list(loaded.eos_token_ids),
            pad_token_id=loaded.pad_token_id,
        )
        row = out[0, ids.shape[1] :].tolist()
        text = str(tokenizer.decode(row, skip_special_tokens=True))
        answers.append((text, sum(token not in ends for token in row)))
    return answers


def check_answers(plain: Sequence[Answer], fast: Sequence[Answer], *, exact: bool) -> None:
    """See to it that both sides did the same work.

    Args:
        plain: one side's answers.
        fast: the other's, in the same order.
        exact: whether the texts must agree too, or the numbers of tokens alone.

    Raises:
        ModelError: they do not, so that the times cannot be compared.
    """
    differ = [
        index
        for index, (one, other) in enumerate(zip(plain, fast, strict=True))
        if one[1] != other[1] or (exact and one[0] != other[0])
    ]
    if differ:
        first = differ[0]
        raise ModelError(
            f"Expected the same answers from both sides, but {len(differ)} of {len(plain)} differ, such as that to "
            f"image {first}: {plain[first]} one by one, {fast[first]} in a batch. Their times cannot be compared: "
            "run `pytest tests/benchmarks`, and mend what it finds."
        )


def run(settings: Settings) -> Record:
    """Compare the two ways of answering.

    Raises:
        OptionError: the device is not there.
        ModelError: the memory does not suffice, or the sides do not answer alike.
    """
    size = str(settings.size)
    device = resolve_device(settings.device)
    subject, pictures = _SUBJECTS[size](settings.device), images(IMAGES[size])
    # The warm-up of both sides, and the proof that they do the same.
    plain, fast = one_by_one(subject, pictures), batched(subject, pictures)
    check_answers(plain, fast, exact=subject.exact)
    comparison = compare(
        stopwatch(lambda: one_by_one(subject, pictures), device),
        stopwatch(lambda: batched(subject, pictures), device),
        repeats=settings.repeats,
    )
    return Record(
        settings=settings,
        sides=(
            ("plain", "MedM-VL's reference loop: transformers' generate, one image at a time"),
            ("fast", f"this package: LoadedModel.generate, {BATCH} images at a time"),
        ),
        comparison=comparison,
        target=TARGETS.get((size, device.type)),
        details={
            "images": len(pictures),
            "answer_tokens": sum(tokens for _, tokens in fast) / len(fast),
            "plain_images_per_s": len(pictures) / comparison.numerator.median,
            "fast_images_per_s": len(pictures) / comparison.denominator.median,
            "answers_agree_in": "text and length" if subject.exact else "length",
            "parameters": subject.loaded.model.num_parameters(),
            "dtype": str(subject.loaded.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
    )
