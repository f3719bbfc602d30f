"""Layout of the paediatric chest X-rays of Kermany et al., Cell 172, 1122 (2018), in both published releases."""

from __future__ import annotations

import re
from pathlib import Path

from medmllm_plugins.data.core.data_faults import Faults, relative
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.core.folds import grouped_folds
from medmllm_plugins.data.layouts.class_folders import LabelledFile, image_files, joined_sources, scan, subfolders
from medmllm_plugins.data.layouts.layout_registry import FileLayout
from medmllm_plugins.errors import DataError

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
        if set(spec.labels) != set(CLASS_FOLDERS.values()):
            raise DataError(
                f"{spec.title}: layout {spec.layout!r} has the classes {list(CLASS_FOLDERS.values())}, "
                f"the declaration {list(spec.labels)}."
            )
        top = folder / INNER_FOLDER if (folder / INNER_FOLDER / "train").is_dir() else folder
        files: list[LabelledFile] = []
        pools: dict[str, str] = {}
        for split, pool in _POOLS.items():
            if split == "val" and not (top / split).is_dir():
                continue
            if (top / split).is_dir():
                for path in subfolders(top / split):
                    if path.name not in CLASS_FOLDERS:
                        faults.add(f"{path}: expected the class folders NORMAL/ and PNEUMONIA/ only, got another")
            for name, label in CLASS_FOLDERS.items():
                for path in image_files(top / split / name, faults):
                    identifier = f"{split}/{name}/{path.stem}"
                    files.append(LabelledFile(identifier, path, label, f"{pool}/{_patient(path, faults)}"))
                    pools[identifier] = pool
        files, facts = scan(files, faults)
        faults.stop()

        groups = joined_sources(files, facts)
        folds: dict[str, Fold] = {file.id: "test" for file in files}
        rest = [(file, group) for file, group in zip(files, groups, strict=True) if pools[file.id] == "train"]
        divided = grouped_folds(
            [file.id for file, _ in rest],
            [file.label for file, _ in rest],
            [group for _, group in rest],
            fractions=(0.8, 0.2, 0.0),
        )
        folds |= {file.id: fold for (file, _), fold in zip(rest, divided, strict=True)}
        return [
            Document(file.id, relative(file.path, folder), file.label, group, folds[file.id])
            for file, group in zip(files, groups, strict=True)
        ]


def _patient(path: Path, faults: Faults) -> str:
    for pattern in _PATIENTS:
        if match := pattern.fullmatch(path.stem):
            return match["patient"]
    faults.add(f"{path}: expected a name like person1_virus_6, IM-0115-0001 or BACTERIA-1008087-0001, got another")
    return path.stem
