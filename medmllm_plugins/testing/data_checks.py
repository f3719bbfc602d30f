"""Checks of task folders and data sets."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from unittest import mock

import numpy as np
import yaml
from PIL import Image

from medmllm_plugins.data.core.dataset_spec import parse_spec, read_spec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.data.core.leaks import divided_groups
from medmllm_plugins.data.loading import check_cache
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.plugins.task_files import read_task, walk
from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable, require
from medmllm_plugins.testing.check_subjects import DatasetSubject, TasksSubject

MOST_DECODED: Final = 300
"""Documents that are decoded, evenly spaced: reading a set decodes all of them already, if its layout does so."""


def check_task_files_are_read(subject: TasksSubject) -> None:
    """Assert that each YAML file below the folder declares a task, a group or a data set, with a name of its own.

    A file with a fault is left out with a warning, and its task seems not to exist.
    """
    try:
        files, datasets = walk(subject.spec.resolve())
        declared = [path for folder in datasets for path in sorted(folder.glob("*.yaml"))]
        tasks = [read_task(path)[0] for path in files]
        names = [read_spec(path).name for path in declared]
    except (MedMLLMError, OSError, ValueError) as error:
        raise CheckFailed(f"{subject.name}: {error}") from error
    require(
        files or declared,
        f"{subject.name}: expected YAML files of tasks or data sets, got none. Are they in the package data?",
    )
    for kind, stated in (("task", tasks), ("data set", names)):
        repeated = sorted({name for name in stated if stated.count(name) > 1})
        require(not repeated, f"{subject.name}: expected a name of its own for each {kind}, got {repeated} twice.")


def check_declaration_round_trips(subject: DatasetSubject) -> None:
    """Assert that the declaration is the same after writing it to JSON and to YAML, and reading it again.

    Run folders store it, so that a report can be written without the plugin.
    """
    fields = subject.spec.model_dump(mode="json")
    for form, text in (("JSON", json.dumps(fields)), ("YAML", yaml.safe_dump(fields, allow_unicode=True))):
        try:
            again = parse_spec(yaml.safe_load(text) if form == "YAML" else json.loads(text), f"{subject.name}.{form}")
        except MedMLLMError as error:
            raise CheckFailed(f"{subject.name}: expected a declaration that {form} can hold, got {error}") from error
        changed = [name for name in fields if getattr(again, name) != getattr(subject.spec, name)]
        require(
            not changed,
            f"{subject.name}: expected the declaration to be the same after {form}, got another value of "
            f"{', '.join(changed)}. Use text, numbers, lists and mappings alone.",
        )


def check_images_decode(subject: DatasetSubject) -> None:
    """Assert that the set can be read, and each document's image is decoded, in RGB; or its volume.

    A damaged file found here is one that does not end an evaluation after hours.
    """
    dataset = subject.first_read
    if isinstance(dataset, Exception):
        raise CheckFailed(f"{subject.name}: expected a data set that can be read, got {one_line(dataset)}") from dataset
    for document in _spaced(dataset.documents):
        what = f"{subject.name}, {document.id}"
        try:
            shown = dataset.reader.image(dataset.spec, dataset.folder, document)
        except Exception as error:
            raise CheckFailed(f"{what}: expected an image, got {one_line(error)}") from error
        if subject.spec.dimensions == 3:
            require(
                isinstance(shown, Volume), f"{what}: expected a Volume (dimensions: 3), got {type(shown).__name__}."
            )
        else:
            require(isinstance(shown, Image.Image), f"{what}: expected a PIL image, got {type(shown).__name__}.")
            mode = getattr(shown, "mode", "")
            require(mode == "RGB", f"{what}: expected an image in mode RGB, got {mode}. Call convert('RGB').")
        mask = dataset.mask(document)
        if mask is not None and isinstance(shown, Image.Image):
            size = mask.shape[::-1]
            require(
                mask.dtype == np.bool_ and mask.ndim == 2, f"{what}: expected a mask (h, w) of bool, got {mask.dtype}."
            )
            require(size == shown.size, f"{what}: expected a mask as large as the image, {shown.size}, got {size}.")


def _spaced(documents: Sequence[Document]) -> list[Document]:
    indices = np.unique(np.linspace(0, len(documents) - 1, MOST_DECODED).round().astype(int))
    return [documents[index] for index in indices]


def check_groups_stay_in_one_fold(subject: DatasetSubject) -> None:
    """Assert that there are groups (patient, lesion or source), none of which has documents in two folds.

    A probe, a reference classifier or a repair that sees a patient in training recognises the patient in the test.
    """
    documents = subject.dataset.documents
    empty = [document.id for document in documents if not document.group.strip()]
    require(not empty, f"{subject.name}: expected a group for each document, got none for {empty[:3]}.")
    divided = divided_groups(documents)
    example = next(iter(divided.items()), ("", set()))
    require(
        not divided,
        f"{subject.name}: expected each group in one fold, got {len(divided)} groups in several, such as "
        f"{example[0]!r} in {sorted(example[1])}. Assign folds by group.",
    )


def check_equal_images_stay_in_one_fold(subject: DatasetSubject) -> None:
    """Assert that no image is in two folds, whatever its group: equal files are found by their checksums.

    `medmllm datasets --check NAME` also finds images that are nearly equal.
    """
    dataset = subject.dataset
    folds: dict[str, set[str]] = defaultdict(set)
    names: dict[str, list[str]] = defaultdict(list)
    for document in dataset.documents:
        digest = dataset.reader.digest(dataset.spec, dataset.folder, document)
        folds[digest].add(document.fold)
        names[digest].append(document.id)
    leaks = [names[digest] for digest, own_folds in folds.items() if len(own_folds) > 1]
    require(
        not leaks,
        f"{subject.name}: expected equal images in one fold, got {len(leaks)} in several, such as {leaks[:1]}. Give "
        "them one group.",
    )


def check_folds_hold_every_class(subject: DatasetSubject) -> None:
    """Assert that the train, validation and test folds have documents of every class.

    Probes are fitted on train, chosen on validation and tested on test; a class that a fold lacks cannot be scored.
    """
    counts = subject.dataset.counts()
    for fold in FOLDS:
        missing = [label for label, count in counts[fold].items() if not count]
        require(
            not missing,
            f"{subject.name}: expected documents of every class in the {fold} fold, got none of {', '.join(missing)}. "
            "Divide the groups of each class among the folds.",
        )


def check_second_read_gives_the_same(subject: DatasetSubject) -> None:
    """Assert that reading the set twice gives the same documents, in groups and folds, and the same fingerprint.

    Folds that differ between processes let test documents be trained on, and runs cannot be compared or resumed.
    """
    first = subject.dataset
    with mock.patch.object(check_cache, "recall", lambda *_: None):
        second = subject.read()
    for document, other in zip(first.documents, second.documents, strict=False):
        require(
            document == other,
            f"{subject.name}: expected the same documents in two reads, got {document} and {other}. Derive ids "
            "and folds from names, with a fixed seed.",
        )
    require(
        (len(first.documents), first.fingerprint) == (len(second.documents), second.fingerprint),
        f"{subject.name}: expected one fingerprint in two reads, got {first.fingerprint[:12]} and "
        f"{second.fingerprint[:12]}. `Layout.digest` must depend on the content alone.",
    )


def check_data_errors_are_ours(subject: DatasetSubject) -> None:
    """Assert that an image that is not there raises a :class:`medmllm_plugins.errors.MedMLLMError`.

    It is shown as one line that says what to do; any other exception ends a run with a traceback.
    """
    dataset = subject.dataset
    if not dataset.documents:
        raise NotApplicable("the set has no documents")
    document = replace(dataset.documents[0], image="missing/image.png")
    try:
        dataset.reader.image(dataset.spec, subject.folder, document)
    except MedMLLMError:
        return
    except Exception as error:
        raise CheckFailed(
            f"{subject.name}: expected a DataError for an image that is not there, got {one_line(error)}. Raise one "
            "with the path and what to do."
        ) from error
    raise CheckFailed(f"{subject.name}: expected a DataError for an image that is not there, got an image.")
