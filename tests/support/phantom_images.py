"""The embedded phantoms without their fingerprint, for which the whole data set would be drawn."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.layouts.phantoms import Phantoms, phantom, records
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset


def phantom_dataset() -> Dataset:
    """Open the data set ``demo``; its images are drawn when they are asked for."""
    spec, layout = dataset_specs()["demo"], Phantoms()
    documents = tuple(layout.documents(spec, Path(), Faults("", "")))
    return Dataset(spec, documents, "phantoms", Path(), layout, (), ())


def phantom_images(fold: Fold, count: int | None = None) -> tuple[list[Image.Image], list[str]]:
    """Return the first images of a fold in the set's order, all of them by default, and their labels."""
    indices = [index for index, record in enumerate(records()) if record.fold == fold][:count]
    images = [Image.fromarray(phantom(index).image).convert("RGB") for index in indices]
    return images, [records()[index].label for index in indices]
