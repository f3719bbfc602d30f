"""Layout of the paediatric chest X-rays of Kermany et al., Cell 172, 1122 (2018), in both published releases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.folds import divide_train
from medmllm_plugins.data.layouts.class_folders import LabelledFile, checked_documents, image_files, subfolders
from medmllm_plugins.data.layouts.layout_registry import FileLayout, check_classes

CLASS_FOLDERS = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
"""Published folder to class."""
INNER_FOLDER = "chest_xray"
"""Folder in the archive, which some unpack into a folder of the same name."""

_POOLS = {"train": "train", "val": "train", "test": "test"}
_PATIENTS = (
    re.compile(r"(?P<patient>person\d+)_(?:bacteria|virus)_\d+"),  # person1_bacteria_2.jpeg
    re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?"),  # IM-0115-0001.jpeg, NORMAL2-IM-1427-0001.jpeg
    re.compile(r"(?P<patient>(?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+"),  # BACTERIA-1008087-0001.jpeg
)


class ChestXray(FileLayout):
    """``{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``; the release without ``val`` has the two other folders only.

    A document's id is its path without the ending. Patients are read from file names; their numbers start again
    in ``test``, so the pool is part of the group, and near-duplicates join groups. The official test fold stays as it
    is. ``val`` has 16 images, too few for anything: it is put to ``train``, and a fifth of both, by patient, becomes
    the validation fold.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read and check the whole set; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        check_classes(spec, CLASS_FOLDERS.values())
        top = folder / INNER_FOLDER if (folder / INNER_FOLDER / "train").is_dir() else folder
        files: list[LabelledFile] = []
        for split, pool in _POOLS.items():
            if split == "val" and not (top / split).is_dir():
                continue
            if (top / split).is_dir():
                for path in subfolders(top / split):
                    if path.name not in CLASS_FOLDERS:
                        faults.add(f"{path}: expected the class folders NORMAL/ and PNEUMONIA/ only, got another")
            for name, label in CLASS_FOLDERS.items():
                for path in image_files(top / split / name, faults):
                    source = f"{pool}/{_patient(path, faults)}"
                    files.append(LabelledFile(f"{split}/{name}/{path.stem}", path, label, source))
        return checked_documents(files, folder, faults, _folds)


def _folds(files: Sequence[LabelledFile], groups: Sequence[str]) -> list[Fold]:
    """Return the official test fold, and a fifth of the rest, by patient, as validation."""
    official: list[Fold] = ["test" if file.source.startswith("test/") else "train" for file in files]
    return divide_train([file.id for file in files], [file.label for file in files], groups, official)


def _patient(path: Path, faults: Faults) -> str:
    for pattern in _PATIENTS:
        if match := pattern.fullmatch(path.stem):
            return match["patient"]
    faults.add(f"{path}: expected a name like person1_virus_6, IM-0115-0001 or BACTERIA-1008087-0001, got another")
    return path.stem
