"""Layout of BUSI, the breast ultrasound images of Al-Dhabyani et al., Data in Brief 28, 104863 (2020)."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.layouts.class_folders import LabelledFile, checked_documents, image_files, subfolders
from medmllm_plugins.data.layouts.layout_registry import FileLayout
from medmllm_plugins.data.readers.pillow_images import read_rgb
from medmllm_plugins.errors import DataError

ARCHIVE_FOLDER = "Dataset_BUSI_with_GT"
"""The folder in the published archive; its content may also lie in the data set's folder directly."""

_NAME = re.compile(r"(?P<label>.+) \(\d+\)(?P<mask>_mask(_\d+)?)?")


class Busi(FileLayout):
    """``Dataset_BUSI_with_GT/<class>/<class> (n).png``; the class folders are the classes of the declaration.

    Lesion masks (``<class> (n)_mask.png``, ``_mask_1.png``) are in the same folders and are no documents. A document's
    id is the file name without its ending, ``benign (1)``, as it holds the class. The authors publish no patient ids,
    so the only groups are near-duplicates, some of them in two classes; a group bears the first of its ids. There is no
    official split: the folds are :func:`medmllm_plugins.data.core.folds.grouped_folds` with seed 0.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read and check the whole set; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        top = folder / ARCHIVE_FOLDER if (folder / ARCHIVE_FOLDER).is_dir() else folder
        expected = ", ".join(f"{label}/" for label in spec.labels)
        for path in subfolders(top):
            if path.name not in spec.labels:
                faults.add(f"{path}: expected the class folders {expected} only, got an unexpected class folder")
        files: list[LabelledFile] = []
        for label in spec.labels:
            for path in image_files(top / label, faults):
                match = _NAME.fullmatch(path.stem)
                if match is None or match["label"] != label:
                    faults.add(f'{path}: expected a name like "{label} (1).png", got another')
                elif not match["mask"]:
                    files.append(LabelledFile(id=path.stem, path=path, label=label, source=path.stem))
        return checked_documents(files, folder, faults)

    def mask(self, spec: DatasetSpec, folder: Path, document: Document) -> npt.NDArray[np.bool_] | None:
        """Return the union of the image's lesion masks, (height, width), bool; ``None`` if it has no mask."""
        path = folder / document.image
        files = [
            path.with_name(f"{path.stem}_mask{path.suffix}"),
            *path.parent.glob(f"{glob.escape(path.stem)}_mask_*.png"),
        ]
        masks = [np.asarray(read_rgb(file)).max(-1) > 127 for file in files if file.is_file()]
        if not masks:
            return None
        if len({mask.shape for mask in masks}) > 1:
            raise DataError(f"{path}: expected masks of one size, got {[mask.shape for mask in masks]}.")
        lesions: npt.NDArray[np.bool_] = np.logical_or.reduce(masks)
        return lesions
