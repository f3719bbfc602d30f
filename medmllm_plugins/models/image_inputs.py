"""From a PIL image to a vision tower's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import SiglipImageProcessorPil

from medmllm_plugins.errors import ModelError, shown
from medmllm_plugins.models.checkpoint import read_json

PREPROCESSOR = "preprocessor_config.json"
_KEYS = ("do_resize", "do_rescale", "do_normalize", "resample", "rescale_factor", "image_mean", "image_std")
# The mean and deviation SigLIP was trained with: [0, 255] -> [-1, 1].
_HALF = [0.5, 0.5, 0.5]


def siglip_processor(folder: Path, image_size: int) -> Any:
    """Make the image processor of a SigLIP tower.

    The processor that resizes with Pillow is used: it is the one the checkpoints were trained with, and it does not
    depend on torchvision's version.

    The checkpoint's ``preprocessor_config.json`` is followed where there is one, else SigLIP's published settings are
    (bicubic, 1/255, mean and deviation 0.5). ``image_size`` is the side of the tower's input in pixels.

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
            raise ModelError(f"{path}: expected a SiglipImageProcessor, got {shown(kind)}.")
        if raw.get("size", size) != size:
            raise ModelError(f"{path}: expected the vision tower's size {size}, got {shown(raw['size'])}.")
        settings.update({key: _checked(key, raw[key], path) for key in _KEYS if raw.get(key) is not None})
    return SiglipImageProcessorPil(size=size, do_convert_rgb=True, **settings)


def _checked(key: str, value: Any, path: Path) -> Any:
    """Return a setting that the processor can compute with.

    Raises:
        ModelError: it is of another type, not finite, or a deviation of 0.
    """
    if key.startswith("do_"):
        good, wanted = isinstance(value, bool), "true or false"
    elif key == "resample":
        good, wanted = type(value) is int and value in set(Image.Resampling), "a number that Pillow has a filter for"
    elif key == "rescale_factor":
        good, wanted = _is_number(value) and value > 0, "a number above 0"
    else:
        values = value if isinstance(value, list) else []
        good = len(values) == 3 and all(map(_is_number, values)) and (key != "image_std" or min(values) > 0)
        wanted = "three numbers" if key == "image_mean" else "three numbers above 0"
    if not good:
        raise ModelError(f"{path}: expected `{key}` to be {wanted}, got {shown(value)}. Fetch the file again.")
    return value


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # false of NaN and of infinity


def eight_bit(image: object, index: int) -> Image.Image:
    """Return an image as RGB with 8 bits a channel.

    Raises:
        ModelError: it is no image, or has more than 8 bits a channel. Its window must be chosen by whoever reads the
            data: Pillow would clip everything above 255 to white without a warning.
    """
    if not isinstance(image, Image.Image):
        raise ModelError(f"Expected image {index} to be a PIL image, got {type(image).__name__}.")
    if image.mode.startswith(("I", "F")):
        raise ModelError(
            f"Expected image {index} to have 8 bits a channel, but its mode is {image.mode!r}: map its values to "
            "0..255 first."
        )
    return image.convert("RGB")
