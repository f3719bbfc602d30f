"""From a PIL image to a vision tower's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import SiglipImageProcessorPil

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.checkpoint import read_json

PREPROCESSOR = "preprocessor_config.json"
_KEYS = ("do_resize", "do_rescale", "do_normalize", "resample", "rescale_factor", "image_mean", "image_std")
# The mean and deviation SigLIP was trained with: [0, 255] -> [-1, 1].
_HALF = [0.5, 0.5, 0.5]


def siglip_processor(folder: Path, image_size: int) -> Any:
    """Make the image processor of a SigLIP tower.

    The processor that resizes with Pillow is used: it is the one the checkpoints were trained with, and it does not
    depend on torchvision's version.

    Args:
        folder: the checkpoint; its ``preprocessor_config.json`` is followed where there is one, else SigLIP's published
            settings are (bicubic, 1/255, mean and deviation 0.5).
        image_size: side of the tower's input in pixels.

    Raises:
        ModelError: ``preprocessor_config.json`` is for another processor or another size.
    """
    size = {"height": image_size, "width": image_size}
    settings: dict[str, Any] = {"image_mean": _HALF, "image_std": _HALF, "resample": Image.Resampling.BICUBIC}
    path = folder / PREPROCESSOR
    if path.is_file():
        raw = read_json(path)
        kind = raw.get("image_processor_type") or raw.get("feature_extractor_type") or "SiglipImageProcessor"
        if not str(kind).startswith("SiglipImageProcessor"):
            raise ModelError(f"{path}: expected a SiglipImageProcessor, but found {kind!r}.")
        if raw.get("size", size) != size:
            raise ModelError(f"{path}: expected the vision tower's size {size}, but found {raw['size']}.")
        settings.update({key: raw[key] for key in _KEYS if raw.get(key) is not None})
    return SiglipImageProcessorPil(size=size, do_convert_rgb=True, **settings)


def pixel_values(processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """Process B images.

    Returns:
        (B, 3, H, W), float32.

    Raises:
        ModelError: an image has more than 8 bits a channel. Its window must be chosen by whoever reads the data:
            Pillow would clip everything above 255 to white without a word.
    """
    found: Tensor = processor(
        images=[eight_bit(image, index) for index, image in enumerate(images)], return_tensors="pt"
    )["pixel_values"]
    return found


def eight_bit(image: object, index: int) -> Image.Image:
    """An image as RGB with 8 bits a channel; see :func:`pixel_values` for the errors."""
    if not isinstance(image, Image.Image):
        raise ModelError(f"Expected image {index} to be a PIL image, but got {type(image).__name__}.")
    if image.mode.startswith(("I", "F")):
        raise ModelError(
            f"Expected image {index} to have 8 bits a channel, but its mode is {image.mode!r}: map its values to "
            "0..255 first."
        )
    return image.convert("RGB")
