"""Ask a model three questions about images or volumes, and keep every feature that can be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.models.base import Generation, LoadedModel
from medmllm_plugins.prompts.feature_options import FeatureOptions
from medmllm_plugins.results.feature_store import FeatureStore, Header

QUESTIONS = ["What?", "Is it benign or malignant, and why?", "a"]
LABELS = ["benign", "malignant tumour", "no"]
SIZES = [(60, 40), (64, 64), (50, 90)]


def visuals(model: LoadedModel) -> list[Any]:
    """Return images of several sizes, or volumes, as the model takes them."""
    generator = np.random.default_rng(0)
    if model.shows == "volume":
        voxels = generator.integers(-1000, 1000, (len(SIZES), 20, 30, 26)).astype(np.float32)
        return [Volume(voxel, (1.0, 1.0, 1.0), "RAS", "HU") for voxel in voxels]
    images = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    return [[image] for image in images] if model.shows == "images" else images


def ask(model: LoadedModel, folder: Path) -> tuple[list[Generation], FeatureStore]:
    """Answers, label scores, and every feature that can be kept."""
    shown = visuals(model)
    inputs = model.prepare(QUESTIONS, shown)
    example = model.prepare(QUESTIONS[:1], shown[:1])
    wanted = FeatureOptions(extra=("max", "answer"))
    capture = FeatureRecorder(
        model, wanted, Header("t", "d", tuple(LABELS), "f", "m", "", layers=()), folder, rank=0, example=example
    )
    try:
        ids = model.label_ids(QUESTIONS[0], LABELS)
        answers = model.generate(QUESTIONS, shown, max_new_tokens=4, labels=LABELS, inputs=inputs, watch=capture.watch)
        content = {"fold": "test", "label": "benign", "blank": None, "label_tokens": None}
        records = [
            {
                **content,
                "id": str(row),
                "document": str(row),
                "group": str(row),
                "answer": item.text,
                "scores": item.scores,
            }
            for row, item in enumerate(answers)
        ]
        capture.keep(
            records, inputs, [control_features(item) for item in shown], [entry[model.prefix_length :] for entry in ids]
        )
    finally:
        capture.close()
    return answers, FeatureStore(folder)
