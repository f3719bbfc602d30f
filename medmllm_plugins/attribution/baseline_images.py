"""What an image is compared with: one that holds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from medmllm_plugins.data.core.image_controls import blank
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.prompts.attribution_options import Baseline

BLUR = 0.1
"""Standard deviation of the blur, as a share of the shorter side; of a volume, of what is shown of its slices."""
_ABOVE_AIR = 0.1
"""So many Hounsfield units above black are black still when they are cut to grey levels, but are not cropped away."""


def baseline_image(family: Family, shown: VisualInput, kind: Baseline) -> VisualInput:
    """The baseline of what is shown, of the same sizes.

    Args:
        family: the model's architecture, which decides what is seen of a volume.
        shown: an image, images or a volume.
        kind: ``"blank"`` for mid-grey images and volumes of their mean, ``"blurred"`` for images that only the
            coarsest structure is left of.
    """
    if isinstance(shown, Image.Image):
        return blank(shown) if kind == "blank" else shown.filter(ImageFilter.GaussianBlur(BLUR * min(shown.size)))
    if isinstance(shown, Sequence):
        return [one for picture in shown if isinstance(one := baseline_image(family, picture, kind), Image.Image)]
    return _of_volume(family, shown, kind)


def _of_volume(family: Family, volume: Volume, kind: Baseline) -> Volume:
    """The baseline of a volume, whose reader crops to what is not air: it must be cropped as the volume was.

    So only what lies in that box changes, and nothing in it becomes air.
    """
    window = family.volume_window(volume)
    box, low = window.box, window.low
    inside = volume.voxels[box].astype(np.float32).clip(low, window.high)
    if kind == "blank":
        # Air stays air: the mean is of the rest.
        body = inside > low
        inside[body] = inside[body].mean() if body.any() else low
    else:
        width = BLUR * min(inside.shape[1:])
        inside = gaussian_filter(inside, (0, width, width)).clip(low + _ABOVE_AIR)
    voxels = volume.voxels.astype(np.float32)
    voxels[box] = inside
    return replace(volume, voxels=voxels)
