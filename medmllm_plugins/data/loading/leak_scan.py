"""Reading a whole data set to search for leaks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medmllm_plugins.data.core.leaks import MAX_COMPARED, Leaks, find_leaks, voxels_digest
from medmllm_plugins.data.loading.dataset import Dataset
from medmllm_plugins.data.readers.pillow_images import picture_facts
from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.data.readers.thumbnails import THUMBNAIL


def scan_for_leaks(data: Dataset) -> Leaks:
    """Read all images or volumes of a data set and search for leaks.

    Volumes are compared by their voxels. Up to :data:`MAX_COMPARED` images are compared for near-duplicates too.

    Raises:
        DataError: an image cannot be read any more.
    """
    documents = data.documents
    if data.spec.dimensions == 3:
        with ThreadPoolExecutor(max_workers=reader_threads()) as pool:
            contents = list(pool.map(lambda document: voxels_digest(data.volume(document)), documents))
        return find_leaks(documents, contents, None, why="volumes are compared for identical content only")
    few = len(documents) <= MAX_COMPARED

    thumbnails = np.empty((len(documents) if few else 0, THUMBNAIL, THUMBNAIL), dtype=np.float32)

    def read(index: int) -> str:
        facts = picture_facts(data.image(documents[index]))
        if few:
            thumbnails[index] = facts.thumbnail
        return facts.pixels

    with ThreadPoolExecutor(max_workers=reader_threads()) as pool:
        contents = list(pool.map(read, range(len(documents))))
    if not few:
        why = f"more than {MAX_COMPARED} images: only identical ones are searched for"
        return find_leaks(documents, contents, None, why=why)
    return find_leaks(documents, contents, thumbnails if documents else None)
