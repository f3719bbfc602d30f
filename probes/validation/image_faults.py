"""Preprocessing faults: what goes wrong with an image before a model sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.probes.validation.fault_kinds import Fault

_Levels: TypeAlias = npt.NDArray[np.float64]


def edit_image(image: Image.Image, fault: Fault) -> Image.Image:
    """Return an RGB image as a fault of the preprocessing passes it on.

    The noise of ``image_noise`` depends on the seed and the image's size alone.
    """
    return IMAGE_EDITS[fault.name](image.convert("RGB"), fault.grade, fault.seed)


def _shrunk(image: Image.Image, factor: float, _seed: int) -> Image.Image:
    width, height = image.size
    small = image.resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, share: float, _seed: int) -> Image.Image:
    width, height = image.size
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    box = (round(left), round(top), round(width - left), round(height - top))
    return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)


def _rotated(image: Image.Image, degrees: float, _seed: int) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BILINEAR)


def _tiled(image: Image.Image, copies: float, _seed: int) -> Image.Image:
    count, (width, height) = int(copies), image.size
    tiled = Image.new("RGB", (width * count, height * count))
    for number in range(count * count):
        tiled.paste(image, (number % count * width, number // count * height))
    return tiled.resize(image.size, Image.Resampling.BILINEAR)


def _of_levels(edit: Callable[[_Levels, float, int], _Levels]) -> Callable[[Image.Image, float, int], Image.Image]:
    """Turn an edit of levels in [0, 1], (H, W, 3), into one of images."""

    def edit_levels(image: Image.Image, grade: float, seed: int) -> Image.Image:
        levels = edit(np.asarray(image, dtype=np.float64) / 255, grade, seed)
        return Image.fromarray(np.clip(np.rint(levels * 255), 0, 255).astype(np.uint8))

    return edit_levels


IMAGE_EDITS: Final[Mapping[str, Callable[[Image.Image, float, int], Image.Image]]] = {
    "image_shrunk": _shrunk,
    "image_cropped": _cropped,
    "image_rotated": _rotated,
    "image_tiled": _tiled,
    "image_dark": _of_levels(lambda levels, factor, _: levels * factor),
    "image_flat": _of_levels(lambda levels, factor, _: 0.5 + (levels - 0.5) * factor),
    "image_window": _of_levels(lambda levels, share, _: (levels - 0.5) / share + 0.5),
    "image_negative": _of_levels(lambda levels, weight, _: (1 - weight) * levels + weight * (1 - levels)),
    "image_mean_twice": _of_levels(lambda levels, mean, _: levels - mean),
    "image_one_channel": _of_levels(lambda levels, factor, _: levels * np.array([1.0, factor, factor])),
    "image_noise": _of_levels(
        lambda levels, grey, seed: (
            levels + np.random.default_rng(seed).standard_normal(levels.shape[:2])[..., None] * grey / 255
        )
    ),
}


@contextmanager
def edited_images(loaded: LoadedModel, fault: Fault) -> Iterator[None]:
    """Edit the images that a model is asked about while the context is open.

    Raises:
        ModelError: on asking about a volume.
    """
    own, usual = vars(loaded).get("prepare"), loaded.prepare

    def edit(shown: VisualInput) -> VisualInput:
        if isinstance(shown, Image.Image):
            return edit_image(shown, fault)
        if isinstance(shown, Sequence):
            return [edit_image(image, fault) for image in shown]
        raise ModelError(f"Expected images, which faults of the preprocessing edit, got {type(shown).__name__}.")

    def prepare(questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        return usual(questions, [edit(shown) for shown in images])

    vars(loaded)["prepare"] = prepare
    try:
        yield
    finally:
        del vars(loaded)["prepare"]
        if own is not None:
            vars(loaded)["prepare"] = own
