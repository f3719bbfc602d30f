"""Loading a declared data set: everything that can be wrong with it is found here, before any model is loaded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core import fold_manifest
from medmllm_plugins.data.core.data_faults import Faults, OnError
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS, Document, Fold
from medmllm_plugins.data.core.label_warnings import label_warnings
from medmllm_plugins.data.core.leaks import divided_groups
from medmllm_plugins.data.layouts.class_folders import repeated_ids
from medmllm_plugins.data.layouts.layout_registry import Layout, layout
from medmllm_plugins.data.loading import check_cache
from medmllm_plugins.data.loading.dataset_folder import require_folder
from medmllm_plugins.data.readers.reader_threads import reader_threads
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.progress import Progress

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A data set that was read and checked.

    Attributes:
        documents: all documents, sorted by id.
        fingerprint: SHA-256, in hexadecimal, over ids, labels, groups, folds, contents (of generated sets, the pixels)
            and declared further columns; it changes when any of them does, and not with the place of the folder.
        folder: the data set's folder; of generated sets an empty path.
        skipped: faults of the files that were left out, with ``on_error="skip"``.
        warnings: sentences on what is doubtful about labels and folds of a user's own set. One on files that have the
            same content and different labels is there only where the files were read, and not remembered.
    """

    spec: DatasetSpec
    documents: tuple[Document, ...]
    fingerprint: str
    folder: Path
    reader: Layout = field(repr=False, compare=False)
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def image(self, document: Document) -> Image.Image:
        """Read the document's image in mode ``RGB``.

        Raises:
            DataError: the image cannot be read any more, or the set holds volumes.
        """
        image = self.reader.image(self.spec, self.folder, document)
        if not isinstance(image, Image.Image):
            raise DataError(f"{self.spec.title} holds volumes, not images: {document.id} cannot be read as one image.")
        return image

    def volume(self, document: Document) -> Volume:
        """Read the document's volume.

        Raises:
            DataError: it cannot be read any more, or the set holds images.
        """
        volume = self.reader.image(self.spec, self.folder, document)
        if isinstance(volume, Image.Image):
            raise DataError(f"{self.spec.title} holds images, not volumes: {document.id} cannot be read as a volume.")
        return volume

    def mask(self, document: Document) -> npt.NDArray[np.bool_] | None:
        """Return where the finding is on the document's image, (height, width), bool; ``None`` if the set has no masks.

        Raises:
            DataError: the mask cannot be read.
        """
        return self.reader.mask(self.spec, self.folder, document)

    @property
    def folds_hash(self) -> str:
        """A digest that is equal on two machines if their folds are the same."""
        return fold_manifest.folds_hash(self.documents)

    def select(self, folds: Iterable[Fold]) -> tuple[Document, ...]:
        """Return the documents of some folds, sorted by id.

        Raises:
            ValueError: there is no fold of that name.
        """
        wanted = set(folds)
        if unknown := wanted - set(FOLDS):
            raise ValueError(f"Expected folds among {list(FOLDS)}, got {sorted(unknown)}.")
        return tuple(document for document in self.documents if document.fold in wanted)

    def counts(self) -> dict[Fold, dict[str, int]]:
        """Return the number of documents by fold and class, zeros included, classes in prompt order.

        A document of a multi-label set counts once for each of its findings.
        """
        table: dict[Fold, dict[str, int]] = {fold: dict.fromkeys(self.spec.labels, 0) for fold in FOLDS}
        for document in self.documents:
            for label in document.labels:
                table[document.fold][label] += 1
        return table


