"""Leaks: groups and equal pictures that are in more than one fold, and equal pictures with two labels.

Groups are what the data set says belongs together. Pictures are compared whatever their group, class or fold, so that
a leak is found even where the groups are wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.core.documents import FOLDS, Document, Fold
from medmllm_plugins.data.core.duplicates import near_duplicates

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

MAX_COMPARED = 400_000
"""Most pictures that are compared pairwise, which takes about ten minutes on two cores (half a minute for 100,000).
In larger sets only identical pictures are found."""
RANDOM_TEST = 0.2
"""Share of the test fold in the random split that the report compares with; our own folds have the same."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two documents with the same picture or volume: ``identical``, or near-duplicates."""

    first: Document
    second: Document
    identical: bool

    @property
    def crosses(self) -> bool:
        """Whether they are in two folds."""
        return self.first.fold != self.second.fold

    @property
    def disagrees(self) -> bool:
        """Whether they have different labels."""
        return self.first.labels != self.second.labels

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe mapping."""
        return {
            "identical": self.identical,
            "documents": [
                {"id": document.id, "label": document.label, "group": document.group, "fold": document.fold}
                for document in (self.first, self.second)
            ],
        }


@dataclass(frozen=True, slots=True)
class Leaks:
    """The leaks of a data set.

    Attributes:
        divided: groups with documents in more than one fold, and those folds.
        compared: what counts as a pair: ``"near-duplicates"``, or ``"identical"`` pictures only.
        why: why only identical pictures were searched for; empty otherwise.
        pairs: all pairs. Of k identical documents without structure, or where only identical ones are searched for,
            these are the k - 1 pairs with the first of them.
        exposed: number of those that are in a pair with a document of another fold.
        test_divided: number of those with a document of their group in another fold.
        test_leaking: number of those with either.
        random_exposed: expected number of exposed test documents in a random split, image by image, with
            :data:`RANDOM_TEST` of the documents in the test fold.
        random_divided: expected number of documents of that test fold with one of their group outside it.
    """

    documents: int
    groups: int
    divided: dict[str, tuple[Fold, ...]]
    compared: str
    why: str
    pairs: tuple[Pair, ...]
    test: int
    exposed: int
    test_divided: int
    test_leaking: int
    random_exposed: float
    random_divided: float

    @property
    def crossing(self) -> tuple[Pair, ...]:
        """Pairs in two folds."""
        return tuple(pair for pair in self.pairs if pair.crosses)

    @property
    def disagreeing(self) -> tuple[Pair, ...]:
        """Pairs with different labels."""
        return tuple(pair for pair in self.pairs if pair.disagrees)

    @property
    def leaking(self) -> bool:
        """Whether a group or a pair is in more than one fold."""
        return bool(self.divided or self.crossing)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe mapping."""
        return {
            "documents": self.documents,
            "groups": self.groups,
            "compared": self.compared,
            "why": self.why,
            "pairs": len(self.pairs),
            "identical_pairs": sum(pair.identical for pair in self.pairs),
            "divided_groups": {group: list(folds) for group, folds in self.divided.items()},
            "pairs_across_folds": [pair.to_dict() for pair in self.crossing],
            "pairs_with_two_labels": [pair.to_dict() for pair in self.disagreeing],
            "test_documents": self.test,
            "test_documents_exposed": self.exposed,
            "test_documents_of_divided_groups": self.test_divided,
            "test_documents_leaking": self.test_leaking,
            "random_split": {
                "test_documents": round(RANDOM_TEST * self.documents, 1),
                "test_documents_exposed": round(self.random_exposed, 1),
                "test_documents_of_divided_groups": round(self.random_divided, 1),
            },
            "leaking": self.leaking,
        }


def divided_groups(documents: Iterable[Document]) -> dict[str, set[Fold]]:
    """Return groups with documents in more than one fold, and those folds."""
    folds_of: dict[str, set[Fold]] = defaultdict(set)
    for document in documents:
        folds_of[document.group].add(document.fold)
    return {group: folds for group, folds in folds_of.items() if len(folds) > 1}


def voxels_digest(volume: Volume) -> str:
    """Return the SHA-256, in hexadecimal, of shape and voxels: equal for one volume in two file formats."""
    digest = hashlib.sha256(repr(volume.voxels.shape).encode())
    digest.update(np.ascontiguousarray(volume.voxels, dtype="<f4").data)
    return digest.hexdigest()


def similar(contents: Sequence[str], thumbnails: npt.NDArray[np.float32] | None) -> dict[tuple[int, int], bool]:
    """Return pairs of equal or nearly equal documents.

    Args:
        contents: a digest of each picture's pixels or volume's voxels.
        thumbnails: ``[n, 32, 32]``, see :func:`medmllm_plugins.data.readers.file_facts.thumbnail`; ``None`` to
            search for equal contents alone.

    Returns:
        Indices ``i < j`` in order, to whether the contents are equal. Equal contents that have no near-duplicates, as
        they show nothing or thumbnails are not given, are paired with the first of their kind only, since a thousand
        black images make half a million pairs.
    """
    pairs: dict[tuple[int, int], bool] = {}
    if thumbnails is not None and len(thumbnails):
        for i, j in near_duplicates(thumbnails):
            pairs[int(i), int(j)] = contents[i] == contents[j]
    first_with: dict[str, int] = {}
    for index, content in enumerate(contents):
        first = first_with.setdefault(content, index)
        if first != index:
            pairs[first, index] = True
    return dict(sorted(pairs.items()))


def expected_exposed(counterparts: npt.NDArray[np.intp], test: float = RANDOM_TEST) -> float:
    """Return the expected number of documents of a random test fold that have one of their counterparts outside it.

    A document with d counterparts is in the test fold with probability ``test``, and all of its counterparts are there
    too with probability ``test ** d``; drawing without replacement differs from that in the last digit only.
    """
    return float((test * (1 - test ** counterparts.astype(np.float64))).sum())


def find_leaks(
    documents: Sequence[Document],
    contents: Sequence[str],
    thumbnails: npt.NDArray[np.float32] | None,
    *,
    why: str = "",
) -> Leaks:
    """Compare the documents of a data set; ``contents`` and ``thumbnails`` are those of :func:`similar`."""
    identical_of = similar(contents, thumbnails)
    pairs = tuple(Pair(documents[i], documents[j], identical) for (i, j), identical in identical_of.items())
    crossing = [document for pair in pairs if pair.crosses for document in (pair.first, pair.second)]
    exposed = {document.id for document in crossing if document.fold == "test"}
    divided = divided_groups(documents)
    of_divided = {document.id for document in documents if document.fold == "test" and document.group in divided}
    sizes = Counter(document.group for document in documents)
    ends = np.array([index for pair in identical_of for index in pair], dtype=np.intp)
    return Leaks(
        documents=len(documents),
        groups=len({document.group for document in documents}),
        divided={group: tuple(fold for fold in FOLDS if fold in divided[group]) for group in sorted(divided)},
        compared="identical" if thumbnails is None else "near-duplicates",
        why=why,
        pairs=pairs,
        test=sum(document.fold == "test" for document in documents),
        exposed=len(exposed),
        test_divided=len(of_divided),
        test_leaking=len(exposed | of_divided),
        random_exposed=expected_exposed(np.bincount(ends, minlength=len(documents))),
        random_divided=expected_exposed(np.array([sizes[document.group] - 1 for document in documents], dtype=np.intp)),
    )
