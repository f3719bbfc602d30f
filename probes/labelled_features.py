"""Read the classes, groups and folds of the documents in a feature store, and check that probes can be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.core.folds import grouped_folds
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.results.feature_store import FeatureSource

MAX_ROWS: Final[Mapping[Fold, int]] = {"train": 6_000, "validation": 2_000}
"""Larger folds are subsampled to this size, with the classes in proportion: more documents hardly change a linear
probe, and memory stays bounded. The test fold is always used completely."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """Classes, groups and folds of the documents that probes are fitted on.

    Attributes:
        labels: the classes, K of them.
        truth: (n,) index of each document's class; n is the number of rows of the store.
        group: (n,) index of each document's group.
        rows: by fold, the rows of the store in it.
    """

    labels: tuple[str, ...]
    truth: Ints
    group: Ints
    rows: dict[Fold, Ints]

    def of(self, fold: Fold) -> Ints:
        """Return the classes of a fold's documents."""
        classes: Ints = self.truth[self.rows[fold]]
        return classes

    def groups_of(self, fold: Fold) -> Ints:
        """Return the groups of a fold's documents, numbered from 0 within the fold."""
        groups: Ints = np.unique(self.group[self.rows[fold]], return_inverse=True)[1]
        return groups


def read_labelled_features(store: FeatureSource, seed: int = 0) -> LabelledFeatures:
    """Read and check the documents of a store.

    ``seed`` chooses the documents of folds that are subsampled.

    Raises:
        DataError: a class is not one of the store's, or the folds cannot carry probes.
    """
    index, labels = store.index, store.header.labels
    known = {label: number for number, label in enumerate(labels)}
    names = index["label"].astype(str)
    if unknown := sorted(set(names) - set(known)):
        raise DataError(
            f"{store.folder}: expected classes among {list(labels)}, got {unknown}. The index belongs to another task."
        )
    truth: Any = names.map(known).to_numpy(np.intp)
    group: Any = pd.factorize(index["group"].astype(str), sort=True)[0].astype(np.intp)
    fold = index["fold"].astype(str).to_numpy()
    rows: dict[Fold, Any] = {name: np.flatnonzero(fold == name).astype(np.intp) for name in FOLDS}
    labelled = _check_folds(LabelledFeatures(labels, truth, group, rows), str(store.folder))
    for name, limit in MAX_ROWS.items():
        if len(rows[name]) > limit:
            rows[name] = _subsample(rows[name], truth[rows[name]], limit, seed)
    return replace(labelled, rows=rows)


def resplit(labelled: LabelledFeatures, store: FeatureSource, seed: int) -> LabelledFeatures:
    """Divide the same documents into new random folds, by group and with the same fractions.

    Raises:
        DataError: there are too few groups.
    """
    rows = np.concatenate([labelled.rows[name] for name in FOLDS])
    counts = np.array([len(labelled.rows[name]) for name in FOLDS], dtype=np.float64)
    shares = counts / counts.sum()
    names = store.index["id"].astype(str).to_numpy()[rows]
    labels = [labelled.labels[number] for number in labelled.truth[rows]]
    groups = [str(number) for number in labelled.group[rows]]
    fractions = (float(shares[0]), float(shares[1]), float(1 - shares[0] - shares[1]))
    folds = np.array(grouped_folds(list(names), labels, groups, seed=seed, fractions=fractions))
    divided: dict[Fold, Ints] = {name: np.sort(rows[folds == name]).astype(np.intp) for name in FOLDS}
    return _check_folds(replace(labelled, rows=divided), str(store.folder))


def resample_groups(truth: Ints, group: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Draw groups with replacement.

    As many groups are drawn from those of each class as there are, so that no class is lost; a group with documents of
    several classes counts as one of its rarest.

    Args:
        truth: (n,) classes.
        group: (n,) groups, numbered from 0.
        count: number of resamples, R.
        generator: source of the draws.

    Returns:
        (R, n), how often each document occurs in each resample.
    """
    class_of_group = _class_of_group(truth, group)
    drawn = np.empty((count, len(class_of_group)), dtype=np.intp)
    for number in np.unique(class_of_group):
        members = np.flatnonzero(class_of_group == number)
        drawn[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=count)
    return drawn[:, group]


def half_groups(truth: Ints, group: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Draw half of the groups of each class, the larger half of odd numbers, without replacement.

    Arguments and result are those of :func:`resample_groups`.
    """
    class_of_group = _class_of_group(truth, group)
    drawn = np.zeros((count, len(class_of_group)), dtype=np.intp)
    for number in np.unique(class_of_group):
        members = np.flatnonzero(class_of_group == number)
        for half in drawn:
            half[generator.permutation(members)[: -(-len(members) // 2)]] = 1
    return drawn[:, group]


def _class_of_group(truth: Ints, group: Ints) -> Ints:
    """Return the class of each group; of several classes, the one that is rarest among all documents."""
    classes: Ints = np.zeros(group.max() + 1, dtype=np.intp)
    for number in np.argsort(-np.bincount(truth), kind="stable"):
        classes[group[truth == number]] = number
    return classes


def _check_folds(labelled: LabelledFeatures, where: str) -> LabelledFeatures:
    classes = len(labelled.labels)
    for fold in FOLDS:
        count = len(labelled.rows[fold])
        if not count:
            raise DataError(
                f"{where}: expected documents in the {fold} fold, got none. Probes are fitted on train, chosen on "
                "validation and tested on test: evaluate more documents (--limit), or divide the data set into folds."
            )
        if fold != "validation" and count < classes:
            raise DataError(
                f"{where}: expected at least {classes} documents in the {fold} fold, one per class, got {count}."
            )
    present = np.unique(labelled.of("train"))
    if len(present) < classes:
        missing = [labelled.labels[number] for number in range(classes) if number not in present]
        raise DataError(f"{where}: expected every class in the train fold, got no document of {missing}.")
    for number, label in enumerate(labelled.labels):
        groups = np.unique(labelled.group[labelled.truth == number])
        if len(groups) < 2:
            raise DataError(
                f"{where}: expected every class in at least two groups (patients, lesions, sources), got "
                f"{len(groups)} with {label!r}. A probe would learn the group instead of the class."
            )
    return labelled


def _subsample(rows: Ints, truth: Ints, limit: int, seed: int) -> Ints:
    generator = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(truth):
        members = rows[truth == number]
        wanted = max(1, round(limit * len(members) / len(rows)))
        chosen.append(generator.choice(members, size=min(wanted, len(members)), replace=False))
    subsample: Ints = np.sort(np.concatenate(chosen))
    return subsample


def count_shared_groups(labelled: LabelledFeatures) -> int:
    """Return the number of test documents whose group also occurs in another fold."""
    other_folds = np.concatenate([labelled.rows["train"], labelled.rows["validation"]])
    return int(np.isin(labelled.group[labelled.rows["test"]], labelled.group[other_folds]).sum())
