"""Warnings about labels and folds of a user's own data set, in which nothing is damaged."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS, Document
from medmllm_plugins.errors import shown
from medmllm_plugins.utils.declared_model import few
from medmllm_plugins.utils.suggestions import one_edit_apart

SMALL_TEST: Final = 50
"""Warn below this number of test documents: at 50, a 95% interval extends 14 points to either side."""
_SHOWN: Final = 5
_MOST_COMPARED: Final = 200
"""Up to this many classes all pairs of names are compared: 20,000 pairs take a fraction of a second."""
_MIN_LENGTH: Final = 4
"""Shorter names that differ in one letter, such as T1 and T2 or left and lift, are more often meant than mistyped."""
_ROMAN: Final = re.compile(r"[ivx]+[a-e]?")
_CODE: Final = re.compile(r"([^\W\d_]*)\d+[^\W\d_]?")
"""Numbered grades and stages: 4a, pT2b, BIRADS4c."""
_LOOK_ALIKES: Final = str.maketrans("абвеікмнорстухѕјαβεικνορτυχ", "abbeikmhopctyxsjabeiknoptux")
"""Cyrillic and Greek letters, in lower case, to the Latin ones that look like them."""


def label_warnings(spec: DatasetSpec, documents: Sequence[Document]) -> list[str]:
    """Return sentences about classes and folds that a reader of the numbers should know."""
    noun = "volume" if spec.dimensions == 3 else "image"
    return [
        *_similar_names(spec, documents),
        *_rare_classes(spec, documents, noun),
        *_empty_folds(spec, documents),
        *_small_test_fold(documents, noun),
    ]


def two_labels(
    contents: Sequence[str], names: Sequence[str], labels: Sequence[tuple[str, ...]], noun: str
) -> list[str]:
    """Return a sentence on files with identical content and different labels; none where there are none.

    ``contents`` are digests of pixels or voxels; ``noun`` is ``"image"`` or ``"volume"``.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        alike[content].append(index)
    clashes = [rows for rows in alike.values() if len({labels[row] for row in rows}) > 1]
    if not clashes:
        return []
    examples = [
        " = ".join(f"{names[row]} ({' + '.join(labels[row]) or 'no finding'})" for row in rows[:3]) for rows in clashes
    ]
    count = "One" if len(clashes) == 1 else str(len(clashes))
    return [
        f"{count} {noun}{' has' if len(clashes) == 1 else 's have'} more than one label: the same content is in "
        f"several files, {few(examples, _SHOWN)}. At most one of these labels can be right: correct them."
    ]


def same_spelling(first: str, second: str) -> bool:
    """Return whether two names differ in case, blanks, punctuation, accents or look-alike letters only."""
    return _plain(first) == _plain(second)


def similar_spelling(first: str, second: str) -> bool:
    """Return whether one of two names is likely the other mistyped: one letter more, fewer, changed or swapped.

    Names that differ in a number, a Roman numeral, a grade (``4a``, ``IIIb``) or a single letter (``type a``, ``type
    b``), or in a letter in front (``typical``, ``atypical``), mean different things.
    """
    short, long = sorted((_plain(first), _plain(second)), key=len)
    if short == long:
        return True
    if len(short) < _MIN_LENGTH or len(long) - len(short) > 1 or long.endswith(short):
        return False
    words = [re.findall(r"[^\W_]+", name.casefold()) for name in (first, second)]
    if len(words[0]) == len(words[1]):
        differing = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
        if any(all(len(word) == 1 or _ROMAN.fullmatch(word) for word in pair) for pair in differing):
            return False
        codes = [[_CODE.fullmatch(word) for word in pair] for pair in differing]
        if any(left and right and left[1] == right[1] for left, right in codes):
            return False
    if re.sub(r"[\W\d_]", "", short) == re.sub(r"[\W\d_]", "", long):  # all that differs is a number or a sign
        return False
    return one_edit_apart(short, long)


def _plain(name: str) -> str:
    """Return a name without what a reader may not see: case, accents, blanks, most punctuation, look-alike letters.

    Signs that carry meaning stay: ``ER+`` and ``ER-``, ``<5`` and ``>5``, ``1.5`` and ``15`` are different classes.
    """
    decomposed = re.sub(r"[\u2010-\u2015\u2212]", "-", unicodedata.normalize("NFKD", name.casefold()))
    decomposed = re.sub(r"(?<=\w)[-_/](?=\w)|(?<!\d)[.,]|[.,](?!\d)", "", decomposed)
    return "".join(char for char in decomposed if char.isalnum() or char in "+-<>=≤≥%.,*").translate(_LOOK_ALIKES)


def _similar_names(spec: DatasetSpec, documents: Sequence[Document]) -> Iterator[str]:
    counts = Counter(label for document in documents for label in document.labels)
    similar = similar_spelling if len(spec.labels) <= _MOST_COMPARED else same_spelling
    pairs = [
        f"{shown(first)} ({counts[first]}) and {shown(second)} ({counts[second]})"
        for first, second in _candidates(spec.labels)
        if similar(first, second)
    ]
    if pairs:
        yield (
            f"Classes with almost the same name: {few(pairs, _SHOWN)}. If they are one class, correct the "
            "labels, otherwise a model is asked to distinguish them."
        )


def _candidates(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names to compare: all of them, or of very many classes those that look the same."""
    if len(labels) <= _MOST_COMPARED:
        yield from itertools.combinations(labels, 2)
        return
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[_plain(label)].append(label)
    for names in alike.values():
        yield from itertools.pairwise(names)


def _rare_classes(spec: DatasetSpec, documents: Sequence[Document], noun: str) -> Iterator[str]:
    groups: Mapping[str, set[str]] = {label: set() for label in spec.labels}
    counts = Counter(label for document in documents for label in document.labels)
    for document in documents:
        for label in document.labels:
            groups[label].add(document.group)
    single = [shown(label) for label in spec.labels if counts[label] == 1]
    if single:
        yield f"Only one {noun} of {few(single, _SHOWN)}: it is in one fold, so the others lack that class."
    one_group = [shown(label) for label in spec.labels if counts[label] > 1 and len(groups[label]) == 1]
    if one_group:
        yield (
            f"All {noun}s of {few(one_group, _SHOWN)} belong to one group (patient or near-duplicates), so "
            "they are in one fold and the others lack that class."
        )


def _empty_folds(spec: DatasetSpec, documents: Sequence[Document]) -> Iterator[str]:
    present: dict[str, set[str]] = defaultdict(set)
    for document in documents:
        present[document.fold].update(document.labels)
    for fold in FOLDS:
        missing = [shown(label) for label in spec.labels if label not in present.get(fold, spec.labels)]
        if missing:
            effect = {
                "train": "probes and reference classifiers cannot learn it",
                "validation": "settings are chosen without it",
                "test": "nothing is measured of it",
            }[fold]
            yield f"No {few(missing, _SHOWN)} in the {fold} fold: {effect}."


def _small_test_fold(documents: Sequence[Document], noun: str) -> Iterator[str]:
    count = sum(document.fold == "test" for document in documents)
    if 0 < count < SMALL_TEST:
        half_width = 100 * 1.96 * math.sqrt(0.25 / count)
        yield (
            f"The test fold has {count} {noun}{'' if count == 1 else 's'}: a 95% interval of accuracy extends up to "
            f"{min(half_width, 100):.0f} points to either side."
        )
