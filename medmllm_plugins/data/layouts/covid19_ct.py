"""Layout of COVID19-CT, the COVID-CT-Dataset of Yang et al., arXiv:2003.13865 (2020)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import Document, Fold
from medmllm_plugins.data.layouts.class_folders import LabelledFile, checked_documents, divide, image_files, subfolders
from medmllm_plugins.data.layouts.layout_registry import FileLayout, check_classes
from medmllm_plugins.data.readers.pillow_images import SUFFIXES

logger = logging.getLogger(__name__)

CLASS_FOLDERS: Mapping[str, str] = {"CT_COVID": "COVID", "CT_NonCOVID": "Non-COVID"}
"""Published folder to class."""
SPLIT_FOLDER = "Data-split"
"""Folder of the official split: ``Data-split/{COVID,NonCOVID}/{train,val,test}CT_{COVID,NonCOVID}.txt``."""
MEDPIX_GAP = 3
"""Largest step between the numbers of two ``.png`` figures of one MedPix case."""

_SPLIT_NAMES: Mapping[str, Fold] = {"train": "train", "val": "validation", "test": "test"}
_REPOSITORY_FOLDER = "Images-processed"
_PANEL = re.compile(r"%\d+$")
# The last one, as titles may hold "-p53-" too: -p15-53, -p24-1533-4, -p34-114_1, -g001-l-a.
_PAGE = re.compile(r"(?P<source>.+)-[pg]\d+(?:-[^%]*)?")
_PLAIN_PAGE = re.compile(r"(?P<source>.+)_\d+")


class Covid19CT(FileLayout):
    """``CT_COVID/*`` and ``CT_NonCOVID/*``, PNG and JPEG, and the official split where it is present.

    A document's id is folder and file name without its ending, ``CT_COVID/2020.02.25.20027763-p15-53%0``; those are
    unique in the published set. Groups are the sources that :func:`sources` reads from the names, joined where two
    share a near-duplicate.

    With ``Data-split/`` in the set's folder the folds are the official ones, taken as they are although several sources
    lie on both sides. Without it the folds are
    :func:`medmllm_plugins.data.core.folds.grouped_folds` with seed 0.
    """

    def documents(self, spec: DatasetSpec, folder: Path, faults: Faults) -> list[Document]:
        """Read and check the whole set; see :class:`medmllm_plugins.data.layouts.layout_registry.Layout`."""
        check_classes(spec, CLASS_FOLDERS.values())
        # In a clone of the authors' repository the archives, and what they unpack to, lie one level down.
        inner = folder / _REPOSITORY_FOLDER
        top = inner if any((inner / name).is_dir() for name in CLASS_FOLDERS) else folder
        _check_folders(top, faults)
        files: list[LabelledFile] = []
        for name, label in CLASS_FOLDERS.items():
            archives = [path for path in (folder / f"{name}.zip", inner / f"{name}.zip") if path.is_file()]
            if archives and not (top / name).is_dir():
                faults.add(f"{archives[0]}: expected the folder {top / name}, got only the archive; unzip it")
                continue
            paths = image_files(top / name, faults)
            for path, source in zip(paths, sources(name, [path.name for path in paths]), strict=True):
                files.append(LabelledFile(id=f"{name}/{path.stem}", path=path, label=label, source=source))
        official = _official_folds(folder / SPLIT_FOLDER, faults)
        return checked_documents(files, folder, faults, partial(_assign_official, official) if official else divide)


def sources(folder: str, names: Sequence[str]) -> list[str]:
    """Read from file names of one class folder which images come from one source.

    The set has no patient column in its folders. What the names tell:

    - Preprints and articles: what stands before the page or figure, ``2020.02.25.20027763-p15-53%0.png`` →
      ``2020.02.25.20027763``, ``PIIS0140673620301549_0%1.png`` → ``PIIS0140673620301549``,
      ``PIIS0140673620303603%8.png`` → ``PIIS0140673620303603``.
    - ``.jpg`` numbers: one patient per number, ``%n`` counts the slices, ``4%1.jpg`` → ``CT_NonCOVID/4.jpg``.
    - ``.png`` numbers are running numbers of MedPix figures, those of a case follow each other with steps of at most
      :data:`MEDPIX_GAP` (authors' ``NonCOVID-CT-MetaInfo.csv``); whoever follows that closely is taken as one source.
      That joins some neighbouring cases but divides none: ``171.png``, ``174.png`` → ``CT_NonCOVID/171.png``.

    The two number series are unrelated, so class folder and ending are part of the source's name.
    """
    numbers = sorted({int(stem) for stem, suffix in map(_split_name, names) if stem.isdecimal() and suffix == ".png"})
    first_of: dict[int, int] = {}
    for index, number in enumerate(numbers):
        follows = index > 0 and number - numbers[index - 1] <= MEDPIX_GAP
        first_of[number] = first_of[numbers[index - 1]] if follows else number
    sources_of_files = []
    for stem, suffix in map(_split_name, names):
        if stem.isdecimal():
            number = first_of[int(stem)] if suffix == ".png" else int(stem)
            sources_of_files.append(f"{folder}/{number}{suffix}")
        else:
            match = _PAGE.fullmatch(stem) or _PLAIN_PAGE.fullmatch(stem)
            sources_of_files.append(match["source"] if match else stem)
    return sources_of_files


def _split_name(name: str) -> tuple[str, str]:
    path = Path(name)
    return _PANEL.sub("", path.stem), path.suffix.lower().replace(".jpeg", ".jpg")


def _check_folders(folder: Path, faults: Faults) -> None:
    """Note other folders that look like a class: named like one, or holding images."""
    for path in subfolders(folder):
        if path.name in CLASS_FOLDERS or path.name == SPLIT_FOLDER:
            continue
        holds_images = any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir())
        if holds_images or path.name.lower().startswith("ct_"):
            expected = " and ".join(f"{name}/" for name in CLASS_FOLDERS)
            faults.add(f"{path}: expected the class folders {expected}, got an unexpected class folder")


def _official_folds(folder: Path, faults: Faults) -> dict[tuple[str, str], Fold]:
    """Read the official split: class folder and file name to fold; empty where there is none."""
    if not folder.is_dir():
        return {}
    folds: dict[tuple[str, str], Fold] = {}
    for name in CLASS_FOLDERS:
        for prefix, fold in _SPLIT_NAMES.items():
            path = folder / name.removeprefix("CT_") / f"{prefix}{name}.txt"
            if not path.is_file():
                faults.add(f"{path}: expected a list of the official split beside the others, got none")
                continue
            for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
                # Published lists hold bare names; copies in use hold whole paths.
                file = line.strip().rpartition("/")[2]
                if file and folds.setdefault((name, file), fold) != fold:
                    faults.add(f"{path}: {file} is also listed in the {folds[name, file]} fold; expected one fold")
    return folds


def _assign_official(
    official: Mapping[tuple[str, str], Fold], files: Sequence[LabelledFile], groups: Sequence[str]
) -> list[Fold]:
    """Look up each file's fold; what no list names goes to train, so that the official test fold stays what it is."""
    keys = [(file.path.parent.name, file.path.name) for file in files]
    unlisted = [key for key in keys if key not in official]
    if unlisted:
        logger.warning(
            "%d images are in no list of the official split and go to train: %s", len(unlisted), unlisted[:5]
        )
    if missing := len(set(official) - set(keys)):
        logger.warning(
            "%d of %d images in the lists of the official split are not in the folders", missing, len(official)
        )
    return [official.get(key, "train") for key in keys]
