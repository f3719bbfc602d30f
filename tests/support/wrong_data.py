"""Layouts that are wrong in one way each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.testing.random_task import RandomDocuments


def declare(layout: str = "", **more: Any) -> DatasetSpec:
    """Declare a set of random images with one of the layouts below."""
    target = f"support.wrong_data:{layout}" if layout else "medmllm_plugins.testing.random_task:RandomDocuments"
    fields = {"name": "own", "title": "Own", "layout": target, "modality": "image", "classes": {"a": [], "b": []}}
    return parse_spec({**fields, **more}, "own.yaml")


class GreyImages(RandomDocuments):
    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        image = super().image(spec, folder, document)
        assert isinstance(image, Image.Image)
        return image.convert("L")


class DividedGroups(RandomDocuments):
    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        return [
            replace(document, group=f"patient-{index % 5}")
            for index, document in enumerate(super().documents(spec, folder, faults))
        ]


class EqualImages(RandomDocuments):
    """Shows the first document once more in the test fold, as another patient."""

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        documents = super().documents(spec, folder, faults)
        return [*documents[:-1], replace(documents[-1], image=documents[0].image)]


class OneClassTested(RandomDocuments):
    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        documents = super().documents(spec, folder, faults)
        return [replace(item, label="a") if item.fold == "test" else item for item in documents]


class DrawnFolds(RandomDocuments):
    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        folds = np.random.default_rng().permutation(np.repeat(FOLDS, 6))
        documents = super().documents(spec, folder, faults)
        return [replace(item, fold=str(fold)) for item, fold in zip(documents, folds, strict=True)]  # type: ignore[arg-type]


class PlainErrors(RandomDocuments):
    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        return super().image(spec, folder, replace(document, image=str(int(document.image))))
