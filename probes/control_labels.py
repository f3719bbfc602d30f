"""Labels without meaning, to measure what a probe reaches where there is nothing to learn.

Permuted labels keep the proportions of the classes and how they cluster in groups. A control task (Hewitt and Liang,
"Designing and interpreting probes with control tasks", D19-1275, 2019) assigns a random class to each type of image, so
that only a probe that memorises types can learn it. Every type occurs in every fold, otherwise the task could not be
learned at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.utils.extmath import randomized_svd

from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.probes.labelled_features import LabelledFeatures

GROUPS_PER_TYPE = 6
"""Minimum average number of train groups in a type."""
MIN_AXES, MAX_AXES = 2, 5
"""Principal axes along which types are divided: 4 to 32 types."""


def permute_labels(truth: Ints, group: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Permute labels among groups of the same size.

    Whole groups exchange their labels, so that the counts of the classes stay the same and the labels of a group stay
    together. Groups of different sizes cannot be exchanged: laying the labels of one across the borders of others
    breaks up the clusters, and tests based on it reject too often. The only group of its size keeps its labels.

    Args:
        truth: (n,) classes.
        group: (n,) groups.
        count: number of permutations, S.
        generator: source of the random orders.

    Returns:
        (S, n).
    """
    _, group_index, sizes = np.unique(group, return_inverse=True, return_counts=True)
    order = np.lexsort((group_index, sizes[group_index]))
    permuted = np.empty((count, len(truth)), dtype=np.intp)
    start = 0
    for size, groups in zip(*np.unique(sizes, return_counts=True), strict=True):
        rows = order[start : start + size * groups].reshape(groups, size)
        start += size * groups
        orders = generator.permuted(np.tile(np.arange(groups), (count, 1)), axis=1)
        permuted[:, rows] = truth[rows][orders]
    return permuted


def image_types(pixels: npt.NDArray[np.float32], labelled: LabelledFeatures) -> Ints:
    """Assign each document a type by the coarse appearance of its group's images, ignoring the classes.

    Groups are described by the mean of their pixels and split at the median along each of the first principal axes of
    the train fold's groups. Groups on the same side of every axis are of one type. A type that a fold lacks is merged
    into the nearest type that all folds have.

    Args:
        pixels: (n, F) pixel features of all rows of the store.
        labelled: the documents.

    Returns:
        (n,) type of each document, from 0, the same for all documents of a group. All are 0 if fewer than two types
        occur in every fold, because the folds are too small or the images too similar; then there is no control task.
    """
    everyone = np.concatenate(list(labelled.rows.values()))
    groups, of = np.unique(labelled.group[everyone], return_inverse=True)
    means = np.zeros((len(groups), pixels.shape[1]))
    np.add.at(means, of, pixels[everyone])
    means /= np.bincount(of)[:, None]
    position = {number: index for index, number in enumerate(groups)}
    in_fold = {
        fold: np.unique([position[number] for number in labelled.group[rows]]) for fold, rows in labelled.rows.items()
    }
    train = means[in_fold["train"]]
    axes = int(np.clip(np.log2(max(1, len(train) // GROUPS_PER_TYPE)), MIN_AXES, MAX_AXES))
    centre = train.mean(0)
    # A complete decomposition of several thousand groups would take longer than all the probes.
    principal = randomized_svd(train - centre, axes, n_iter=4, random_state=0)[2]
    along = (means - centre) @ principal.T
    sides = (along > np.median(along[in_fold["train"]], axis=0)).astype(np.intp)
    types = sides @ (1 << np.arange(sides.shape[1]))
    kinds = np.unique(types[in_fold["train"]])
    shared = [int(kind) for kind in kinds if all((types[members] == kind).any() for members in in_fold.values())]
    by_document: Ints = np.zeros(len(labelled.truth), dtype=np.intp)
    if len(shared) < 2:
        return by_document
    centres = np.array([along[in_fold["train"]][types[in_fold["train"]] == kind].mean(0) for kind in shared])
    nearest = ((along[:, None] - centres) ** 2).sum(-1).argmin(1)
    known = {kind: number for number, kind in enumerate(shared)}
    merged = np.array([known.get(int(kind), near) for kind, near in zip(types, nearest, strict=True)], dtype=np.intp)
    by_document[everyone] = merged[of]
    return by_document


def draw_control_labels(types: Ints, labelled: LabelledFeatures, count: int, generator: np.random.Generator) -> Ints:
    """Draw a random class for each type, with proportions similar to the real classes.

    In random order, each type gets the class that still lacks most documents, so that the entropy of the classes comes
    as close to the real one as whole types allow.

    Args:
        types: (n,) see :func:`image_types`.
        labelled: the documents.
        count: number of control tasks, S.
        generator: source of the random orders.

    Returns:
        (S, n).
    """
    train = labelled.rows["train"]
    sizes = np.bincount(types[train], minlength=types.max() + 1)
    wanted = np.bincount(labelled.truth[train], minlength=len(labelled.labels)).astype(np.float64)
    labels = np.empty((count, len(types)), dtype=np.intp)
    for number in range(count):
        lacking, class_of_type = wanted.copy(), np.zeros(len(sizes), dtype=np.intp)
        # Ties between classes are broken at random.
        tie = generator.permutation(len(wanted)) * 1e-6
        for kind in generator.permutation(len(sizes)):
            class_of_type[kind] = int(np.argmax(lacking + tie))
            lacking[class_of_type[kind]] -= sizes[kind]
        labels[number] = class_of_type[types]
    return labels
