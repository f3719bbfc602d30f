"""Maps as images: the original, the map's colours to overlay, and both together with a scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.cells import FloatArray
from medmllm_plugins.attribution.maps import map_size
from medmllm_plugins.results.attribution_records import ONE_SIDED, TWO_SIDED

STRONGEST = 0.85
"""Opacity of the largest values; 0 is transparent, so that the picture stays visible where values are small."""
MARGIN = 40
SIDE = 256
"""Smallest side of a picture on disk in pixels; smaller ones are enlarged by a whole factor."""


def originals(case: AttributionInput) -> list[Image.Image]:
    """Return the pictures shown, in the size of the maps, mode ``RGB``; for a volume, the slices the model took."""
    height, width = map_size(case)
    pictures = case.loaded.family.pictures(case.visual)
    return [picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]


def colour_range(painted: FloatArray) -> tuple[float, float]:
    """Return the values at the ends of the colours: the 99.5th percentile of sizes, and its negative or 0.

    With the maximum instead, a single large pixel would leave all others colourless.
    """
    values = np.nan_to_num(painted)
    high = float(np.percentile(np.abs(values), 99.5)) or float(np.abs(values).max())
    return (-high if values.min() < -0.01 * high else 0.0), high


def colour_map(painted: FloatArray, scale: tuple[float, float] | None = None) -> list[Image.Image]:
    """Return colours of a map (pictures, height, width) as ``RGBA`` images, opaque where values are large."""
    low, high = colour_range(painted) if scale is None else scale
    values = np.nan_to_num(painted)
    colours = colormaps[TWO_SIDED if low < 0 else ONE_SIDED]
    position = (values - low) / (high - low) if high > low else np.zeros_like(values)
    rgba = (colours(position.clip(0, 1)) * 255).round().astype(np.uint8)
    size = np.abs(values) / high if high > 0 else np.zeros_like(values)
    rgba[..., 3] = (size.clip(0, 1) * STRONGEST * 255).round().astype(np.uint8)
    rgba[..., 3][~np.isfinite(painted)] = 0
    return [Image.fromarray(picture, "RGBA") for picture in rgba]


def stack_vertically(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return one image of pictures of one size, one below the other, enlarged where they are small."""
    width, height = pictures[0].size
    times = max(1, round(SIDE / min(width, height)))
    whole = Image.new(pictures[0].mode, (width * times, height * times * len(pictures)))
    for index, picture in enumerate(pictures):
        enlarged = picture.resize((width * times, height * times), Image.Resampling.NEAREST)
        whole.paste(enlarged, (0, index * height * times))
    return whole


def overlay(shown: Sequence[Image.Image], painted: FloatArray) -> Image.Image:
    """Return the original, a map (pictures, height, width) over it, and the scale in one image.

    Several pictures become a strip with their maximum.
    """
    coloured = colour_map(painted)
    columns = [_pair(picture, colour) for picture, colour in zip(shown, coloured, strict=True)]
    if len(shown) > 1:
        # A projection along the slices: the brightest voxel and the largest value at each pixel, in the colours of the
        # slices, since both share the bar below.
        brightest = Image.fromarray(np.max([np.asarray(picture) for picture in shown], axis=0))
        largest = np.take_along_axis(painted, np.abs(np.nan_to_num(painted)).argmax(0)[None], axis=0)
        columns.append(_pair(brightest, colour_map(largest, colour_range(painted))[0]))
    width, height = columns[0].size
    each = min(len(columns), 8)
    rows = -(-len(columns) // each)
    whole = Image.new("RGB", (each * width, rows * height + MARGIN), "white")
    for index, column in enumerate(columns):
        whole.paste(column, (index % each * width, index // each * height))
    _draw_scale(whole, painted)
    return whole


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def _pair(picture: Image.Image, colour: Image.Image) -> Image.Image:
    """Return the original above, and the map over it below."""
    below = Image.alpha_composite(picture.convert("RGBA"), colour).convert("RGB")
    return stack_vertically([picture, below])


def _draw_scale(whole: Image.Image, painted: FloatArray) -> None:
    low, high = colour_range(painted)
    colours = colormaps[TWO_SIDED if low < 0 else ONE_SIDED]
    width, height = whole.size
    bar = (colours(np.linspace(0, 1, max(2, width - 20)))[None, :, :3] * 255).round().astype(np.uint8)
    whole.paste(Image.fromarray(np.repeat(bar, 10, axis=0)), (10, height - MARGIN + 6))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default()
    draw.text((10, height - 18), f"{low:.3g}", fill="black", font=font)
    draw.text((width - 10, height - 18), f"{high:.3g}", fill="black", font=font, anchor="ra")
