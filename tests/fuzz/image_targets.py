"""Pictures: the formats of Pillow, and arrays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from fuzz.mutators import Mutator, inside_png, mutate_bytes, mutate_lines, one_of
from fuzz.target import Files, Target
from PIL import Image
from support.image_files import picture

from medmllm_plugins.data.readers.image_reader import picture_size, read_picture

SIZE: Final = (24, 20)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def modes(*names: str) -> dict[str, Image.Image]:
    """The same picture in several modes."""
    wide = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 130)
    return {name: wide if name == "I;16" else picture(name, SIZE).convert(name) for name in names}


def _format(kind: str, names: tuple[str, ...], *options: dict[str, Any]) -> Callable[[], dict[str, Files]]:
    def seeds() -> dict[str, Files]:
        ending = {"JPEG2000": "jp2", "TIFF": "tif", "JPEG": "jpg"}.get(kind, kind.lower())
        return {
            f"{name}-{index}": {f"a.{ending}": _saved(image, kind, **option)}
            for name, image in modes(*names).items()
            for index, option in enumerate(options or ({},))
        }

    return seeds


def _arrays() -> dict[str, Files]:
    files = {}
    for name, array in {
        "grey": np.arange(480, dtype=np.uint8).reshape(20, 24),
        "colour": np.arange(1440, dtype=np.uint16).astype(np.uint8).reshape(20, 24, 3),
        "float": np.linspace(-1, 1, 480).reshape(20, 24),
        "fortran": np.asfortranarray(np.arange(480, dtype=">i2").reshape(20, 24)),
    }.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        files[name] = {"a.npy": buffer.getvalue()}
    return files


def read(folder: Path) -> object:
    """Read the one file of a folder as a picture, and its size from the header."""
    (path,) = folder.iterdir()
    image = read_picture(path)
    return hashlib.sha256(image.tobytes()).hexdigest(), image.size, picture_size(path)


def _target(name: str, seeds: Callable[[], dict[str, Files]], mutator: Mutator = mutate_bytes) -> Target:
    return Target(name=name, seeds=seeds, read=read, mutators={"*": mutator})


_FRAMES: Final = {"save_all": True, "append_images": [picture("second", SIZE)]}

TARGETS: Final = {
    target.name: target
    for target in (
        _target(
            "png",
            _format("PNG", ("L", "RGB", "P", "RGBA", "I;16", "1")),
            one_of(mutate_bytes, inside_png(mutate_bytes)),
        ),
        _target("jpeg", _format("JPEG", ("L", "RGB", "CMYK"), {}, {"progressive": True})),
        _target("gif", _format("GIF", ("L", "P"), {}, _FRAMES)),
        _target("bmp", _format("BMP", ("1", "L", "RGB", "P"))),
        _target(
            "tiff",
            _format(
                "TIFF",
                ("L", "RGB", "I;16", "F"),
                *({"compression": name} for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
            ),
        ),
        _target("webp", _format("WEBP", ("RGB", "RGBA"), {}, {"lossless": True})),
        _target("ppm", _format("PPM", ("1", "L", "RGB")), one_of(mutate_bytes, mutate_lines)),
        _target("jp2", _format("JPEG2000", ("L", "RGB"), {}, {"irreversible": True})),
        _target("npy_picture", _arrays, one_of(mutate_bytes, mutate_lines)),
    )
}
