"""MedM-VL for chest CT (Shi et al., arXiv:2504.04323): the 2D tower on each of 32 slices, pooled by learned queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.families.family import FloatArray, ImageStage, Inputs, IntArray, VisualInput, VolumeWindow
from medmllm_plugins.models.families.llava import Llava

SLICES = 32
HEADS = 8
LOW, HIGH = -1000.0, 1000.0
"""Hounsfield units that become black and white."""


class MedMVLCTFamily(Llava):
    """MedM-VL-CT; the pictures of a document are the 32 slices its volume is shown as."""

    title = "MedM-VL-CT"
    model_type = "medm_vl_ct"

    def rows_per_document(self, model: Any, stage: ImageStage, inputs: Inputs) -> list[int]:
        """Return 32 slices from the tower, and one set of tokens from the connector, for each document."""
        return [SLICES if stage == "vision" else 1] * len(inputs["input_ids"])

    def connector_patches(self, model: Any, inputs: Inputs) -> IntArray:
        """Raise: each token is pooled from the whole volume.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "MedM-VL-CT pools each token from all patches of all slices, so its tokens, in the connector and in the "
            "LLM, have no position in the volume. Choose a layer before the connector: pixels, or a vision block."
        )

    def patch_boxes(self, model: Any, inputs: Inputs, shown: VisualInput) -> tuple[IntArray, FloatArray]:
        """Return the slice of each patch, and its box within the part of the slice that is shown.

        Raises:
            ModelError: no volume is shown.
        """
        volume = volume_of(shown)
        count = int(model.config.vision_config.image_size) // self.patch_side(model)
        _, rows, columns = crop(volume)
        _, height, width = volume.voxels.shape
        steps = np.arange(count + 1) / count
        across = (columns.start + steps * (columns.stop - columns.start)) / width
        down = (rows.start + steps * (rows.stop - rows.start)) / height
        row, column = np.divmod(np.arange(count**2), count)
        box = np.stack([across[column], down[row], across[column + 1], down[row + 1]], axis=1)
        return np.repeat(np.arange(SLICES), count**2), np.tile(box, (SLICES, 1))

    def pictures(self, shown: VisualInput) -> list[Image.Image]:
        """Return the middle of the slices that each of the 32 is made from, whole, in grey.

        Raises:
            ModelError: no volume is shown.
        """
        volume = volume_of(shown)
        middles = [(first + last) // 2 for first, last in slices_read(volume)]
        return [Image.fromarray(_grey(volume.voxels[middle]).astype(np.uint8)) for middle in middles]

    def volume_window(self, volume: Volume) -> VolumeWindow:
        """Return the box around what is not air, and the window of -1000 to 1000 HU."""
        return VolumeWindow(crop(volume), LOW, HIGH)

    def default_layers(self, vision: Sequence[str]) -> tuple[str, ...]:
        """Return the last block alone, since the tokens after it have no position."""
        return (vision[-1],)


class AttentionPooling(nn.Module):
    """The connector: learned queries attend to all patches of all slices, and an MLP maps them to the LLM's width."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        width = int(config.vision_config.hidden_size)  # type: ignore[union-attr]
        out = int(config.get_text_config().hidden_size)
        self.query = nn.Parameter(torch.empty(int(config.image_seq_length), width))
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """Pool the patches of each volume's slices, (B * 32, P, d), into its tokens, (B, Q, D)."""
        volumes = patches.reshape(-1, SLICES * patches.shape[1], patches.shape[2])
        queries = self.query.expand(len(volumes), -1, -1)
        pooled, _ = self.attn(queries, volumes, volumes, need_weights=False)
        tokens: Tensor = self.linear_2(gelu(self.linear_1(pooled)))
        return tokens


class SlicesLlava(LlavaForConditionalGeneration):  # type: ignore[no-untyped-call]
    """LLaVA whose images are the slices of volumes, 32 each, and whose connector pools them."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = AttentionPooling(config)


def volume_of(shown: VisualInput) -> Volume:
    """Return what a question is about, if it is a volume.

    Raises:
        ModelError: it is not.
    """
    if not isinstance(shown, Volume):
        raise ModelError(f"Expected a volume, which is what MedM-VL-CT takes, got {type(shown).__name__}.")
    return shown


def volume_pixels(volume: Volume, side: int) -> Tensor:
    """Make the tower's input from a volume, as the authors do with MONAI, which is not needed.

    HU from -1000 to 1000 become 0 to 255; the volume is cropped to the voxels above 0 along each axis (one without any
    stays whole), resized linearly to 32 x side x side with corners not aligned, truncated to whole grey levels,
    repeated over three channels and normalised to -1 to 1. The authors do not state the orientation of their volumes:
    slices run along the first axis as read, which in RAS is from foot to head.

    Returns:
        (32, 3, side, side), float32.

    Raises:
        ModelError: the volume is not in Hounsfield units.
    """
    if volume.unit != "HU":
        raise ModelError(
            "Expected a CT volume in Hounsfield units, got one of another or unknown unit; declare `unit: HU` if the "
            "files are CT (medmllm task new … --unit HU)."
        )
    grey = _grey(volume.voxels)
    cropped = torch.from_numpy(np.ascontiguousarray(grey[_bounding_box(grey)], dtype=np.float32))[None, None]
    resized = interpolate(cropped, size=(SLICES, side, side), mode="trilinear", align_corners=False)[0, 0]
    levels = resized.to(torch.uint8).float()  # towards zero, as the authors' conversion does
    return ((levels / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def crop(volume: Volume) -> tuple[slice, slice, slice]:
    """Return the part of a volume that is shown, along its three axes: the box around all voxels above black."""
    return _bounding_box(_grey(volume.voxels))


def slices_read(volume: Volume) -> list[tuple[int, int]]:
    """Return the first and last slice of the volume that each of the 32 is interpolated from.

    Each covers a 32nd of the cropped volume, but is interpolated between the two slices at its middle (one, where the
    middle falls on a slice or lies at the end); in a deep volume the slices between are not read.
    """
    box = crop(volume)[0]
    depth = box.stop - box.start
    middles = np.clip((np.arange(SLICES) + 0.5) * depth / SLICES - 0.5, 0, depth - 1) + box.start
    return [(int(np.floor(middle)), int(np.ceil(middle))) for middle in middles]


def _bounding_box(grey: npt.NDArray[np.float32]) -> tuple[slice, slice, slice]:
    visible = grey > 0
    if not visible.any():
        return slice(0, grey.shape[0]), slice(0, grey.shape[1]), slice(0, grey.shape[2])
    slices = []
    for axis in range(3):
        indices = np.flatnonzero(visible.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(int(indices[0]), int(indices[-1]) + 1))
    return slices[0], slices[1], slices[2]


def _grey(voxels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    grey: npt.NDArray[np.float32] = (np.clip(voxels, LOW, HIGH) - LOW) / (HIGH - LOW) * 255
    return grey