def load_dataset(spec: DatasetSpec, *, root: Path | None = None, on_error: OnError = "raise") -> Dataset:
    """Read and check a whole data set; nothing is written to its folder.

    Every image is decoded in full, in threads. All faults (unreadable images, empty or unexpected class folders, labels
    that are no class, two files with one id) are collected into one error.

    Args:
        spec: the declaration.
        root: the folder that holds the data set's folder; default: environment variable ``MEDMLLM_DATA``. Not used for
            generated sets (those without ``spec.folder``) and for those with an absolute folder.
        on_error: ``"skip"`` leaves files out that cannot be read, and lists them.

    Raises:
        DataError: the folder is missing or something in it is wrong.
    """
    folder = require_folder(spec, root) if spec.folder else Path()
    reader = layout(spec.layout)
    faults = Faults(
        spec.title, str(folder) if spec.folder else f"layout {spec.layout!r}", download=spec.download, on_error=on_error
    )
    key = check_cache.state(spec, folder, on_error) if spec.folder else None
    known = check_cache.recall(spec.name, key)
    if known is not None:
        fingerprint, documents = known
    else:
        try:
            with Progress(f"{spec.title}: reading and checking files", None, "files"):
                documents = tuple(sorted(reader.documents(spec, folder, faults), key=lambda document: document.id))
            for fault in _faults(spec, documents):
                faults.add(fault)
            faults.stop()
            fingerprint = _fingerprint(spec, folder, documents, reader)
        except OSError as error:
            raise DataError(f"{spec.title}: expected files that can be read, got {error}.") from error
        faults.report()
        if not faults.skipped:
            check_cache.remember(spec.name, key, fingerprint, documents)
    _warn_of_leaks(spec, documents)
    warnings = [*faults.warnings, *(label_warnings(spec, documents) if spec.layout == "table" else ())]
    for warning in warnings:
        logger.warning("%s: %s", spec.title, warning)
    return Dataset(spec, documents, fingerprint, folder, reader, tuple(faults.skipped), tuple(warnings))


def _faults(spec: DatasetSpec, documents: tuple[Document, ...]) -> list[str]:
    """Return faults that no layout may leave, built in or not."""
    labels = set(spec.labels)
    faults = [
        f"{document.image}: expected a label among {list(spec.labels)}, got {document.label!r}"
        for document in documents
        if not labels.issuperset(document.labels) or isinstance(document.label, str) != (spec.kind != "multilabel")
    ]
    faults += [
        f"{document.image}: expected a fold among {list(FOLDS)}, got {document.fold!r}"
        for document in documents
        if document.fold not in FOLDS
    ]
    present = {label for document in documents for label in document.labels}
    if spec.kind != "multilabel":
        faults += [f"class {label!r}: expected images, got none" for label in spec.labels if label not in present]
    elif not documents:
        faults.append("expected images, got none")
    return faults + repeated_ids((document.id, document.image) for document in documents)


def _fingerprint(spec: DatasetSpec, folder: Path, documents: tuple[Document, ...], reader: Layout) -> str:
    contents = []
    with (
        ThreadPoolExecutor(max_workers=reader_threads()) as pool,
        Progress(f"{spec.title}: fingerprint", len(documents)) as progress,
    ):
        for content in pool.map(lambda document: reader.digest(spec, folder, document), documents):
            contents.append(content)
            progress.update()
    digest = hashlib.sha256()
    for document, content in zip(documents, contents, strict=True):
        # repr quotes and escapes, so that no two rows read alike.
        facts = (document.id, document.labels, document.group, document.fold, content)
        # A set without further columns has the fingerprint of its images and labels alone.
        digest.update(repr((*facts, document.attributes) if document.attributes else facts).encode())
    return digest.hexdigest()


def _warn_of_leaks(spec: DatasetSpec, documents: tuple[Document, ...]) -> None:
    divided = divided_groups(documents)
    leaking = sum(document.fold == "test" and document.group in divided for document in documents)
    if leaking:
        logger.warning(
            "%s: %d of %d test documents share a group (patient, lesion, source or near-duplicate) with another fold; "
            "`medmllm datasets --check %s` lists them.",
            spec.title,
            leaking,
            sum(document.fold == "test" for document in documents),
            spec.name,
        )
