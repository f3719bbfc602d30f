"""Where each row of a stage's output stands on the pictures that were shown, for every family that is served."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.vision_utils import get_vision_window_index

from medmllm_plugins.attribution.cells import Cells, FloatArray, IntArray, cells_of, paint, sample, united
from medmllm_plugins.attribution.patch_measurement import Sizes, measured
from medmllm_plugins.attribution.patches import from_patches, patch_side, to_patches
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.families.family_registry import FAMILIES
from medmllm_plugins.models.families.medm_vl_ct import SLICES, MedMVLCT, crop

__all__ = [
    "Cells",
    "FloatArray",
    "IntArray",
    "Level",
    "cells",
    "from_patches",
    "neighbourhoods",
    "paint",
    "sample",
    "to_patches",
]

Level: TypeAlias = Literal["pixels", "vision", "connector", "llm"]
"""Whose rows are asked about: patches of the tower's input; what its blocks, the connector and the LLM return."""


def cells(loaded: LoadedModel, inputs: Mapping[str, Tensor], shown: VisualInput, stage: Level) -> Cells:
    """Say where each row of a stage stands on the pictures shown.

    Args:
        loaded: the model.
        inputs: what its ``prepare`` returned for one document.
        shown: that document: an image, several, or a volume. The pictures of MedM-VL-CT are its 32 slices, each as
            wide and high as the volume's own (:func:`medmllm_plugins.models.families.medm_vl_ct.slices_read` says which).
        stage: ``"pixels"``: a row for each patch of ``pixel_values``, in the order of :func:`to_patches`.
            ``"vision"``: for each row of a block's output, one tile behind the other, a class token at the beginning of
            each where there is one. ``"connector"``: for each row that the connector's module returns (in Qwen2.5-VL
            in the order of its windows, which is undone behind it). ``"llm"``: for each of the L tokens of the prompt.

    Returns:
        A cell for each row; of what was made from several patches, the box around them all. Rows of attention are mixed
        with all others, of course: the cell is where a row comes from, not all that it has seen.

    Raises:
        ModelError: there are several documents; the tokens have no place (MedM-VL-CT's connector); the pixel values are
            not those of ``shown``; the architecture is none that this package knows; or the processor's layout is no
            lattice.
    """
    if stage not in get_args(Level):
        raise ModelError(f"Expected `stage` to be one of {', '.join(get_args(Level))}, found {stage!r}.")
    if len(inputs["input_ids"]) != 1:
        raise ModelError(f"Expected the input of one document, found that of {len(inputs['input_ids'])}.")
    kind = str(loaded.model.config.model_type)
    if isinstance(loaded, MedMVLCT):
        pixels = _of_volume(loaded, shown, stage)
    else:
        pixels = _of_pictures(loaded, shown, inputs["pixel_values"])
    if stage == "pixels":
        return pixels
    if kind not in FAMILIES:
        raise ModelError(
            f"{loaded.family.title}: expected an architecture whose patches can be followed ({', '.join(FAMILIES)}), "
            f"found {kind!r}; of this one only `pixels` have a known place."
        )
    vision = _vision_rows(loaded, inputs, kind)
    if stage == "vision":
        return united(pixels, vision.reshape(-1, 1))
    connector = _connector_rows(loaded, inputs, kind, vision)
    if stage == "connector":
        return united(pixels, connector)
    return united(pixels, _llm_rows(loaded, inputs, kind, connector))


