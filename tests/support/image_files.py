"""Small image files for tests: pictures that do not resemble each other, and ways to damage them."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(key: str, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A grey picture of coarse random blocks, another for every key."""
    generator = np.random.default_rng(zlib.crc32(key.encode()))
    blocks = Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8))
    return blocks.resize(size, Image.Resampling.NEAREST)


def write_picture(path: Path, key: str | None = None, size: tuple[int, int] = (24, 20)) -> Path:
    """Write ``picture(key)``, by default keyed by the path's last two parts; the ending chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(key or "/".join(path.parts[-2:]), size).save(path)
    return path


def cut(path: Path, keep: float | int) -> None:
    """Cut a file: a float keeps that part of it, an int leaves off so many bytes at the end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if isinstance(keep, float) else content[:-keep])


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}
