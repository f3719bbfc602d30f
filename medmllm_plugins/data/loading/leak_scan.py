"""Reading a whole data set to search for leaks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medmllm_plugins.data.core.leaks import MAX_COMPARED, Leaks, find_leaks, voxels_digest
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.data.readers.file_facts import THUMBNAIL, picture_facts
from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.utils.progress import Progress


def scan_for_leaks(data: Dataset) -> Leaks:
    """Read all images or volumes of a data set and search for leaks.

    Volumes are compared by their voxels. Up to :data:`MAX_COMPARED` images are compared for near-duplicates too.

    Raises:
        DataError: an image cannot be read any more.
    """
    documents, volumes = data.documents, data.spec.dimensions == 3
    few = len(documents) <= MAX_COMPARED and not volumes
    thumbnails = np.empty((len(documents) if few else 0, THUMBNAIL, THUMBNAIL), dtype=np.float32)

    def read(index: int) -> str:
        if volumes:
            return voxels_digest(data.volume(documents[index]))
        facts = picture_facts(data.image(documents[index]))
        if few:
            thumbnails[index] = facts.thumbnail
        return facts.content

    contents = []
    with (
        ThreadPoolExecutor(max_workers=reader_threads()) as pool,
        Progress(f"{data.spec.title}: reading for leaks", len(documents)) as progress,
    ):
        for content in pool.map(read, range(len(documents))):
            contents.append(content)
            progress.update()
    why = "" if few else f"more than {MAX_COMPARED} images: only identical ones are searched for"
    why = "volumes are compared for identical content only" if volumes else why
    with Progress(f"{data.spec.title}: comparing", None, "pairs"):
        return find_leaks(documents, contents, thumbnails if few and documents else None, why=why)
