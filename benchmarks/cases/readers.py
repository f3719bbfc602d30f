"""Reading images and volumes: this package's threads against a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from benchmarks.harness import Benchmark, Run, Sides, expect
from medmllm_plugins.data.readers.pillow_images import read_rgb
from medmllm_plugins.data.readers.volumes import read_volume
from medmllm_plugins.runtime.batches import Batches, BatchSize

SIDE, VOLUME = 1024, (64, 256, 256)


def write_files(folder: Path, images: int, volumes: int) -> tuple[list[Path], list[Path]]:
    """Write images of noise on a slope, PNG and JPEG by turns, and compressed NIfTI volumes of noise."""
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 150, SIDE)[None, :].repeat(SIDE, 0)
    image_paths = [folder / f"{index:03d}.{'jpg' if index % 2 else 'png'}" for index in range(images)]
    for path in image_paths:
        Image.fromarray(np.clip(slope + generator.normal(0, 12, (SIDE, SIDE)), 0, 255).astype(np.uint8)).save(path)
    volume_paths = [folder / f"{index:03d}.nii.gz" for index in range(volumes)]
    for path in volume_paths:
        image: Any = sitk.GetImageFromArray(generator.integers(-1000, 1000, VOLUME).astype(np.int16))
        image.SetSpacing((0.7, 0.7, 2.0))
        sitk.WriteImage(image, str(path))
    return image_paths, volume_paths


def _read(path: Path) -> float:
    """Return the mean value of a file as this package reads it."""
    if path.suffix == ".gz":
        return float(read_volume(path, unit="HU").voxels.mean())
    return float(np.asarray(read_rgb(path)).mean())


def read_ahead(paths: Sequence[Path]) -> list[float]:
    """Read as the host's wrapper does: ahead in threads, handed over in batches."""
    means: dict[Path, float] = {}
    batches: Batches[Path, float, None, float] = Batches(
        BatchSize(8), _read, float, lambda _: None, lambda read, _: read, ahead=False
    )
    for batch, values, _ in batches.run(list(paths)):
        means |= dict(zip(batch, values, strict=True))
    return [means[path] for path in paths]


def read_in_loop(paths: Sequence[Path]) -> list[float]:
    """Read one file after the other with Pillow and SimpleITK, without any check."""
    means = []
    orient: Any = sitk.DICOMOrient
    for path in paths:
        if path.suffix == ".gz":
            oriented = orient(sitk.ReadImage(str(path)), "RAS")
            means.append(float(sitk.GetArrayFromImage(oriented).astype(np.float32).mean()))
        else:
            with Image.open(path) as opened:
                means.append(float(np.asarray(opened.convert("RGB")).mean()))
    return means


def check(ours: Sequence[float], baseline: Sequence[float]) -> None:
    """Check that both sides read the same pixels."""
    expect(np.allclose(ours, baseline, rtol=1e-4), "the same pixels", "different means", "tests/data")


def setup(run: Run, images: int, volumes: int) -> Sides:
    """Write the files; images and volumes alone are parts."""

    def sides(paths: Sequence[Path]) -> Sides:
        return Sides(partial(read_ahead, paths), partial(read_in_loop, paths), check, items=len(paths))

    image_paths, volume_paths = write_files(run.folder, images, volumes)
    parts = {"images": sides(image_paths), "volumes": sides(volume_paths)}
    return replace(sides([*image_paths, *volume_paths]), parts=parts)


BENCHMARK = Benchmark(
    name="readers",
    ours="readers with checks, in threads ahead of the model",
    baseline="a loop with Pillow and SimpleITK",
    setup=setup,
    sizes={"full": {"images": 96, "volumes": 12}, "quick": {"images": 4, "volumes": 1}},
    targets={("full", "cpu"): 1.8},
    repeats=5,
)
