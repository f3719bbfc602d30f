"""Reading images and volumes, in documents a second: this package's threads against a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image

from benchmarks.measure import compare, stopwatch
from benchmarks.record import Record, Settings, Target
from medmllm_plugins.data.readers.images import read_rgb
from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.errors import ModelError
from medmllm_plugins.runtime.batches import Batches, BatchSize

IMAGES, SIDE = 96, 1024
VOLUMES, SHAPE = 12, (64, 256, 256)


def write(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and volumes on disk: noise on a slope, as JPEG, PNG and compressed NIfTI."""
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 150, SIDE)[None, :].repeat(SIDE, 0)
    pictures = []
    for index in range(IMAGES):
        noise = generator.normal(0, 12, (SIDE, SIDE))
        path = folder / f"{index:03d}.{'jpg' if index % 2 else 'png'}"
        Image.fromarray(np.clip(slope + noise, 0, 255).astype(np.uint8)).save(path)
        pictures.append(path)
    volumes = []
    for index in range(VOLUMES):
        image = sitk.GetImageFromArray(generator.integers(-1000, 1000, SHAPE).astype(np.int16))
        image.SetSpacing((0.7, 0.7, 2.0))
        path = folder / f"{index:03d}.nii.gz"
        sitk.WriteImage(image, str(path))
        volumes.append(path)
    return pictures, volumes


def _read(path: Path) -> float:
    """A document as this package reads it, and a number that tells whether it was read right."""
    if path.suffix in (".jpg", ".png"):
        return float(np.asarray(read_rgb(path)).mean())
    return float(read_volume(path, unit="HU").voxels.mean())


def ahead(paths: list[Path]) -> list[float]:
    """As the wrapper does: read ahead in threads, handed over in batches."""
    found: dict[Path, float] = {}
    batches: Batches[Path, float, None, float] = Batches(
        BatchSize(8), _read, float, lambda _: None, lambda read, _: read, ahead=False
    )
    for requests, values, _ in batches.run(paths):
        found |= dict(zip(requests, values, strict=True))
    return [found[path] for path in paths]


def plain(paths: list[Path]) -> list[float]:
    """One after the other, with Pillow and SimpleITK and no check."""
    found = []
    for path in paths:
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as opened:
                found.append(float(np.asarray(opened.convert("RGB")).mean()))
        else:
            oriented = sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS")
            found.append(float(sitk.GetArrayFromImage(oriented).astype(np.float32).mean()))
    return found


def run(settings: Settings) -> Record:
    """Compare the two ways.

    Raises:
        ModelError: they do not read the same.
    """
    device = torch.device("cpu")
    with TemporaryDirectory() as folder:
        pictures, volumes = write(Path(folder))
        both = [*pictures, *volumes]
        if not np.allclose(plain(both), ahead(both), rtol=1e-4):
            raise ModelError("Expected both sides to read the same, found other pixels: run `pytest tests/data`.")
        comparison = compare(
            stopwatch(lambda: plain(both), device), stopwatch(lambda: ahead(both), device), repeats=settings.repeats
        )
        parts = {
            name: compare(
                stopwatch(_bind(plain, paths), device), stopwatch(_bind(ahead, paths), device), repeats=settings.repeats
            )
            for name, paths in (("images", pictures), ("volumes", volumes))
        }
    return Record(
        settings=settings,
        sides=(("plain", "a loop with Pillow and SimpleITK"), ("ahead", "this package: checked, and ahead in threads")),
        comparison=comparison,
        target=Target("at least", 1.8),
        details={
            "images": IMAGES,
            "volumes": VOLUMES,
            **{f"{name}_ratio": round(one.ratio, 3) for name, one in parts.items()},
            "images_per_s": IMAGES / parts["images"].denominator.median,
            "volumes_per_s": VOLUMES / parts["volumes"].denominator.median,
        },
    )


def _bind(read: Callable[[list[Path]], list[float]], paths: list[Path]) -> Callable[[], list[float]]:
    return lambda: read(paths)
