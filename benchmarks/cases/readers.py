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


def write_images(folder: Path, count: int, side: int = 1024) -> list[Path]:
    """Write images of noise on a slope, PNG and JPEG by turns."""
    generator = np.random.default_rng(0)
    slope = np.linspace(0, 150, side)[None, :].repeat(side, 0)
    paths = [folder / f"{index:03d}.{'jpg' if index % 2 else 'png'}" for index in range(count)]
    for path in paths:
        Image.fromarray(np.clip(slope + generator.normal(0, 12, (side, side)), 0, 255).astype(np.uint8)).save(path)
    return paths


def write_volumes(folder: Path, count: int, shape: tuple[int, int, int] = (64, 256, 256)) -> list[Path]:
    """Write compressed NIfTI volumes of noise."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{index:03d}.nii.gz" for index in range(count)]
    for path in paths:
        image: Any = sitk.GetImageFromArray(generator.integers(-1000, 1000, shape).astype(np.int16))
        image.SetSpacing((0.7, 0.7, 2.0))
        sitk.WriteImage(image, str(path))
    return paths


def _read(path: Path) -> float:
    """Return the mean value of a file as this package reads it."""
    if path.suffix in (".jpg", ".png"):
        return float(np.asarray(read_rgb(path)).mean())
    return float(read_volume(path, unit="HU").voxels.mean())


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
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as opened:
                means.append(float(np.asarray(opened.convert("RGB")).mean()))
        else:
            oriented = orient(sitk.ReadImage(str(path)), "RAS")
            means.append(float(sitk.GetArrayFromImage(oriented).astype(np.float32).mean()))
    return means


def check(ours: Sequence[float], baseline: Sequence[float]) -> None:
    """Check that both sides read the same pixels."""
    expect(np.allclose(ours, baseline, rtol=1e-4), "the same pixels", "different means", "tests/data")


def setup(run: Run) -> Sides:
    """Write the files; images and volumes alone are parts."""

    def sides(paths: Sequence[Path]) -> Sides:
        return Sides(partial(read_ahead, paths), partial(read_in_loop, paths), check, items=len(paths))

    images, volumes = write_images(run.folder, run.size[0]), write_volumes(run.folder, run.size[1])
    return replace(sides([*images, *volumes]), parts={"images": sides(images), "volumes": sides(volumes)})


BENCHMARK = Benchmark(
    name="readers",
    ours="readers with checks, in threads ahead of the model",
    baseline="a loop with Pillow and SimpleITK",
    setup=setup,
    sizes={"full": (96, 12), "quick": (4, 1)},
    targets={("full", "cpu"): 1.8},
    repeats=5,
)
