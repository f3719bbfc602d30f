"""Layouts: how a data set's files become documents, by the name that declarations use."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.readers.pillow_images import read_rgb
from medmllm_plugins.errors import DataError, one_line, shown
from medmllm_plugins.utils.import_by_name import import_by_name

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume


class Layout(ABC):
    """A reader of one way to lay out a data set. It has no state: every method takes the declaration and the folder."""

    @abstractmethod
    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """List all documents, having checked every file; nothing is written below ``folder``.

        Args:
            spec: the declaration.
            folder: the data set's folder; of generated sets an empty path.
            faults: what is wrong goes here; what is left after ``faults.stop()`` is good.

        Raises:
            DataError: something is wrong with the data; one error with all faults.
        """

    @abstractmethod
    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Read the document's image, in mode ``RGB``, or in a set of volumes its volume.

        Raises:
            DataError: the image cannot be read any more.
        """

    def mask(self, spec: DatasetSpec, folder: Path, document: Document) -> npt.NDArray[np.bool_] | None:
        """Return where the finding is on the document's image, (height, width), bool; ``None`` if the set has no masks.

        Raises:
            DataError: the mask cannot be read.
        """
        return None

    def is_there(self, spec: DatasetSpec, folder: Path) -> bool:
        """Return whether the set seems to be in its folder; nothing is read."""
        return folder.is_dir()

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return a checksum of the document's content that is the same on every machine: here that of the pixels."""
        image = self.image(spec, folder, document)
        if not isinstance(image, Image.Image):
            raise DataError(f"{type(self).__name__}: expected a layout of volumes to define `digest`, got none.")
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def check_classes(spec: DatasetSpec, classes: Iterable[str]) -> None:
    """Check that a declaration has the classes of its layout.

    Raises:
        DataError: it has others.
    """
    if set(spec.labels) != set(classes):
        raise DataError(
            f"{spec.title}: expected the classes {sorted(classes)}, which layout {spec.layout!r} has, got "
            f"{sorted(spec.labels)}. Correct the declaration."
        )


class FileLayout(Layout):
    """A layout with one image file for each document."""

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Read the file as RGB; see :func:`medmllm_plugins.data.readers.pillow_images.read_rgb` for the errors."""
        return read_rgb(folder / document.image)

    def digest(self, spec: DatasetSpec, folder: Path, document: Document) -> str:
        """Return the SHA-256 of the file, or of a folder's files in the order of their names."""
        path = folder / document.image
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()


_LAYOUTS = {
    "busi": "medmllm_plugins.data.layouts.busi:Busi",
    "chest_xray": "medmllm_plugins.data.layouts.chest_xray:ChestXray",
    "covid19_ct": "medmllm_plugins.data.layouts.covid19_ct:Covid19CT",
    "ct_rate": "medmllm_plugins.data.layouts.ct_rate:CTRate",
    "medmnist": "medmllm_plugins.data.layouts.medmnist:MedMNIST",
    "pcam": "medmllm_plugins.data.layouts.pcam:PCam",
    "phantoms": "medmllm_plugins.data.layouts.phantoms:Phantoms",
    "table": "medmllm_plugins.data.layouts.user_table:Table",
}


def layout(name: str) -> Layout:
    """Make the layout of that name, ours or ``"package.module:Class"``; its module is imported now and not before.

    Raises:
        DataError: no layout has that name.
    """
    target = _LAYOUTS.get(name, name)
    if not target.partition(":")[2]:
        raise DataError(
            f'Expected `layout` to be one of {sorted(_LAYOUTS)} or "package.module:Class", got {shown(name)}.'
        )
    try:
        made = import_by_name(target)()
    except Exception as error:  # a plugin's module may raise anything while it is imported
        raise DataError(
            f"Expected the layout {shown(name)} to be a class that can be made, got {one_line(error)}"
        ) from error
    if not isinstance(made, Layout):
        raise DataError(
            f"Expected the layout {shown(name)} to be a medmllm_plugins.data.layouts.layout_registry.Layout, got "
            f"{shown(made)}."
        )
    return made
