"""A data set of drawn images or volumes whose documents are those of ``support.run_folders.outcomes``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from support.run_folders import LABELS, outcomes

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import DataError

COUNT = 24
BROKEN = "doc-00001"


class ToyImages(Layout):
    """Images of 640 x 480 pixels, or volumes of 12 slices; option ``broken`` makes one unreadable after its check."""

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        return [
            Document(row.id, row.id, row.label, row.group, "test") for row in outcomes(count=int(spec.options["count"]))
        ]

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        if spec.options.get("broken") and document.id == BROKEN:
            raise DataError(f"{document.id}: expected an image, got none.")
        seed = int(document.id[-5:])
        if spec.dimensions == 3:
            voxels = np.random.default_rng(seed).integers(0, 255, (12, 40, 40)).astype(np.float32)
            return Volume(voxels, (1.0, 1.0, 1.0), "RAS", "any")
        x, y = np.meshgrid(np.arange(640), np.arange(480))
        grey = (127 + 100 * np.sin(x / (7 + seed)) * np.cos(y / (5 + seed))).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        return f"{document.id} {spec.dimensions}"


def toy_spec(*, dimensions: int = 2, count: int = COUNT, **options: object) -> DatasetSpec:
    """The declaration of the data set ``toy``."""
    return DatasetSpec(
        name="toy",
        title="Toy images",
        layout="support.toy_layout:ToyImages",
        modality="drawing",
        dimensions=dimensions,
        classes={label: () for label in LABELS},
        options={"count": count, **options},
    )


def fingerprint(spec: DatasetSpec) -> str:
    """The fingerprint of its data."""
    return load_dataset(spec).fingerprint
