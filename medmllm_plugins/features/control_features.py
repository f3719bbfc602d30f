"""What probes find without the model: in pixels, by region, and behind a vision tower that was never trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from medmllm_plugins.data.core.image_controls import border_width
from medmllm_plugins.features.hooks import ActivationHooks, Site
from medmllm_plugins.models.base import LoadedModel, VisualInput
from medmllm_plugins.models.families.family import Family, stage_module
from medmllm_plugins.reference.pixels import SLICE_SIDE, SLICES, downsample
from medmllm_plugins.results.probe_records import BORDER, CENTRE, CORNERS, PIXELS, RANDOM_ENCODER, REGIONS

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

Halves: TypeAlias = npt.NDArray[np.float16]

SIDE = 32
_BORDER_CELLS: Final = 16
"""Cells along each side of the image that the border is divided into; it is two cells wide."""
_CORNER_CELLS: Final = 8
"""Cells along each side of a corner, which is a quarter of the image high and wide."""
_CENTRE_CELLS: Final = 16
"""Cells along each side of the centre, which is half of the image high and wide."""


def control_features(shown: VisualInput) -> dict[str, Halves]:
    """Return the control features of one input by layer: ``control.pixels`` and those of three regions.

    ``control.pixels`` is the picture shrunk to 32 x 32 in colour, 0 to 255, (3072,); of several pictures the mean; of a
    volume 16 slices of 16 x 16 grey values, (4096,).

    The regions are the border (the outer eighth on each side), the corners (a quarter of the image high and wide each)
    and the centre (half of it high and wide). Each is divided into cells, and each cell has five values, 0 to 255: the
    means of red, green and blue, and the lowest and the highest value, so that a mark that is small beside its
    cell is not averaged away. Border (560,), corners and centre (1280,). Of several pictures, and of the 16 slices of a
    volume, the mean of means, the lowest and the highest value.
    """
    if isinstance(shown, Image.Image):
        pictures, pixels = [shown], downsample(shown, "RGB", SIDE)
    elif isinstance(shown, Sequence):
        pictures = list(shown)
        pixels = np.mean([downsample(picture, "RGB", SIDE) for picture in pictures], axis=0)
    else:
        pictures, pixels = _slices(shown)
    regions = [_regions(picture.convert("RGB")) for picture in pictures]
    features = {PIXELS: pixels}
    for layer in REGIONS:
        cells = np.array([region[layer] for region in regions])
        parts = [cells[..., :3].mean(0), cells[..., 3:4].min(0), cells[..., 4:].max(0)]
        features[layer] = np.concatenate(parts, axis=1).reshape(-1)
    return {layer: values.astype(np.float16) for layer, values in features.items()}


def _slices(volume: Volume) -> tuple[list[Image.Image], npt.NDArray[np.float32]]:
    from medmllm_plugins.data.readers.slices import slice_images

    images = slice_images(volume, SLICES)
    chosen = np.linspace(0, len(images) - 1, SLICES).round().astype(int)
    return images, np.concatenate([downsample(images[index], "L", SLICE_SIDE) for index in chosen])


def _regions(picture: Image.Image) -> dict[str, npt.NDArray[np.float32]]:
    """Return the cells of each region of a picture in mode RGB, five values a cell, (cells, 5)."""
    (width, height), outer = picture.size, _BORDER_CELLS
    left, top = border_width(width), border_width(height)
    bottom = max(top + 1, height - top)
    columns, rows = max(1, width // 4), max(1, height // 4)
    boxes = {
        BORDER: (
            ((0, 0, width, top), outer, 2),
            ((0, height - top, width, height), outer, 2),
            ((0, top, left, bottom), 2, outer - 4),
            ((width - left, top, width, bottom), 2, outer - 4),
        ),
        CORNERS: tuple(
            ((x, y, x + columns, y + rows), _CORNER_CELLS, _CORNER_CELLS)
            for y in (0, height - rows)
            for x in (0, width - columns)
        ),
        CENTRE: (
            (
                (columns, rows, max(columns + 1, width - columns), max(rows + 1, height - rows)),
                _CENTRE_CELLS,
                _CENTRE_CELLS,
            ),
        ),
    }
    return {layer: np.concatenate([_cells(picture, *part) for part in parts]) for layer, parts in boxes.items()}


def _cells(picture: Image.Image, box: tuple[int, int, int, int], columns: int, rows: int) -> npt.NDArray[np.float32]:
    """Divide a box (left, top, right, bottom) into cells, and return their five values, (cells, 5)."""
    # Of an image of few pixels, the box may begin beyond its end; cells then share the last pixels.
    right, bottom = min(box[2], picture.width), min(box[3], picture.height)
    region = picture.crop((min(box[0], right - 1), min(box[1], bottom - 1), right, bottom))
    means = np.asarray(region.resize((columns, rows), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 3)
    grey = np.asarray(region.convert("L"))
    for axis, count in enumerate((rows, columns)):
        if grey.shape[axis] < count:
            grey = grey.take(np.arange(count) * grey.shape[axis] // count, axis=axis)
    starts = [np.arange(count) * side // count for count, side in zip((rows, columns), grey.shape, strict=True)]
    extremes = [
        function.reduceat(function.reduceat(grey, starts[0], axis=0), starts[1], axis=1).reshape(-1, 1)
        for function in (np.minimum, np.maximum)
    ]
    return np.concatenate([means, *extremes], axis=1, dtype=np.float32)


class _ConnectorDone(Exception):
    """The connector has returned; what would follow is not needed."""


class RandomEncoder:
    """The model's own vision tower and connector with random weights, run on the same images.

    A probe fitted on it shows what the architecture and the probe alone can do. Matrices are normal with variance 1
    over the number of inputs, biases 0, norms 1, embeddings normal with deviation 0.02, and single vectors (class
    token, scales of layers) normal with the mean square that they have.
    """

    def __init__(self, loaded: LoadedModel, poolings: Sequence[str], seed: int = 0) -> None:
        """Draw weights in place of the encoder's, which are floating-point numbers and stay as they are."""
        self._loaded = loaded
        self._hooks = ActivationHooks(loaded, poolings, vision_only=True)
        generator = torch.Generator().manual_seed(seed)
        self._drawn: list[tuple[nn.Parameter, Tensor]] = []
        for module in _encoder(loaded):
            for name, value in module.named_parameters(recurse=False):
                drawn = _draw(loaded.family, module, name, value, generator)
                self._drawn.append((value, drawn.to(value.device, value.dtype)))

    @staticmethod
    def possible(loaded: LoadedModel) -> bool:
        """Return whether the tower's weights can be exchanged: those of a quantised one cannot."""
        return all(value.is_floating_point() for module in _encoder(loaded) for value in module.parameters(False))

    @torch.inference_mode()
    def features(self, inputs: Mapping[str, Tensor]) -> dict[Site, Tensor]:
        """Return the features of tower and connector for a batch, by site, under names of their own."""

        def stop(*_: Any) -> None:
            raise _ConnectorDone

        handle = stage_module(self._loaded.model, self._loaded.family.connector).register_forward_hook(stop)
        try:
            with self._exchanged(), self._hooks.prompt(inputs), suppress(_ConnectorDone):  # the LLM is not needed
                self._loaded.prefill(inputs)
        finally:
            handle.remove()
        return {
            (f"{RANDOM_ENCODER}{name}", pooling): value for (name, pooling), value in self._hooks.activations.items()
        }

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        own = [value.data for value, _ in self._drawn]
        for value, drawn in self._drawn:
            value.data = drawn
        try:
            yield
        finally:
            for (value, _), data in zip(self._drawn, own, strict=True):
                value.data = data


def _encoder(loaded: LoadedModel) -> list[nn.Module]:
    """Return all modules of tower and connector, each once."""
    names = (loaded.family.tower, loaded.family.connector)
    modules = {id(module): module for name in names for module in stage_module(loaded.model, name).modules()}
    return list(modules.values())


def _draw(family: Family, module: nn.Module, name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    shape = tuple(value.shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    if value.dim() == 1:
        if "norm" not in type(module).__name__.lower():  # a class token, or the scale of a layer
            return torch.randn(shape, generator=generator) * float(value.float().square().mean().sqrt())
        return torch.full(shape, family.neutral_norm_weight(module))
    if name.endswith("weight") and not isinstance(module, nn.Embedding):
        inputs = math.prod(shape[1:])
        return torch.randn(shape, generator=generator) / math.sqrt(inputs)
    return torch.randn(shape, generator=generator) * 0.02
