"""Label sets that mean nothing, to measure what a probe finds where there is nothing to find.

Shuffled labels keep the classes' shares and how they cluster in groups. A control task (Hewitt and Liang, "Designing
and interpreting probes with control tasks", D19-1275, 2019) gives each type of document a class at random, so that only
a probe that memorises types can learn it; types occur in every fold, or it could not be learnt at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.utils.extmath import randomized_svd

from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.probes.labelled_features import LabelledFeatures

GROUPS_A_TYPE = 6
"""At least so many train groups are to fall into a type on average."""
FEWEST_AXES, MOST_AXES = 2, 5
"""Principal axes along which types are divided: 4 to 32 types."""


def permute_labels(truth: Ints, group: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Shuffle labels by group.

    The labels are laid out group by group, the order of the groups is drawn anew, and the row is laid over the
    documents again. Counts of classes stay the same exactly, and labels of a group stay together; where groups differ
    in size, a group may be laid across two.

    Args:
        truth: (n,) classes.
        group: (n,) groups.
        count: number of shuffles, S.
        generator: draws the orders.

    Returns:
        (S, n).
    """
    order = np.argsort(group, kind="stable")
    sizes = np.unique(group, return_counts=True)[1]
    found = np.empty((count, len(truth)), dtype=np.intp)
    if (sizes == 1).all():
        for number in range(count):
            found[number, order] = truth[order][generator.permutation(len(truth))]
        return found
    blocks = np.split(truth[order], np.cumsum(sizes)[:-1])
    for number in range(count):
        found[number, order] = np.concatenate([blocks[place] for place in generator.permutation(len(blocks))])
    return found


def image_types(pixels: npt.NDArray[np.float32], samples: LabelledFeatures) -> Ints:
    """The type of each document: what its group's pictures look like, coarsely, blind to the classes.

    Groups are described by the mean of their shrunken pictures. Along each of the first principal axes of the train
    fold's groups they are divided at the median, and groups on the same sides of all of these are of one type. Types
    that a fold lacks are merged into the nearest that all folds have.

    Args:
        pixels: (n, F) the raw-pixel features of all rows of the store.
        samples: who they are.

    Returns:
        (n,) type of each document, from 0; all documents of a group have the same. All are 0 where fewer than two types
        occur in every fold, so that there is no control task: the folds are too small, or their pictures are all alike.
    """
    everyone = np.concatenate(list(samples.rows.values()))
    groups, of = np.unique(samples.group[everyone], return_inverse=True)
    means = np.zeros((len(groups), pixels.shape[1]))
    np.add.at(means, of, pixels[everyone])
    means /= np.bincount(of)[:, None]
    place = {number: position for position, number in enumerate(groups)}
    in_fold = {
        fold: np.unique([place[number] for number in samples.group[rows]]) for fold, rows in samples.rows.items()
    }
    train = means[in_fold["train"]]
    axes = int(np.clip(np.log2(max(1, len(train) // GROUPS_A_TYPE)), FEWEST_AXES, MOST_AXES))
    centre = train.mean(0)
    # A whole decomposition of some thousand groups would take longer than all the probes.
    principal = randomized_svd(train - centre, axes, n_iter=4, random_state=0)[2]
    along = (means - centre) @ principal.T
    sides = (along > np.median(along[in_fold["train"]], axis=0)).astype(np.intp)
    types = sides @ (1 << np.arange(sides.shape[1]))
    kinds = np.unique(types[in_fold["train"]])
    shared = [int(kind) for kind in kinds if all((types[members] == kind).any() for members in in_fold.values())]
    found: Ints = np.zeros(len(samples.truth), dtype=np.intp)
    if len(shared) < 2:
        return found
    centres = np.array([along[in_fold["train"]][types[in_fold["train"]] == kind].mean(0) for kind in shared])
    nearest = ((along[:, None] - centres) ** 2).sum(-1).argmin(1)
    known = {kind: number for number, kind in enumerate(shared)}
    merged = np.array([known.get(int(kind), near) for kind, near in zip(types, nearest, strict=True)], dtype=np.intp)
    found[everyone] = merged[of]
    return found


def draw_control_labels(types: Ints, samples: LabelledFeatures, count: int, generator: np.random.Generator) -> Ints:
    """Classes drawn for types, with shares like those of the real ones.

    In random order, each type is given the class that still lacks most documents, so that the entropy of the classes
    comes as near to the real one as whole types allow.

    Args:
        types: (n,) see :func:`image_types`.
        samples: who they are of.
        count: number of drawings, S.
        generator: draws the orders.

    Returns:
        (S, n).
    """
    train = samples.rows["train"]
    sizes = np.bincount(types[train], minlength=types.max() + 1)
    wanted = np.bincount(samples.truth[train], minlength=len(samples.labels)).astype(np.float64)
    found = np.empty((count, len(types)), dtype=np.intp)
    for number in range(count):
        left, given = wanted.copy(), np.zeros(len(sizes), dtype=np.intp)
        # Which of several classes that lack as much comes first is drawn too.
        tie = generator.permutation(len(wanted)) * 1e-6
        for kind in generator.permutation(len(sizes)):
            given[kind] = int(np.argmax(left + tie))
            left[given[kind]] -= sizes[kind]
        found[number] = given[types]
    return found
