"""The documents of a feature store as arrays: classes, groups and folds, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.core.folds import grouped_folds
from medmllm_plugins.errors import DataError
from medmllm_plugins.features.store import FeatureStore
from medmllm_plugins.metrics.classification import Ints

MAX_ROWS: Final[Mapping[Fold, int]] = {"train": 6_000, "validation": 2_000}
"""From a larger fold so many documents are drawn, with the classes in proportion: more move a linear probe and its
strength little, and memory stays bounded whatever the data set. The test fold is always used whole."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFeatures:
    """Who is probed.

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
        """Classes of a fold's documents."""
        found: Ints = self.truth[self.rows[fold]]
        return found

    def groups_of(self, fold: Fold) -> Ints:
        """Groups of a fold's documents, numbered from 0 within the fold."""
        found: Ints = np.unique(self.group[self.rows[fold]], return_inverse=True)[1]
        return found


def read_labelled_features(store: FeatureStore, seed: int = 0) -> LabelledFeatures:
    """Arrange a store's documents.

    Args:
        store: the store.
        seed: chooses what is drawn from large folds.

    Raises:
        DataError: a class is not one of the store's, or the folds cannot carry probes.
    """
    index, labels = store.index, store.header.labels
    known = {label: number for number, label in enumerate(labels)}
    names = index["label"].astype(str)
    if strangers := sorted(set(names) - set(known)):
        raise DataError(
            f"{store.folder}: expected classes among {list(labels)}, found {strangers}; the index is not this task's."
        )
    truth: Any = names.map(known).to_numpy(np.intp)
    group: Any = pd.factorize(index["group"].astype(str), sort=True)[0].astype(np.intp)
    fold = index["fold"].astype(str).to_numpy()
    rows: dict[Fold, Any] = {name: np.flatnonzero(fold == name).astype(np.intp) for name in FOLDS}
    samples = _checked(LabelledFeatures(labels, truth, group, rows), str(store.folder))
    for part, most in MAX_ROWS.items():
        if len(rows[part]) > most:
            rows[part] = _drawn(rows[part], truth[rows[part]], most, seed)
    return replace(samples, rows=rows)


def resplit(samples: LabelledFeatures, store: FeatureStore, seed: int) -> LabelledFeatures:
    """The same documents divided into folds anew, by group and with fractions like the old ones.

    Raises:
        DataError: the groups do not suffice.
    """
    rows = np.concatenate([samples.rows[name] for name in FOLDS])
    counts = np.array([len(samples.rows[name]) for name in FOLDS], dtype=np.float64)
    shares = counts / counts.sum()
    names = store.index["id"].astype(str).to_numpy()[rows]
    labels = [samples.labels[number] for number in samples.truth[rows]]
    groups = [str(number) for number in samples.group[rows]]
    fractions = (float(shares[0]), float(shares[1]), float(1 - shares[0] - shares[1]))
    found = np.array(grouped_folds(list(names), labels, groups, seed=seed, fractions=fractions))
    divided: dict[Fold, Ints] = {name: np.sort(rows[found == name]).astype(np.intp) for name in FOLDS}
    return _checked(replace(samples, rows=divided), str(store.folder))


def _checked(samples: LabelledFeatures, where: str) -> LabelledFeatures:
    classes = len(samples.labels)
    for fold in FOLDS:
        count = len(samples.rows[fold])
        if not count:
            raise DataError(
                f"{where}: expected documents in the {fold} fold, found none. Probes are fitted on train, chosen on "
                "validation and tested on test; evaluate more documents (--limit), or divide the set into folds."
            )
        if fold != "validation" and count < classes:
            raise DataError(
                f"{where}: expected at least {classes} documents in the {fold} fold, one a class, found {count}."
            )
    present = np.unique(samples.of("train"))
    if len(present) < classes:
        missing = [samples.labels[number] for number in range(classes) if number not in present]
        raise DataError(f"{where}: expected every class in the train fold, found no document of {missing}.")
    for number, label in enumerate(samples.labels):
        groups = np.unique(samples.group[samples.truth == number])
        if len(groups) < 2:
            raise DataError(
                f"{where}: expected every class in at least two groups (patients, lesions, sources), found "
                f"{len(groups)} with {label!r}: what a probe finds there is the group and not the class."
            )
    return samples


def _drawn(rows: Ints, truth: Ints, most: int, seed: int) -> Ints:
    generator = np.random.default_rng(seed)
    kept = []
    for number in np.unique(truth):
        members = rows[truth == number]
        wanted = max(1, round(most * len(members) / len(rows)))
        kept.append(generator.choice(members, size=min(wanted, len(members)), replace=False))
    found: Ints = np.sort(np.concatenate(kept))
    return found


def count_shared_groups(samples: LabelledFeatures) -> int:
    """Number of test documents whose group is in another fold too."""
    elsewhere = np.concatenate([samples.rows["train"], samples.rows["validation"]])
    return int(np.isin(samples.group[samples.rows["test"]], samples.group[elsewhere]).sum())