def neighbourhoods(found: Cells, most: int) -> IntArray:
    """Patches in at most so many groups, each a square block of one picture, the smallest blocks that will do.

    Tiles and the thumbnail of the whole show the same places: there patches of both are in one group. More groups than
    ``most`` there are only where there are more pictures.

    Args:
        found: the patches' cells.
        most: so many groups; as many patches or fewer are a group each.

    Returns:
        (n,), the number of each patch's group, from 0. Patches of no picture are one group.
    """
    if len(found) <= most:
        return np.arange(len(found))
    places = _lattice(found)
    for edge in range(1, int(places.max()) + 2):
        blocks = np.column_stack([found.picture, places // edge])
        _, groups = np.unique(blocks, axis=0, return_inverse=True)
        if int(groups.max()) < most:
            break
    numbers: IntArray = groups.reshape(-1)
    return numbers


def _lattice(found: Cells) -> IntArray:
    """(n, 2): how many of its picture's smallest patches to the right and down each cell's middle stands; else 0."""
    places = np.zeros((len(found), 2), np.int64)
    low, high = found.whole[:, :2], found.whole[:, 2:]
    for picture in range(int(found.picture.max(initial=-1)) + 1):
        own = found.picture == picture
        if own.any():
            side = (high - low)[own].min(0)
            places[own] = np.floor(((low + high)[own] / 2 - low[own].min(0)) / side)
    return places


def _of_pictures(loaded: LoadedModel, shown: VisualInput, pixel_values: Tensor) -> Cells:
    pictures = list(shown) if isinstance(shown, Sequence) else [shown]
    for picture in pictures:
        if not isinstance(picture, Image):
            raise ModelError(f"Expected pictures to be shown to {loaded.family.title}, found {type(picture).__name__}.")
    sizes: Sizes = tuple(picture.size for picture in pictures if isinstance(picture, Image))
    found = measured(loaded, sizes)
    if found.shape != tuple(pixel_values.shape):
        raise ModelError(
            f"Expected pixel values {found.shape} for pictures of {sizes}, found {tuple(pixel_values.shape)}: the "
            "input is another document's."
        )
    return found.cells


def _of_volume(loaded: MedMVLCT, shown: VisualInput, stage: Level) -> Cells:
    if not isinstance(shown, Volume):
        raise ModelError(f"Expected a volume, which is what MedM-VL-CT takes, found {type(shown).__name__}.")
    if stage in ("connector", "llm"):
        raise ModelError(
            "MedM-VL-CT's connector makes each token by learned queries from all patches of all slices: its tokens, "
            "and those of the LLM, have no place in the volume. Ask for a stage before it: pixels, or a vision block."
        )
    config: Any = loaded.model.config
    count = int(config.vision_config.image_size) // patch_side(loaded)
    _, rows, columns = crop(shown)
    _, height, width = shown.voxels.shape
    steps = np.arange(count + 1) / count
    across = (columns.start + steps * (columns.stop - columns.start)) / width
    down = (rows.start + steps * (rows.stop - rows.start)) / height
    row, column = np.divmod(np.arange(count**2), count)
    box = np.stack([across[column], down[row], across[column + 1], down[row + 1]], axis=1)
    return cells_of(np.repeat(np.arange(SLICES), count**2), np.tile(box, (SLICES, 1)))


# Below, rows are told by the patches they are made from: (m, k), indices of patches, -1 for none.


def _vision_rows(loaded: LoadedModel, inputs: Mapping[str, Tensor], kind: str) -> IntArray:
    """(P,) of a flat tower, else (tiles, patches and class token)."""
    pixels = inputs["pixel_values"]
    if pixels.dim() == 2:
        flat = np.arange(len(pixels))
        if kind != "qwen2_5_vl":
            return flat
        return flat.reshape(-1, _merges(loaded, inputs)[0] ** 2)[_windows(loaded, inputs)].reshape(-1)
    each = (pixels.shape[-2] // patch_side(loaded)) * (pixels.shape[-1] // patch_side(loaded))
    tiles = np.arange(math.prod(pixels.shape[:-3]) * each).reshape(-1, each)
    if kind == "llava_next":
        # Pictures of fewer tiles than the others are filled up with empty ones, which the model leaves out.
        counts = _anyres_tiles(loaded, inputs)
        most = pixels.shape[1] if pixels.dim() == 5 else len(pixels)
        kept = [np.arange(count) + index * most for index, count in enumerate(counts)]
        tiles = tiles[np.concatenate(kept)]
    if _has_class_token(loaded):
        tiles = np.concatenate([np.full((len(tiles), 1), -1), tiles], axis=1)
    return tiles


def _connector_rows(loaded: LoadedModel, inputs: Mapping[str, Tensor], kind: str, vision: IntArray) -> IntArray:
    """(tokens, patches that each is made from)."""
    config: Any = loaded.model.config
    if vision.ndim == 1:
        # A block's patches stand one behind the other. Pictures may be merged by different factors.
        counts = inputs["image_grid_thw"].prod(-1).tolist()
        merges = _merges(loaded, inputs)
        parts = np.split(vision, np.cumsum(counts)[:-1])
        made = [part.reshape(-1, merge**2) for part, merge in zip(parts, merges, strict=True)]
        return np.concatenate([_wide(part, max(merges) ** 2) for part in made])
    if kind in ("llava", "llava_next", "internvl") and config.vision_feature_select_strategy == "default":
        vision = vision[:, 1:]  # whatever stands there, class token or not
    merge = _block(config, kind, vision.shape[1])
    if merge == 1:
        return vision.reshape(-1, 1)
    side = math.isqrt(vision.shape[1])
    if side**2 != vision.shape[1] or side % merge:
        raise ModelError(
            f"{loaded.family.title}: expected square tiles whose {vision.shape[1]} patches divide into blocks of "
            f"{merge} x {merge}."
        )
    blocks = vision.reshape(len(vision), side // merge, merge, side // merge, merge)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(-1, merge**2)


def _llm_rows(loaded: LoadedModel, inputs: Mapping[str, Tensor], kind: str, connector: IntArray) -> IntArray:
    """(L, patches that each token is made from)."""
    if kind == "qwen2_5_vl":
        connector = connector[np.argsort(_windows(loaded, inputs))]
    elif kind == "llava_next":
        connector = _packed(loaded, inputs, connector)
    positions = np.flatnonzero(loaded.image_positions(inputs)[0].cpu().numpy())
    if len(positions) != len(connector):
        raise ModelError(
            f"{loaded.family.title}: expected as many image tokens in the prompt as the connector returns, "
            f"{len(connector)}, found {len(positions)}."
        )
    rows = np.full((inputs["input_ids"].shape[1], connector.shape[1]), -1)
    rows[positions] = connector
    return rows


def _wide(rows: IntArray, width: int) -> IntArray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=-1)


def _merges(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> list[int]:
    """Patches along the side of a block that becomes one token, for each picture."""
    if "image_merge_sizes" in inputs:
        found: list[int] = inputs["image_merge_sizes"].tolist()
        return found
    config: Any = loaded.model.config
    return [int(config.vision_config.spatial_merge_size)] * len(inputs["image_grid_thw"])


def _windows(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> IntArray:
    """Qwen2.5-VL attends within windows, and puts blocks of patches in their order: which block comes when."""
    config: Any = loaded.model.config
    vision = config.vision_config
    order, _ = get_vision_window_index(
        inputs["image_grid_thw"].cpu(), vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    found: IntArray = order.numpy()
    return found


def _block(config: Any, kind: str, patches: int) -> int:
    """Patches along the side of a block that becomes one token."""
    if kind == "gemma3":
        return math.isqrt(patches) // math.isqrt(int(config.mm_tokens_per_image))
    if kind == "internvl":
        return round(1 / float(config.downsample_ratio))
    if kind in ("idefics3", "smolvlm"):
        return int(config.scale_factor)
    return 1


def _has_class_token(loaded: LoadedModel) -> bool:
    names = (name for name, _ in loaded.model.named_parameters())
    return any(name.endswith((".class_embedding", ".cls_token")) for name in names)


def _anyres_tiles(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> list[int]:
    config: Any = loaded.model.config
    side = int(config.vision_config.image_size)
    sizes = inputs["image_sizes"].tolist()
    return [int(image_size_to_num_patches(size, config.image_grid_pinpoints, side)) for size in sizes]


def _packed(loaded: LoadedModel, inputs: Mapping[str, Tensor], connector: IntArray) -> IntArray:
    """LLaVA-NeXT puts tiles together, cuts padding off and ends each line by a token: its own code, given numbers."""
    counts = _anyres_tiles(loaded, inputs)
    # Exact in this type; -1 for the token that ends a line.
    rows = torch.arange(len(connector), dtype=torch.float64).reshape(sum(counts), -1, 1)
    model: Any = loaded.model.model
    packed, _ = model.pack_image_features(
        list(torch.split(rows, counts)),
        inputs["image_sizes"].cpu(),
        loaded.model.config.vision_feature_select_strategy,
        image_newline=torch.tensor([-1.0], dtype=torch.float64),
    )
    order = torch.cat(list(packed))[:, 0].long().numpy()
    found: IntArray = np.where(order[:, None] >= 0, connector[order], -1)
    return found
