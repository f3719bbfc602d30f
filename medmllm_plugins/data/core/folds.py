"""Train, validation and test folds that never divide a group."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.errors import DataError


def grouped_folds(
    ids: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> list[Fold]:
    """Divide documents into folds by group, with the classes in like proportion.

    First every class gets a group in every fold, the rarest class first; a class with at least three groups of its own
    is thus in each fold, which scikit-learn's ``StratifiedGroupKFold`` does not promise. Then the other groups, largest
    first, go where the counts per class come closest to ``fractions``. Ties are decided by a hash of seed and group
    name, so the result depends neither on the order of the documents nor on a library's random generator.

    A group may hold several classes. ``fractions`` are of the documents, in train, validation and test; a fold of
    fraction 0 stays empty.

    Returns:
        The fold of each document, in the order given.

    Raises:
        DataError: an id is there twice, or there are fewer groups than folds.
        ValueError: the sequences differ in length, or the fractions are negative or do not sum to 1.
    """
    if not len(ids) == len(labels) == len(groups):
        raise ValueError(f"Expected one label and group per id, got {len(ids)}, {len(labels)} and {len(groups)}.")
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"Expected three fractions that are not negative and sum to 1, got {fractions}.")
    if repeated := [identifier for identifier, count in Counter(ids).items() if count > 1]:
        raise DataError(f"Expected unique ids, got {len(repeated)} that are there twice, such as {repeated[0]!r}.")
    wanted = [index for index, fraction in enumerate(fractions) if fraction > 0]
    names = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    if len(names) < len(wanted):
        raise DataError(
            f"Expected at least {len(wanted)} groups for {len(wanted)} folds, got {len(names)} in {len(ids)} images; "
            "near-duplicates and images of one source count as one group."
        )
    classes = sorted(set(labels))
    row = {group: index for index, group in enumerate(names)}
    column = {label: index for index, label in enumerate(classes)}
    counts = np.zeros((len(names), len(classes)))
    for label, group in zip(labels, groups, strict=True):
        counts[row[group], column[label]] += 1
    targets = np.array(fractions)[wanted, None] * counts.sum(axis=0)

    fold_of_group = _cover(counts, targets)
    _fill(counts, targets, fold_of_group)
    fold_of = {group: FOLDS[wanted[fold_of_group[index]]] for group, index in row.items()}
    return [fold_of[group] for group in groups]


def divide_train(ids: Sequence[str], labels: Sequence[str], groups: Sequence[str], folds: Sequence[Fold]) -> list[Fold]:
    """Move a fifth of the train fold to validation; see :func:`grouped_folds` for arguments and errors."""
    rows = [index for index, fold in enumerate(folds) if fold == "train"]
    columns = ([column[index] for index in rows] for column in (ids, labels, groups))
    divided = list(folds)
    for index, fold in zip(rows, grouped_folds(*columns, fractions=(0.8, 0.2, 0.0)), strict=True):
        divided[index] = fold
    return divided


def rarest_labels(labels: Sequence[Sequence[str]]) -> list[str]:
    """Return a class of each document to stratify by: of several findings the rarest, ``""`` for none."""
    counts = Counter(label for several in labels for label in several)
    return [min(several, key=lambda label: (counts[label], label), default="") for several in labels]


def _cover(counts: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> dict[int, int]:
    """Give every class a group in every fold where it can be; group to fold."""
    fold_of_group: dict[int, int] = {}
    present = counts > 0
    mixed = present.sum(axis=1) > 1
    covered = np.zeros(targets.shape, dtype=bool)
    for label in np.argsort(present.sum(axis=0), kind="stable"):
        missing = [fold for fold in np.argsort(targets[:, label], kind="stable") if not covered[fold, label]]
        free = [int(group) for group in np.flatnonzero(present[:, label]) if int(group) not in fold_of_group]
        # The smallest fold first, as it is the one that a large group would spoil; but where groups are too few for
        # all folds, test and then train need the class more than validation does.
        if len(free) < len(missing):
            missing.sort(key=lambda fold: (fold + 1) % len(targets))
        for fold in missing[: len(free)]:
            # Groups of one class leave those of two to whoever may need them, and none should overshoot the target.
            overshoot = np.maximum(0.0, counts[:, label] - targets[fold, label])
            best = min(free, key=lambda group: (mixed[group], overshoot[group]))
            free.remove(best)
            fold_of_group[best] = int(fold)
            covered[fold] |= present[best]
    return fold_of_group


def _fill(counts: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], fold_of_group: dict[int, int]) -> None:
    """Place the other groups, largest first, where the squared relative deviation from the targets grows least."""
    state = np.zeros(targets.shape)
    for group, fold in fold_of_group.items():
        state[fold] += counts[group]
    weight = 1.0 / counts.sum(axis=0) ** 2
    for group in np.argsort(-counts.sum(axis=1), kind="stable"):
        if int(group) in fold_of_group:
            continue
        before = ((state - targets) ** 2 * weight).sum(axis=1)
        after = ((state + counts[group] - targets) ** 2 * weight).sum(axis=1)
        # Rounded, so that the last bits of a sum, which differ between machines, decide no tie.
        fold = int(np.argmin(np.round(after - before, 12)))
        fold_of_group[int(group)] = fold
        state[fold] += counts[group]
    # Few groups of two classes can all have gone to one fold.
    for fold in range(len(targets)):
        if fold not in fold_of_group.values():
            donors = Counter(fold_of_group.values())
            donor = donors.most_common(1)[0][0]
            candidates = [group for group, donated in fold_of_group.items() if donated == donor]
            moved = min(candidates, key=lambda group: (counts[group].sum(), group))
            fold_of_group[moved] = fold
