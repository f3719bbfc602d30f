"""Layout of a user's own images or volumes, labelled by a CSV table or by the folders they are in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from medmllm_plugins.data.core.data_faults import Faults, relative
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.dicom_set_checks import dicom_warnings
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.folds import divide_train, grouped_folds, rarest_labels
from medmllm_plugins.data.core.label_warnings import two_labels
from medmllm_plugins.data.core.leaks import MAX_COMPARED, voxels_digest
from medmllm_plugins.data.layouts.class_folders import joined_groups, repeated_ids
from medmllm_plugins.data.layouts.layout_registry import FileLayout
from medmllm_plugins.data.layouts.table_entries import Entry, entries
from medmllm_plugins.data.layouts.table_options import TableOptions, table_options
from medmllm_plugins.data.readers.file_facts import FileFacts, picture_facts, scan_files
from medmllm_plugins.data.readers.image_reader import picture_size, read_picture

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

logger = logging.getLogger(__name__)


class Table(FileLayout):
    """Images or volumes in a folder, and a table with a row for each; or folders that are named like the classes.

    A document's id is its path below the folder without the ending, so that two files must not differ by their ending
    alone. Its group is that of the group column or pattern, or its own; groups that share a picture (near-duplicates,
    see :mod:`medmllm_plugins.data.core.duplicates`; of volumes, and beyond
    :data:`medmllm_plugins.data.core.leaks.MAX_COMPARED` images, identical ones) are joined. Folds that the set states
    are taken as they are, but if it states train and no validation, a fifth of train, by group, becomes validation.
    Otherwise folds are :func:`medmllm_plugins.data.core.folds.grouped_folds` with seed 0.

    Files that no row names are counted in the log and ignored. A row that cannot be used (no such file, a path that
    leads out of the folder, an empty cell, a damaged file) is a fault of one file; what makes the table itself
    doubtful (missing columns, unknown classes, an image in two rows) is a fault of the set.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read and check the whole set; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        listed = entries(spec, folder, faults)
        for fault in repeated_ids((entry.id, str(entry.path)) for entry in listed):
            faults.add(f"{fault}; rename one, or leave it out by the pattern")
        facts = self._read_all(spec, folder, [entry.path for entry in listed], faults)
        faults.stop()

        listed = [entry for entry in listed if entry.path in facts]
        groups = joined_groups([entry.source for entry in listed], [facts[entry.path] for entry in listed])
        documents = [
            Document(entry.id, relative(entry.path, folder), entry.label, group, fold, entry.attributes)
            for entry, group, fold in zip(listed, groups, _folds(listed, groups), strict=True)
        ]
        frame = table_options(spec).frame if spec.dimensions == 2 else ""
        warnings = dicom_warnings(folder, documents, frame=frame)
        warnings += two_labels(
            [facts[entry.path].content for entry in listed],
            [entry.id for entry in listed],
            [entry.labels for entry in listed],
            "volume" if spec.dimensions == 3 else "image",
        )
        for warning in warnings:
            faults.warn(warning)
        return documents

    def image(self, spec: DatasetSpec, folder: Path, document: Document) -> Image.Image | Volume:
        """Read the document's picture or volume.

        See :func:`medmllm_plugins.data.readers.image_reader.read_picture` and
        :func:`medmllm_plugins.data.readers.volumes.read_volume` for the errors.
        """
        path = folder / document.image
        options = table_options(spec)
        return _read_volume(path, options) if spec.dimensions == 3 else read_picture(path, options.picture)

    def check_file(self, spec: DatasetSpec, folder: Path, path: Path) -> FileFacts:
        """Read a file whole before an evaluation; a subclass may know a cheaper check.

        Raises:
            DataError: it is damaged.
        """
        if spec.dimensions == 3:
            return FileFacts(voxels_digest(_read_volume(path, table_options(spec))))
        return picture_facts(read_picture(path, table_options(spec).picture))

    def _read_all(
        self, spec: DatasetSpec, folder: Path, paths: Sequence[Path], faults: Faults
    ) -> dict[Path, FileFacts]:
        few = len(paths) <= MAX_COMPARED
        if spec.dimensions == 2 and not few:
            logger.warning("%s: more than %d images, so only identical ones are grouped", spec.title, MAX_COMPARED)

        def check(path: Path) -> FileFacts:
            facts = self.check_file(spec, folder, path)
            return facts if few else FileFacts(facts.content)

        facts, unreadable = scan_files(paths, check)
        for fault in unreadable:
            faults.file(fault)
        return facts


def size(spec: DatasetSpec, folder: Path, document: Document) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return size and spacing of a good document, from its header.

    Returns:
        Of an image width and height in pixels, and no spacing; of a volume both along z, y and x, in voxels and mm.

    Raises:
        DataError: the header cannot be read any more.
    """
    path = folder / document.image
    if spec.dimensions == 2:
        return picture_size(path), ()
    from medmllm_plugins.data.readers.volumes import volume_facts

    facts = volume_facts(path)
    return facts.shape, facts.spacing


def _read_volume(path: Path, options: TableOptions) -> Volume:
    from medmllm_plugins.data.readers.volumes import read_volume  # SimpleITK is slow to import

    unit = options.unit
    return read_volume(path, unit="HU" if unit == "HU" else "any" if unit else None)


def _folds(listed: Sequence[Entry], groups: Sequence[str]) -> list[Fold]:
    ids, strata = [entry.id for entry in listed], rarest_labels([entry.labels for entry in listed])
    folds = [entry.fold for entry in listed if entry.fold is not None]
    if not listed:
        return []
    if len(folds) < len(listed):
        return grouped_folds(ids, strata, groups)
    return divide_train(ids, strata, groups, folds) if "train" in folds and "validation" not in folds else folds
