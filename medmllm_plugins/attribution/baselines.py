"""What an image is compared with: one that holds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from medmllm_plugins.data.controls import blank
from medmllm_plugins.models.interface import Shown
from medmllm_plugins.questions.attributions import Baseline

BLUR = 0.1
"""Standard deviation of the blur, as a share of the shorter side."""


def baseline_of(shown: Shown, kind: Baseline) -> Shown:
    """The baseline of what is shown, of the same sizes.

    Args:
        shown: an image, images or a volume.
        kind: ``"blank"`` for mid-grey images and volumes of their mean, ``"blurred"`` for images that only the
            coarsest structure is left of.
    """
    if isinstance(shown, Image.Image):
        return blank(shown) if kind == "blank" else shown.filter(ImageFilter.GaussianBlur(BLUR * min(shown.size)))
    if isinstance(shown, Sequence):
        return [one for picture in shown if isinstance(one := baseline_of(picture, kind), Image.Image)]
    voxels = shown.voxels
    if kind == "blank":
        # What a volume's reader crops to must stay what it was, so that air stays air.
        inside = voxels > voxels.min()
        flat = np.where(inside, voxels[inside].mean() if inside.any() else voxels, voxels)
        return replace(shown, voxels=flat.astype(voxels.dtype))
    width = BLUR * min(voxels.shape[1:])
    return replace(shown, voxels=gaussian_filter(voxels, (0, width, width)).astype(voxels.dtype))
