"""Questions about random images and volumes, which any model can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.models.base import LoadedModel, VisualInput

QUESTIONS: Final = (
    "What is it?",
    "Classify this medical image into one of the following categories: benign, malignant.",
    "Is it benign? Is it benign? Is it benign?",
)
"""They differ in length, so that a batch of them is padded."""
LABELS: Final = ("benign", "malignant tumour", "benign tumour", "no", "malignant")
"""They differ in length, share beginnings, and one is the beginning of another."""
SIZES: Final = ((120, 40), (64, 64), (50, 90))
"""Width and height of the images; a processor may cut them into different numbers of tiles."""


@dataclass(frozen=True, slots=True)
class Examples:
    """A batch to try a model on.

    Attributes:
        questions: B questions of different lengths.
        visuals: an image or a volume for each.
        labels: labels to score.
    """

    questions: tuple[str, ...]
    visuals: tuple[VisualInput, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def batch(self, rows: Sequence[int]) -> tuple[list[str], list[VisualInput]]:
        """Return some of the questions and their images."""
        return [self.questions[row] for row in rows], [self.visuals[row] for row in rows]


def random_image(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Return an RGB image of random pixels, of a width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def random_volume(seed: int, slices: int = 40) -> Volume:
    """Return a CT volume of random tissue within air, (slices, 60, 80) in HU."""
    voxels = np.full((slices, 60, 80), -1024, np.float32)
    tissue = np.random.default_rng(seed).uniform(-900, 400, (slices - 8, 50, 58))
    voxels[4:-4, 4:-6, 10:-12] = tissue
    return Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU")


def examples_for(loaded: LoadedModel) -> Examples:
    """Return what a model can be asked: questions about images, or about volumes if it takes these."""
    if loaded.shows == "volume":
        volumes = tuple(random_volume(seed, slices) for seed, slices in enumerate((30, 40, 70)))
        return Examples(QUESTIONS, volumes, LABELS)
    images = [random_image(seed, size) for seed, size in enumerate(SIZES)]
    return Examples(QUESTIONS, tuple([image] if loaded.shows == "images" else image for image in images), LABELS)
