"""Baseline images without content, to compare an image with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from medmllm_plugins.data.core.image_controls import blank
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.prompts.attribution_options import Baseline

BLUR = 0.1
"""Standard deviation of the blur, as a share of the shorter side; of a volume, of what is shown of its slices."""
_ABOVE_AIR = 0.1
"""Hounsfield units above black that still become black grey levels, but are not cropped away as air."""


def baseline_image(family: Family, visual: VisualInput, kind: Baseline) -> VisualInput:
    """Return the baseline of an image, images or a volume, of the same sizes.

    ``"blank"`` gives mid-grey images and volumes of their mean, ``"blurred"`` images of which only the coarsest
    structure remains. The family decides what the model reads of a volume.
    """
    if isinstance(visual, Image.Image):
        return blank(visual) if kind == "blank" else visual.filter(ImageFilter.GaussianBlur(BLUR * min(visual.size)))
    if isinstance(visual, Sequence):
        return [image for picture in visual if isinstance(image := baseline_image(family, picture, kind), Image.Image)]
    return _baseline_volume(family, visual, kind)


def _baseline_volume(family: Family, volume: Volume, kind: Baseline) -> Volume:
    """Return the baseline of a volume, which the model must crop (to what is not air) as it crops the volume.

    So only the cropped box changes, and nothing in it becomes air.
    """
    window = family.volume_window(volume)
    box, low = window.box, window.low
    inside = volume.voxels[box].astype(np.float32).clip(low, window.high)
    if kind == "blank":
        # Air stays air: the mean is that of the body.
        body = inside > low
        inside[body] = inside[body].mean() if body.any() else low
    else:
        width = BLUR * min(inside.shape[1:])
        inside = gaussian_filter(inside, (0, width, width)).clip(low + _ABOVE_AIR)
    voxels = volume.voxels.astype(np.float32)
    voxels[box] = inside
    return replace(volume, voxels=voxels)
