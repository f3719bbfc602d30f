"""Scores of K labels: one prefill for all of them against a whole forward pass for each.

The second is what the host's ``loglikelihood`` interface implies: a request for each label, with prompt and image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from PIL.Image import Image

from benchmarks.measure import Comparison, compare, stopwatch
from benchmarks.record import Record, Settings, Target
from benchmarks.subjects import QUESTION, Subject, checkpoint, images, random_3b
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.options import resolve_device

LABELS = (
    "atelectasis",
    "cardiomegaly",
    "pleural effusion",
    "infiltration",
    "mass",
    "nodule",
    "pneumonia",
    "pneumothorax",
    "consolidation",
    "edema",
    "emphysema",
    "fibrosis",
    "pleural thickening",
    "hernia",
)
"""The findings of NIH ChestX-ray14."""
COUNTS = (2, 8, 14)
SHARE: Mapping[str, float] = {"tiny": 0.6, "3b": 0.8}
"""The least ratio, as a share of K."""
IMAGES: Mapping[str, int] = {"tiny": 16, "3b": 2}
_SUBJECTS: Mapping[str, Callable[[str], Subject]] = {"tiny": partial(checkpoint, "demo"), "3b": random_3b}


def one_prefill(subject: Subject, pictures: Sequence[Image], labels: Sequence[str]) -> list[list[float]]:
    """As this package's wrapper does: all images in one batch, all labels from its prefill."""
    found = subject.loaded.generate([QUESTION] * len(pictures), pictures, max_new_tokens=0, labels=labels)
    return [list(one.scores or ()) for one in found]


@torch.no_grad()
def whole_passes(subject: Subject, pictures: Sequence[Image], labels: Sequence[str]) -> list[list[float]]:
    """A forward pass of prompt, image and label for each label, all images in one batch."""
    loaded = subject.loaded
    columns = []
    for ids in loaded.label_ids(QUESTION, labels):
        inputs = loaded.prepare([QUESTION] * len(pictures), pictures)
        more = torch.tensor([ids] * len(pictures), device=loaded.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
        logits = loaded.model(**inputs, logits_to_keep=len(ids) + 1).logits[:, :-1].float().log_softmax(-1)
        columns.append(logits.gather(2, more[:, :, None]).squeeze(2).sum(1))
    rows: list[list[float]] = torch.stack(columns, dim=1).tolist()
    return rows


def check_scores(plain: Sequence[Sequence[float]], fast: Sequence[Sequence[float]], tolerance: float) -> None:
    """See to it that both sides computed the same.

    Raises:
        ModelError: a score differs by more than ``tolerance``, in nats.
    """
    worst = float((torch.tensor(plain) - torch.tensor(fast)).abs().max())
    if not worst <= tolerance:
        raise ModelError(
            f"Expected the same scores from both sides to {tolerance:g} nats, found a difference of {worst:g}. Their "
            "times cannot be compared: run `pytest tests/models`, and mend what it finds."
        )


def run(settings: Settings) -> Record:
    """Compare the two ways for 2, 8 and 14 labels; the record is of 14, the others are among the details.

    Raises:
        OptionError: the device is not there.
        ModelError: the memory does not suffice, or the sides do not score alike.
    """
    size = str(settings.size)
    device = resolve_device(settings.device)
    subject, pictures = _SUBJECTS[size](settings.device), images(IMAGES[size])
    tolerance = 1e-3 if subject.loaded.dtype == torch.float32 else 1.0
    found: dict[int, Comparison] = {}
    for count in COUNTS:
        labels = LABELS[:count]
        check_scores(whole_passes(subject, pictures, labels), one_prefill(subject, pictures, labels), tolerance)
        found[count] = compare(
            stopwatch(partial(whole_passes, subject, pictures, labels), device),
            stopwatch(partial(one_prefill, subject, pictures, labels), device),
            repeats=settings.repeats,
        )
    most = COUNTS[-1]
    return Record(
        settings=settings,
        sides=(
            ("passes", f"a whole forward pass for each of {most} labels"),
            ("prefill", f"this package: one prefill, {most} labels as a tree behind it"),
        ),
        comparison=found[most],
        target=Target("at least", SHARE[size] * most),
        details={
            "images": len(pictures),
            **{f"ratio_of_{count}": round(one.ratio, 3) for count, one in found.items()},
            **{f"met_of_{count}": one.ratio >= SHARE[size] * count for count, one in found.items()},
            "dtype": str(subject.loaded.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
    )
