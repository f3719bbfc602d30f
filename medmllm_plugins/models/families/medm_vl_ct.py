"""MedM-VL for chest CT (Shi et al., arXiv:2504.04323): the 2D tower on each of 32 slices, pooled by learned queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import VisualInput
from medmllm_plugins.models.formats.medm_vl import MedMVL, open_medm_vl
from medmllm_plugins.models.formats.medm_vl_config import ATTENTION_POOLING
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.slicing import Stage
from medmllm_plugins.plugins.published_checkpoints import MEDM_VL_CT

SLICES = 32
HEADS = 8
LOW, HIGH = -1000.0, 1000.0
"""Hounsfield units that become black and white."""


def load(options: LoadOptions) -> MedMVLCT:
    """Load a MedM-VL-CT checkpoint: a local folder, a hub id, or ``"ct-chest-3b"``.

    Raises:
        ModelError: there is no such checkpoint, or it is no MedM-VL-CT checkpoint.
        OptionError: the device or the attention implementation cannot be had.
    """
    return open_medm_vl(options, MEDM_VL_CT, ATTENTION_POOLING, SlicesLlava, MedMVLCT)


class AttentionPooling(nn.Module):
    """The connector: learned queries attend to all patches of all slices, and an MLP takes them to the LLM's width."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        width = int(config.vision_config.hidden_size)  # type: ignore[union-attr]
        out = int(config.get_text_config().hidden_size)
        self.query = nn.Parameter(torch.empty(int(config.image_seq_length), width))
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, patches: Tensor) -> Tensor:
        """Pool.

        Args:
            patches: (B * 32, P, d), the slices of a volume one after the other.

        Returns:
            (B, Q, D).
        """
        volumes = patches.reshape(-1, SLICES * patches.shape[1], patches.shape[2])
        queries = self.query.expand(len(volumes), -1, -1)
        pooled, _ = self.attn(queries, volumes, volumes, need_weights=False)
        found: Tensor = self.linear_2(gelu(self.linear_1(pooled)))
        return found


class SlicesLlava(LlavaForConditionalGeneration):  # type: ignore[no-untyped-call]
    """LLaVA whose images are the slices of volumes, 32 each, and whose connector pools them."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = AttentionPooling(config)


def volume_pixels(volume: Volume, side: int) -> Tensor:
    """Make the tower's input from a volume, as the authors do with MONAI, which is not needed.

    HU from -1000 to 1000 become 0 to 255; the volume is cropped to what is above 0 along each axis (one without any
    stays whole), resized linearly to 32 x side x side with corners not aligned, cut to whole grey levels, repeated over
    three channels and normalised to -1 to 1. The authors do not say how their volumes stand: slices run along the first
    axis as read, which in RAS is from foot to head.

    Returns:
        (32, 3, side, side), float32.

    Raises:
        ModelError: the volume is not in Hounsfield units.
    """
    if volume.unit != "HU":
        raise ModelError(
            "Expected a CT volume in Hounsfield units, found one of another or unknown unit; declare `unit: HU` if the "
            "files are CT (medmllm task new … --unit HU)."
        )
    grey = _grey(volume)
    cropped = torch.from_numpy(np.ascontiguousarray(grey[_shown(grey)], dtype=np.float32))[None, None]
    resized = interpolate(cropped, size=(SLICES, side, side), mode="trilinear", align_corners=False)[0, 0]
    levels = resized.to(torch.uint8).float()  # towards zero, as the authors' conversion does
    return ((levels / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)


def crop(volume: Volume) -> tuple[slice, slice, slice]:
    """What is shown of a volume, along its three axes: the box around all that is above 0 on the grey scale."""
    return _shown(_grey(volume))


def _shown(grey: npt.NDArray[np.float32]) -> tuple[slice, slice, slice]:
    shown = grey > 0
    if not shown.any():
        return slice(0, shown.shape[0]), slice(0, shown.shape[1]), slice(0, shown.shape[2])
    found = []
    for axis in range(3):
        there = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        found.append(slice(int(there[0]), int(there[-1]) + 1))
    return found[0], found[1], found[2]


def slices_read(volume: Volume) -> list[tuple[int, int]]:
    """The first and the last slice of the volume that each of the 32 is made from.

    Each stands for a 32nd of what is shown, but is interpolated between the two slices at the middle of it (one, where
    it falls on that or lies at the end); in a deep volume those between are not looked at.
    """
    shown = crop(volume)[0]
    deep = shown.stop - shown.start
    middles = np.clip((np.arange(SLICES) + 0.5) * deep / SLICES - 0.5, 0, deep - 1) + shown.start
    return [(int(np.floor(middle)), int(np.ceil(middle))) for middle in middles]


def _grey(volume: Volume) -> npt.NDArray[np.float32]:
    grey: npt.NDArray[np.float32] = (np.clip(volume.voxels, LOW, HIGH) - LOW) / (HIGH - LOW) * 255
    return grey


class MedMVLCT(MedMVL):
    """A MedM-VL-CT model in memory; a question to it is about a volume."""

    shows = "volume"

    def rows_of(self, stage: Stage, inputs: Mapping[str, Tensor]) -> list[int]:
        """The tower returns a row for each slice, the connector one for each volume."""
        return [SLICES if stage == "vision" else 1] * len(inputs["input_ids"])

    def _pixels(self, images: Sequence[VisualInput]) -> Tensor:
        """(B * 32, 3, H, W), float32: the slices of all volumes, one after the other."""
        for item in images:
            if not isinstance(item, Volume):
                raise ModelError(
                    f"Expected a volume a question, which is what MedM-VL-CT takes, found {type(item).__name__}."
                )
        side = int(self.model.config.vision_config.image_size)  # type: ignore[union-attr]
        return torch.cat([volume_pixels(item, side) for item in images if isinstance(item, Volume)])
