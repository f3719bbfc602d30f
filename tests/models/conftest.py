"""Tiny checkpoints and images for the tests of model loading and generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_medm_vl import write_checkpoint

from medmllm_plugins.models.formats.medm_vl import MedMVL, load
from medmllm_plugins.models.options import LoadOptions

torch.set_num_threads(1)


def random_image(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    return random_image


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> MedMVL:
    return load(LoadOptions(str(tiny_folder), device="cpu", dtype="float32"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint that a test may spoil."""
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
