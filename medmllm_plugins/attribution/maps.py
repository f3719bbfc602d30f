"""From what a method says of rows to a map of the pictures and a value for each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medmllm_plugins.attribution.attribution_input import PIXELS, AttributionInput
from medmllm_plugins.attribution.cells import Cells, FloatArray, paint
from medmllm_plugins.attribution.geometry import cells
from medmllm_plugins.attribution.methods.input_methods import PROMPT
from medmllm_plugins.attribution.methods.layer_methods import Scores
from medmllm_plugins.errors import ModelError

LONGEST = 256
"""Longest side of a map, in pixels; smaller pictures keep their size."""


@dataclass(frozen=True, slots=True, eq=False)
class AttributionMap:
    """What a method says of one document at one layer.

    Attributes:
        layer: where.
        values: (n, …) float64, as the method gave them, see :class:`medmllm_plugins.attribution.methods.layer_methods.Scores`.
        painted: (pictures, height, width) float64, over the pictures shown; NaN where no patch looks. ``None`` for the
            prompt, and where tokens of the LLM have no place on the picture.
        tokens: (L,) float64, a value for each token of the prompt, 0 for image tokens; ``None`` at layers before the LLM.
        gap: how far a path method is from complete, see :class:`medmllm_plugins.attribution.methods.layer_methods.Scores`.
        unplaced: why there is no map over the pictures, where there should be one.
    """

    layer: str
    values: FloatArray
    painted: FloatArray | None
    tokens: FloatArray | None
    gap: float | None
    unplaced: str = ""


def build_map(case: AttributionInput, layer: str, scores: Scores) -> AttributionMap:
    """Lay a method's values over the pictures.

    In the LLM the words keep their values where image tokens have no place.

    Raises:
        ModelError: rows of this layer have no place on the picture and are no words either, or some values are no
            finite numbers.
    """
    values = scores.values.detach().double().cpu().numpy()
    if lost := int((~np.isfinite(values)).sum()):
        raise ModelError(
            f"{layer}: expected finite values, found {lost} of {values.size} that are none; the method or the model "
            "overflows (bfloat16 or float32 hold more than float16)."
        )
    text = case.text.cpu().numpy()
    if layer == PROMPT:
        return AttributionMap(layer, values, None, values, scores.gap)
    tokens = np.where(text, values, 0.0) if layer.startswith("llm") else None
    try:
        places = layer_cells(case, layer)
    except ModelError as error:
        if tokens is None:
            raise
        return AttributionMap(layer, values, None, tokens, scores.gap, str(error))
    return AttributionMap(layer, values, paint(places, values, map_size(case), pictures(case)), tokens, scores.gap)


def layer_cells(case: AttributionInput, layer: str) -> Cells:
    """Where the rows of a layer stand on the pictures; see :func:`medmllm_plugins.attribution.geometry.cells`."""
    if layer == PIXELS:
        return cells(case.loaded, case.inputs, case.shown, "pixels")
    return cells(case.loaded, case.inputs, case.shown, case.place(layer).name)


def pictures(case: AttributionInput) -> int:
    """How many pictures the model was shown; of a volume as many as it takes slices."""
    if isinstance(case.shown, Image.Image):
        return 1
    return len(case.shown) if isinstance(case.shown, Sequence) else len(case.pixels)


def map_size(case: AttributionInput) -> tuple[int, int]:
    """Height and width of the document's maps: the first picture's, shrunk to :data:`LONGEST`."""
    if isinstance(case.shown, Image.Image):
        width, height = case.shown.size
    elif isinstance(case.shown, Sequence):
        width, height = case.shown[0].size
    else:
        height, width = case.shown.voxels.shape[1:]
    share = min(1.0, LONGEST / max(width, height))
    return max(1, round(height * share)), max(1, round(width * share))
