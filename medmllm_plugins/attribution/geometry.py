"""Where each row of a layer's output lies on the pictures that were shown, for every family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL.Image import Image
from torch import Tensor

from medmllm_plugins.attribution.cells import Cells, IntArray, make_cells, united
from medmllm_plugins.attribution.patch_measurement import Sizes, measured_patches
from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, VisualInput


def cells(loaded: LoadedModel, inputs: Mapping[str, Tensor], shown: VisualInput, layer: str) -> Cells:
    """Return where each row of a layer lies on the pictures shown.

    ``inputs`` is what ``prepare`` returned for the one document ``shown``. At ``"pixels"`` there is a row for each
    patch of ``pixel_values``, in the order of :func:`medmllm_plugins.attribution.patches.to_patches`; at a layer of the
    tower, for each row of its output, one tile after the other, class tokens included; at the connector for each row
    that its module returns; in the LLM for each of the L tokens of the prompt.

    Returns:
        A cell for each row; of what was made from several patches, the box around them all. Attention mixes rows: the
        cell is where a row comes from, not all that influences it.

    Raises:
        ModelError: there are several documents; the rows have no position; the pixel values are not those of
            ``shown``; or the processor's layout is no lattice.
    """
    stage = layer.partition(".")[0]
    if stage not in ("pixels", "vision", "connector", "llm"):
        raise ModelError(f"Expected `layer` to be pixels or a layer of the model, such as vision.00, got {layer!r}.")
    if len(inputs["input_ids"]) != 1:
        raise ModelError(f"Expected the input of one document, got that of {len(inputs['input_ids'])}.")
    family, model = loaded.family, loaded.model
    boxes = family.patch_boxes(model, inputs, shown)
    patches = _measured_cells(loaded, shown, inputs["pixel_values"]) if boxes is None else make_cells(*boxes)
    if stage == "pixels":
        return patches
    if stage == "vision":
        rows = family.vision_patches(model, inputs, layer)
    elif stage == "connector":
        rows = family.connector_patches(model, inputs)
    else:
        rows = family.token_patches(model, inputs)
    return united(patches, rows)


def neighbourhoods(patches: Cells, most: int) -> IntArray:
    """Group patches into at most ``most`` square blocks, each of one picture, with the smallest blocks that suffice.

    Tiles and the thumbnail of the whole show the same regions: there patches of both are in one group. There are more
    groups than ``most`` only where there are more pictures.

    Returns:
        (n,), the number of each patch's group, from 0. Patches of no picture are one group.
    """
    if len(patches) <= most:
        return np.arange(len(patches))
    positions = _lattice_positions(patches)
    for edge in range(1, int(positions.max()) + 2):
        blocks = np.column_stack([patches.picture, positions // edge])
        _, groups = np.unique(blocks, axis=0, return_inverse=True)
        if int(groups.max()) < most:
            break
    numbers: IntArray = groups.reshape(-1)
    return numbers


def _lattice_positions(patches: Cells) -> IntArray:
    """(n, 2): column and row of each cell's middle, counted in its picture's smallest patches; 0 for no picture."""
    positions = np.zeros((len(patches), 2), np.int64)
    low, high = patches.whole[:, :2], patches.whole[:, 2:]
    for picture in range(int(patches.picture.max(initial=-1)) + 1):
        own = patches.picture == picture
        if own.any():
            side = (high - low)[own].min(0)
            positions[own] = np.floor(((low + high)[own] / 2 - low[own].min(0)) / side)
    return positions


def _measured_cells(loaded: LoadedModel, shown: VisualInput, pixel_values: Tensor) -> Cells:
    pictures = list(shown) if isinstance(shown, Sequence) else [shown]
    for picture in pictures:
        if not isinstance(picture, Image):
            raise ModelError(f"Expected pictures to be shown to {loaded.family.title}, got {type(picture).__name__}.")
    sizes: Sizes = tuple(picture.size for picture in pictures if isinstance(picture, Image))
    measured = measured_patches(loaded, sizes)
    if measured.shape != tuple(pixel_values.shape):
        raise ModelError(
            f"Expected pixel values {measured.shape} for pictures of {sizes}, got {tuple(pixel_values.shape)}: the "
            "input is another document's."
        )
    return measured.cells
