"""Loading a declared data set: everything that can be wrong with it is found here, before any model is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from medmllm_plugins.data.class_folders import raise_faults, repeated_ids
from medmllm_plugins.data.documents import FOLDS, Document, Fold
from medmllm_plugins.data.layouts import Layout, layout
from medmllm_plugins.data.spec import DatasetSpec
from medmllm_plugins.errors import DataError

DATA_VARIABLE = "MEDMLLM_DATA"
"""Environment variable with the folder that holds the data sets' folders."""


@dataclass(frozen=True)
class Dataset:
    """A data set that was read and checked.

    Attributes:
        spec: its declaration.
        documents: all documents, sorted by id.
        fingerprint: SHA-256, in hexadecimal, over ids, labels, groups, folds, file sizes and file contents (for
            generated sets, the pixels); it changes when any of them does, and not with the place of the folder.
        reader: the layout that reads the images.
    """

    spec: DatasetSpec
    documents: tuple[Document, ...]
    fingerprint: str
    reader: Layout | None = field(default=None, repr=False, compare=False)

    def image(self, document: Document) -> Image.Image:
        """The document's image in mode ``RGB``.

        Raises:
            DataError: the image cannot be read any more.
        """
        reader = layout(self.spec.layout) if self.reader is None else self.reader
        return reader.image(document)

    def select(self, folds: Iterable[Fold]) -> tuple[Document, ...]:
        """The documents of some folds, sorted by id.

        Raises:
            ValueError: there is no fold of that name.
        """
        wanted = set(folds)
        if unknown := wanted - set(FOLDS):
            raise ValueError(f"Expected folds among {list(FOLDS)}, found {sorted(unknown)}.")
        return tuple(document for document in self.documents if document.fold in wanted)

    def counts(self) -> dict[Fold, dict[str, int]]:
        """Number of documents by fold and label, zeros included, labels in prompt order."""
        table: dict[Fold, dict[str, int]] = {fold: dict.fromkeys(self.spec.labels, 0) for fold in FOLDS}
        for document in self.documents:
            table[document.fold][document.label] += 1
        return table


def load_dataset(spec: DatasetSpec, *, root: Path | None = None) -> Dataset:
    """Read and check a whole data set; nothing is written to its folder.

    Every image is decoded in full, in threads. All faults (unreadable images, empty or unexpected class folders, labels
    that are no class, two files with one id) are collected into one error.

    Args:
        spec: the declaration.
        root: the folder that holds the data set's folder; default: environment variable ``MEDMLLM_DATA``. Not used for
            generated sets (those without ``spec.folder``).

    Raises:
        DataError: the folder is missing or something in it is wrong.
    """
    place = _root(spec, root) if spec.folder else None
    reader = layout(spec.layout)
    try:
        documents = tuple(sorted(reader.documents(spec, place), key=lambda document: document.id))
        raise_faults(spec, str(place / spec.folder) if place else f"layout {spec.layout!r}", _faults(spec, documents))
        fingerprint = _fingerprint(documents, reader, from_files=place is not None)
    except OSError as error:
        raise DataError(f"{spec.title}: expected files that can be read, found {error}.") from error
    return Dataset(spec=spec, documents=documents, fingerprint=fingerprint, reader=reader)


def _root(spec: DatasetSpec, root: Path | None) -> Path:
    """The folder with the data set's folder in it, absolute; an error that says how to get the set where not."""
    get = f"Get the set from {spec.download}" if spec.download else "Put the set there"
    if root is None:
        value = os.environ.get(DATA_VARIABLE)
        if not value:
            raise DataError(
                f"{spec.title}: expected the environment variable {DATA_VARIABLE} to name the folder that holds "
                f"{spec.folder}/, found it unset. {get}, then: export {DATA_VARIABLE}=FOLDER."
            )
        root = Path(value)
    root = root.expanduser().absolute()
    folder = root / spec.folder
    if not folder.is_dir():
        found = "a file of that name" if folder.exists() else "none" if root.is_dir() else f"not even {root}"
        raise DataError(
            f"{spec.title}: expected the folder {folder}, found {found}. {get}, and set {DATA_VARIABLE} to the folder "
            f"that holds {spec.folder}/."
        )
    return root


def _faults(spec: DatasetSpec, documents: tuple[Document, ...]) -> list[str]:
    """What no layout may return, built in or not."""
    labels = spec.labels
    faults = [
        f"{document.image}: expected a label among {list(labels)}, found {document.label!r}"
        for document in documents
        if document.label not in labels
    ]
    faults += [
        f"{document.image}: expected a fold among {list(FOLDS)}, found {document.fold!r}"
        for document in documents
        if document.fold not in FOLDS
    ]
    present = {document.label for document in documents}
    faults += [f"class {label!r}: expected images, found none" for label in labels if label not in present]
    return faults + repeated_ids((document.id, document.image) for document in documents)


def _fingerprint(documents: tuple[Document, ...], reader: Layout, *, from_files: bool) -> str:
    def content(document: Document) -> tuple[int, str]:
        if from_files:
            data = Path(document.image).read_bytes()
        else:
            image = reader.image(document)
            data = repr(image.size).encode() + image.tobytes()
        return len(data), hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        contents = list(pool.map(content, documents))
    digest = hashlib.sha256()
    for document, (size, content_digest) in zip(documents, contents, strict=True):
        row = (document.id, document.label, document.group, document.fold, str(size), content_digest)
        # repr quotes and escapes, so that no two rows read alike.
        digest.update(repr(row).encode())
    return digest.hexdigest()
