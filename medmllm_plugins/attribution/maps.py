"""From a method's values of rows to a map over the pictures and a value for each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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
    """Result of a method for one document at one layer.

    Attributes:
        values: (n, …) float64, as in :class:`medmllm_plugins.attribution.methods.layer_methods.Scores`.
        painted: (pictures, height, width) float64, over the pictures shown; NaN where there is no patch. None for the
            prompt, and where tokens of the LLM have no position in the picture.
        tokens: (L,) float64, a value for each token of the prompt, 0 for image tokens; None at layers before the LLM.
        gap: As in :class:`medmllm_plugins.attribution.methods.layer_methods.Scores`.
        unplaced: Reason why there is no map over the pictures, where one is expected.
        words: (n,) bool, at the prompt: which tokens are words. None at other layers.
    """

    layer: str
    values: FloatArray
    painted: FloatArray | None
    tokens: FloatArray | None
    gap: float | None
    unplaced: str = ""
    words: npt.NDArray[np.bool_] | None = None

    def comparable(self, values: FloatArray) -> FloatArray:
        """Return those of a map's values by which two maps of this document and layer are compared.

        At the prompt image tokens have the value 0 in every map, and hundreds of them would make any two maps alike.
        """
        return values if self.words is None else values[self.words]


def build_map(case: AttributionInput, layer: str, scores: Scores) -> AttributionMap:
    """Map a method's values to positions in the pictures.

    In the LLM the words keep their values where image tokens have no position.

    Raises:
        ModelError: Rows of this layer have no position in the picture and are not words either, or some values are not
            finite.
    """
    values = scores.values.detach().double().cpu().numpy()
    if count := int((~np.isfinite(values)).sum()):
        raise ModelError(
            f"{layer}: expected finite values, got {count} of {values.size} that are not finite. The method or the "
            "model overflows: use dtype=bfloat16 or dtype=float32."
        )
    text = case.text.cpu().numpy()
    if layer == PROMPT:
        return AttributionMap(layer, values, None, values, scores.gap, words=text)
    tokens = np.where(text, values, 0.0) if layer.startswith("llm") else None
    try:
        layer_positions = layer_cells(case, layer)
    except ModelError as error:
        if tokens is None:
            raise
        return AttributionMap(layer, values, None, tokens, scores.gap, str(error))
    painted = paint(layer_positions, values, map_size(case), pictures(case))
    return AttributionMap(layer, values, painted, tokens, scores.gap)


def layer_cells(case: AttributionInput, layer: str) -> Cells:
    """Return the positions of a layer's rows, see :func:`medmllm_plugins.attribution.geometry.cells`."""
    return cells(case.loaded, case.inputs, case.visual, layer if layer == PIXELS else case.layer(layer).name)


def pictures(case: AttributionInput) -> int:
    """Return the number of pictures the model was shown; for a volume, the number of slices it takes."""
    if isinstance(case.visual, Image.Image):
        return 1
    return len(case.visual) if isinstance(case.visual, Sequence) else len(case.pixels)


def map_size(case: AttributionInput) -> tuple[int, int]:
    """Return height and width of the document's maps: the first picture's, shrunk to :data:`LONGEST`."""
    if isinstance(case.visual, Image.Image):
        width, height = case.visual.size
    elif isinstance(case.visual, Sequence):
        width, height = case.visual[0].size
    else:
        height, width = case.visual.voxels.shape[1:]
    share = min(1.0, LONGEST / max(width, height))
    return max(1, round(height * share)), max(1, round(width * share))
