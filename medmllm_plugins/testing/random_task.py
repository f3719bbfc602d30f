"""A task about random images or volumes, to answer it as an evaluation does."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.layouts.layout_registry import Layout
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import DataError
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_settings import read_settings
from medmllm_plugins.runtime.requests import TaskRequest
from medmllm_plugins.testing.example_documents import random_image, random_volume

DOCUMENTS = 18


class RandomDocuments(Layout):
    """Random images, or volumes where the declaration says ``dimensions: 3``; no files."""

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """List the documents, each a group of its own."""
        return [
            Document(
                id=f"random-{index:02d}",
                image=str(index),
                label=spec.labels[index % len(spec.labels)],
                group=f"group-{index:02d}",
                fold=FOLDS[index * len(FOLDS) // DOCUMENTS],
            )
            for index in range(DOCUMENTS)
        ]

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Return the image or volume of a document."""
        if not document.image.isdigit():
            raise DataError(f"{document.id}: expected a number of a random image, got {document.image!r}.")
        index = int(document.image)
        if spec.dimensions == 3:
            return random_volume(index, 30 + index)
        return random_image(index, (48 + 4 * index, 64))

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return a checksum of the document's number, which its content follows from."""
        return hashlib.sha256(f"{spec.dimensions} {document.image}".encode()).hexdigest()


@functools.cache
def random_content(dimensions: int) -> TaskContent:
    """Return a task of the test fold with six documents, 2D or 3D."""
    declaration = {
        "name": f"random{dimensions}d",
        "title": "Random documents",
        "layout": "medmllm_plugins.testing.random_task:RandomDocuments",
        "modality": "image",
        "classes": {"benign": [], "malignant": []},
        "dimensions": dimensions,
    }
    name = f"med_cls_random{dimensions}d"
    settings = read_settings(name, {"medmllm": {"dataset": declaration}})
    return TaskContent(name, settings, load_dataset(settings.dataset))


def random_requests(*, volumes: bool) -> Sequence[TaskRequest]:
    """Return the questions of :func:`random_content`, as an evaluation asks them."""
    return requests_of(random_content(3 if volumes else 2), max_new_tokens=6)


def requests_of(content: TaskContent, max_new_tokens: int) -> list[TaskRequest]:
    """Return the questions of a task about the documents that are evaluated, as the host asks them."""

    def messages(row: Row) -> list[dict[str, Any]]:
        images = [{"type": "image", "url": image} for image in content.images(row)]
        return [{"role": "user", "content": [*images, {"type": "text", "text": content.question(row).text}]}]

    return [
        TaskRequest(
            task=content.name,
            split="test",
            index=index,
            repeat=0,
            generation={"max_new_tokens": max_new_tokens, "until": ["\n"]},
            rows=content.row_list,
            to_messages=messages,
            content=content,
        )
        for index in content.evaluated
    ]
