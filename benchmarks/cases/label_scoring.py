"""Scores of K labels: one prefill for all of them against a whole forward pass for each.

The second is what the host's ``loglikelihood`` interface implies: a request for each label, with prompt and image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL.Image import Image

from benchmarks.harness import Benchmark, Run, Sides, expect
from benchmarks.models import QUESTION, MeasuredModel, dtype_name, model_of_size, phantom_images

# The findings of NIH ChestX-ray14.
FINDINGS = (
    "atelectasis", "cardiomegaly", "pleural effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
    "consolidation", "edema", "emphysema", "fibrosis", "pleural thickening", "hernia",
)  # fmt: skip
COUNTS = (14, 8, 2)
SHARES = {"tiny": 0.6, "3b": 0.8, "7b": 0.8}
"""Smallest ratio as a share of K."""


def one_prefill(model: MeasuredModel, pictures: Sequence[Image], labels: Sequence[str]) -> list[list[float]]:
    """Score as this package does: all images in one batch, all labels from its prefill."""
    generations = model.loaded.generate([QUESTION] * len(pictures), pictures, max_new_tokens=0, labels=labels)
    return [list(generation.scores or ()) for generation in generations]


@torch.no_grad()
def whole_passes(model: MeasuredModel, pictures: Sequence[Image], labels: Sequence[str]) -> list[list[float]]:
    """Run prompt, image and label through the model for each label, all images in one batch."""
    loaded = model.loaded
    columns = []
    for ids in loaded.label_ids(QUESTION, labels):
        inputs = loaded.prepare([QUESTION] * len(pictures), pictures)
        label_ids = torch.tensor([ids] * len(pictures), device=loaded.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], label_ids], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(label_ids)], dim=1)
        logits = loaded.model(**inputs, logits_to_keep=len(ids) + 1).logits[:, :-1].float().log_softmax(-1)
        columns.append(logits.gather(2, label_ids[:, :, None]).squeeze(2).sum(1))
    scores: list[list[float]] = torch.stack(columns, dim=1).tolist()
    return scores


def check(ours: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], *, tolerance: float) -> None:
    """Check that no score differs by more than ``tolerance`` nats."""
    worst = float((torch.tensor(ours) - torch.tensor(baseline)).abs().max())
    expect(worst <= tolerance, f"the same scores to {tolerance:g} nats", f"a difference of {worst:g}", "tests/models")


def setup(run: Run, images: int) -> Sides:
    """Load the model; the comparisons of 2 and 8 labels are parts."""
    model, pictures = model_of_size(run.size, run.device), phantom_images(images)
    tolerance = 1e-3 if model.loaded.dtype == torch.float32 else 1.0

    def sides(count: int) -> Sides:
        ours, baseline = (partial(side, model, pictures, FINDINGS[:count]) for side in (one_prefill, whole_passes))
        check_scores, dtype = partial(check, tolerance=tolerance), dtype_name(model)
        return Sides(ours, baseline, check_scores, items=images, model=model.loaded.model, dtype=dtype)

    return replace(sides(COUNTS[0]), parts={f"{count}_labels": sides(count) for count in COUNTS[1:]})


BENCHMARK = Benchmark(
    name="label_scoring",
    ours=f"one prefill, {COUNTS[0]} labels as a tree behind it",
    baseline=f"a whole forward pass for each of {COUNTS[0]} labels",
    setup=setup,
    sizes={"tiny": {"images": 16}, "3b": {"images": 2}, "7b": {"images": 2}, "quick": {"images": 2}},
    targets={(size, device): share * COUNTS[0] for size, share in SHARES.items() for device in ("cpu", "cuda")},
    repeats=5,
    devices=("cpu", "cuda"),
)
