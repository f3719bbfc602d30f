"""Questions about images and their answers, as medmllm-plugins asks them, for training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from medmllm_plugins import Dataset, Document
from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.data.core.image_controls import draw_marks
from medmllm_plugins.prompts.anchor_prompts import MARK_KINDS, MarkKind, mark_question, place_marks
from medmllm_plugins.prompts.protocols import Protocol, ask
from medmllm_plugins.prompts.wording import PARAPHRASES

MODALITY_QUESTIONS: Final = (
    "What kind of medical image is this?",
    "Which imaging modality is shown?",
    "How was this image made?",
)
SHARES: Final[Mapping[str, float]] = {"closed_set": 0.45, "letter": 0.15, "open": 0.1, "modality": 0.1, "words": 0.1}
"""How often each kind of question is drawn; the rest are about white squares."""


@dataclass(frozen=True, slots=True)
class View:
    """An image that the tower reads once.

    Attributes:
        data: index of its data set.
        document: the document.
        mirrored: whether left and right are exchanged.
        kind: kind of question about white squares on it; ``None`` where there are none.
        answer: the answer to that question.
    """

    data: int
    document: Document
    mirrored: bool = False
    kind: MarkKind | None = None
    answer: str = ""

    def image(self, data: Dataset) -> Image.Image:
        """Read the image, and draw its squares."""
        image = data.image(self.document)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.kind is None:
            return image
        marks = place_marks(self.kind, self.answer, random.Random(f"{self.kind} {self.answer} {self.document.id}"))
        return draw_marks(image.convert("RGB"), marks)


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer.

    Attributes:
        view: index of the view that it is about; ``None`` for a finding in words.
    """

    view: int | None
    question: str
    answer: str


def views_of(
    sets: Sequence[Dataset], fold: Fold, limit: int, marked: int, *, mirrored: bool, seed: int = 0
) -> list[View]:
    """Choose the images of a fold.

    Args:
        sets: the data sets.
        fold: the fold.
        limit: the most documents of each set.
        marked: documents of each set that are shown with white squares as well.
        mirrored: whether each image is shown mirrored, too.
        seed: of the choice.
    """
    views = []
    for index, data in enumerate(sets):
        documents = list(data.select([fold]))
        generator = random.Random(f"{seed} {data.spec.name}")
        generator.shuffle(documents)
        for number, document in enumerate(documents[:limit]):
            views.append(View(index, document))
            if mirrored:
                views.append(View(index, document, mirrored=True))
            if number < marked:
                kind = MARK_KINDS[number % len(MARK_KINDS)]
                answer = generator.choice(list(mark_question(kind, data.spec).labels))
                views.append(View(index, document, kind=kind, answer=answer))
    return views


class QuestionSource:
    """Draws examples: data sets, classes and kinds of question are balanced."""

    def __init__(self, sets: Sequence[Dataset], views: Sequence[View]) -> None:
        self._sets = sets
        self._plain: dict[tuple[int, str], list[int]] = {}
        self._marked: list[list[int]] = [[] for _ in sets]
        self._views = views
        for number, view in enumerate(views):
            if view.kind:
                self._marked[view.data].append(number)
            else:
                self._plain.setdefault((view.data, view.document.labels[0]), []).append(number)

    def draw(self, generator: random.Random, *, words: bool) -> Example:
        """Draw one example; ``words`` says whether findings in words are asked about as well."""
        index = generator.randrange(len(self._sets))
        spec = self._sets[index].spec
        kinds = [kind for kind in SHARES if words or kind != "words"]
        marks = "marks" if self._marked[index] else "closed_set"
        weights = [*(SHARES[kind] for kind in kinds), 1 - sum(SHARES.values())]
        (kind,) = generator.choices([*kinds, marks], weights)
        paraphrase = generator.randint(0, PARAPHRASES)
        if kind == "marks":
            number = generator.choice(self._marked[index])
            view = self._views[number]
            assert view.kind is not None, "only views with squares are among the marked"
            return Example(number, mark_question(view.kind, spec, paraphrase).text, view.answer)
        label = generator.choice([name for name in spec.labels if (index, name) in self._plain])
        number = generator.choice(self._plain[index, label])
        if kind == "modality":
            return Example(number, generator.choice(MODALITY_QUESTIONS), spec.modality)
        protocol: Protocol = "letter" if kind == "letter" else "open" if kind == "open" else "closed_set"
        order = generator.sample(range(len(spec.labels)), len(spec.labels)) if protocol != "open" else None
        question = ask(protocol, spec.modality, spec.classes, order=order, paraphrase=paraphrase)
        answer = question.labels[list(question.classes).index(label)]
        if kind == "words" and spec.findings:
            finding = generator.choice(spec.findings[label])
            return Example(None, f"Findings: {finding}.\n{question.text}", answer)
        return Example(number, question.text, answer)
