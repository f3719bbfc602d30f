"""Anchors: questions whose answers a model must know if its parts work, whatever it makes of the data set's images.

A *text anchor* puts the finding in words in the place of the image. A *positive control* asks about white squares that
are drawn on the data set's own images: whether there is one, where it is, and how many there are. Both end with the
task's own closed-set sentence. They are asked in addition to the task and change none of its figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final, Literal, TypeAlias, get_args

from medmllm_plugins.answers.lexicon import lexicon
from medmllm_plugins.answers.normalise import fold, strip_markup
from medmllm_plugins.data.core.dataset_spec import NO_FINDING, DatasetSpec
from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import Mark, mixed
from medmllm_plugins.errors import DataError
from medmllm_plugins.prompts.protocols import YES_NO, Question, ask
from medmllm_plugins.prompts.task_rows import correct_answer
from medmllm_plugins.prompts.task_settings import ANCHORS

MarkKind: TypeAlias = Literal["presence", "position", "count"]
AnchorKind: TypeAlias = Literal["text", "presence", "position", "count"]
MARK_KINDS: Final[tuple[MarkKind, ...]] = get_args(MarkKind)

_LEADS: Final[dict[MarkKind, str]] = {
    "presence": "Is there a white square in {where}?",
    "position": "In which corner of {where} is the white square?",
    "count": "How many white squares are in {where}?",
}
_OPTIONS: Final[dict[MarkKind, dict[str, tuple[str, ...]]]] = {
    "presence": {"yes": ("white square",), "no": ()},
    "position": {
        f"{vertical} {horizontal}": (f"{other} {horizontal}", f"{horizontal} {vertical}", f"{horizontal} {other}")
        for vertical, other in (("top", "upper"), ("bottom", "lower"))
        for horizontal in ("left", "right")
    },
    "count": {"1": ("one", "single"), "2": ("two",), "3": ("three",)},
}
_CELLS: Final = tuple((column, row) for row in range(3) for column in range(3))
"""Squares lie in different cells of a grid of 3 x 3, so that none covers another."""
_CORNERS: Final = {"top left": (0, 0), "top right": (2, 0), "bottom left": (0, 2), "bottom right": (2, 2)}


@dataclass(frozen=True, slots=True)
class AnchorItem:
    """One question of an anchor.

    Attributes:
        id: unique among the anchors of a task.
        label: the correct class, one of ``question.classes``.
        group: what is resampled for intervals: a wording, or the document's group.
        document: the document whose image is shown, with ``marks`` on it; ``None`` where there is no image.
    """

    id: str
    kind: AnchorKind
    question: Question
    label: str
    group: str
    document: Document | None = None
    marks: tuple[Mark, ...] = ()


def text_anchors(spec: DatasetSpec, question: Question) -> list[AnchorItem]:
    """Return a text anchor for each wording of each class: the wording, and then the task's ``question``.

    Of a multi-label set, the wordings of the finding asked about are to be answered with yes, and those of an image
    without findings with no. A set without wordings has no text anchors.

    Raises:
        DataError: a wording names a class, so that an answer could copy it.
    """
    if not spec.findings:
        return []
    check_findings(spec)
    if question.finding is None:
        wordings = spec.findings
    else:
        yes, no = YES_NO
        wordings = {yes: spec.findings[question.finding], no: spec.findings[NO_FINDING]}
    return [
        AnchorItem(
            id=f"text | {label} | {number}",
            kind="text",
            question=replace(question, text=f"Findings: {wording}.\n{question.text}"),
            label=label,
            group=wording,
        )
        for label, texts in wordings.items()
        for number, wording in enumerate(texts, start=1)
    ]


def check_findings(spec: DatasetSpec) -> None:
    """Check that no wording of a finding names a class of its set.

    Raises:
        DataError: one holds a class name or a synonym.
    """
    names = lexicon(tuple((label, tuple(synonyms)) for label, synonyms in spec.classes.items()), None)
    for label, texts in spec.findings.items():
        for text in texts:
            plain = strip_markup(fold(text))
            if mentions := names.mentions(plain):
                raise DataError(
                    f"{spec.title}: expected `findings` that name no class, got {text!r} for {label!r}, in which "
                    f"{plain[mentions[0].start : mentions[0].end]!r} is the name or a synonym of a class. Describe "
                    "what is seen in other words."
                )


def mark_anchors(
    documents: Sequence[Document],
    spec: DatasetSpec,
    *,
    finding: str | None = None,
    paraphrase: int = 0,
    count: int = ANCHORS,
    seed: int = 0,
) -> list[AnchorItem]:
    """Return the positive controls: each kind of question about each of at most ``count`` documents.

    Documents are sampled evenly from the classes, or of a multi-label set from those with and without ``finding``. The
    correct answers of each kind are balanced, also within each class.
    """
    chosen = sample_documents(documents, finding, count, seed)
    items = []
    for number, kind in enumerate(MARK_KINDS):
        question = mark_question(kind, spec, paraphrase)
        labels = tuple(question.classes)
        for index, document in enumerate(chosen):
            label = labels[(index + number) % len(labels)]
            marks = place_marks(kind, label, random.Random(f"{seed} {kind} {document.id}"))
            items.append(AnchorItem(f"{kind} | {document.id}", kind, question, label, document.group, document, marks))
    return items


def mark_question(kind: MarkKind, spec: DatasetSpec, paraphrase: int = 0) -> Question:
    """Return the question about white squares, followed by the closed-set sentence with its own options."""
    options = _OPTIONS[kind]
    question = ask("closed_set", spec.modality, options, paraphrase=paraphrase)
    lead = _LEADS[kind].format(where="the image" if spec.dimensions == 2 else "each slice")
    finding = "a white square" if kind == "presence" else None
    return replace(question, text=f"{lead}\n{question.text}", finding=finding)


def place_marks(kind: MarkKind, label: str, generator: random.Random) -> tuple[Mark, ...]:
    """Choose where the squares are that make ``label`` the correct answer to a question of that kind."""
    if kind == "position":
        cells = [_CORNERS[label]]
    elif kind == "presence":
        cells = generator.sample(_CELLS, int(label == YES_NO[0]))
    else:
        cells = generator.sample(_CELLS, int(label))
    # The middle fifth of a cell: squares in neighbouring cells stay apart.
    return tuple(
        ((column + generator.uniform(0.4, 0.6)) / 3, (row + generator.uniform(0.4, 0.6)) / 3) for column, row in cells
    )


def sample_documents(documents: Sequence[Document], finding: str | None, count: int, seed: int = 0) -> list[Document]:
    """Return at most ``count`` documents, evenly from the classes, each group once before any comes again.

    They are sorted by class, so that labels dealt in turn are balanced within each class.
    """
    ordered = sorted(documents, key=lambda document: mixed(f"{seed} {document.id}"))
    seen: dict[str, int] = {}
    classes: dict[str, list[tuple[int, Document]]] = {}
    for document in ordered:
        rank = seen[document.group] = seen.get(document.group, -1) + 1
        classes.setdefault(correct_answer(document, finding), []).append((rank, document))
    columns = [sorted(rows, key=lambda row: row[0]) for _, rows in sorted(classes.items())]
    chosen = [row[1] for rows in zip_longest(*columns) for row in rows if row is not None][:count]
    return sorted(chosen, key=lambda document: (correct_answer(document, finding), mixed(document.id)))
