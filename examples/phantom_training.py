"""What the scripts share that train small checkpoints on synthetic phantoms: images, questions and the optimiser.

Three kinds of question are asked, all made by the functions that the package asks them with:

- the task's own: which class an image shows;
- about white squares that are drawn on the image, as the positive control draws them, on other images: whether there
  is one, in which corner it is, and how many there are;
- the task's question after the finding in words, without an image. Of the declaration's wordings of each finding,
  training sees the first :data:`SEEN`, and besides them the sentences that :data:`PHRASES` make. The others are held
  out; most of their words occur in some sentence, so a model can answer them that has learnt what the words mean.

Matrices are updated by the orthogonalised gradient (Muon: Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon), which trains these models in fewer steps than AdamW.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.image_controls import Mark, draw_marks, mark_boxes
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.prompts.anchor_prompts import MARK_KINDS, MarkKind, mark_question, place_marks, text_anchors
from medmllm_plugins.prompts.protocols import Question, ask
from medmllm_plugins.prompts.wording import PARAPHRASES

PATCH = 8
SIDE = phantoms.SIZE // PATCH
"""Patches along each side of an image."""
CELLS: Final = 9
"""Squares are drawn in the cells of a grid of 3 x 3."""
SEEN: Final = 3
"""Wordings of each finding that training sees."""
PHRASES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "round mass": (
        ("a disc", "an ellipse", "a ball", "a pebble", "a bean", "a lump", "a compact blob", "a single egg"),
        (
            "with an even outline",
            "with a gently curved border",
            "with a sharp rim",
            "with a regular, unbroken edge",
            "without corners",
            "curved all around",
            "whose outline has no corners",
        ),
    ),
    "spiculated mass": (
        ("a core", "a dense centre", "a focus", "a dense lump", "a knot", "a spot"),
        (
            "with thorns all around",
            "with short needles",
            "with a jagged border",
            "that sends out thin rays",
            "with many narrow arms",
            "from which pointed lines radiate",
            "whose thorns and needles point outwards",
            "with arms that stick out of its outline",
        ),
    ),
    "textured patch": (
        ("an area", "a field", "a region", "a piece of background", "a part"),
        (
            "with parallel bands",
            "of fine stripes",
            "filled with a net",
            "covered by a mesh",
            "with crossing lines",
            "with a regular grid in it",
            "with narrow stripes side by side",
            "of mesh as bright as its surroundings",
        ),
    ),
    "no finding": (
        ("the image", "the background", "the anatomy", "everything", "each part", "all of the image"),
        (
            "is ordinary",
            "is plain",
            "looks empty",
            "looks as it should",
            "is undisturbed",
            "has nothing in it",
            "shows nothing that stands out",
            "is as plain as it should be everywhere",
        ),
    ),
}
"""Beginnings and ends of further sentences about each finding."""
# Patients from here on are in no fold of the set.
_FIRST_EXTRA = 1_000_000
# Rate of AdamW as a share of the matrices'.
_OTHERS = 0.15


@dataclass(frozen=True)
class TrainingSet:
    """Training images and their classes.

    Attributes:
        images: grey values, (N, 64, 64), uint8.
        covers: share of each patch that the finding covers, (N, 8, 8), float32.
        labels: index into the declaration's labels, (N,), int64.
    """

    images: Tensor
    covers: Tensor
    labels: Tensor

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Draw random batches, rotated and mirrored.

        Yields:
            Grey values, (B, 64, 64), uint8; covers, (B, 64), float32; labels, (B,), int64.
        """
        for _ in range(steps):
            rows = torch.randint(len(self.images), (size,), generator=generator)
            turns = torch.randint(8, (size,), generator=generator).tolist()
            grey, covers = (_turned(values[rows], turns) for values in (self.images, self.covers))
            yield grey, covers.flatten(1), self.labels[rows]


def _turned(values: Tensor, turns: Sequence[int]) -> Tensor:
    """Return each of B squares rotated and mirrored into one of its eight positions."""
    return torch.stack(
        [torch.rot90(image.T if turn >= 4 else image, turn % 4) for image, turn in zip(values, turns, strict=True)]
    )


def training_set(labels: Sequence[str], patients: int) -> TrainingSet:
    """Draw one image of each class for each of ``patients`` patients, who are in no fold of the data set."""
    drawn = [
        phantoms.draw(label, _FIRST_EXTRA + patient, view)
        for patient in range(patients)
        for view, label in enumerate(labels)
    ]
    images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
    covers = masks.float().view(-1, SIDE, PATCH, SIDE, PATCH).mean((2, 4))
    return TrainingSet(images, covers, torch.arange(len(labels)).repeat(patients))


def scaled(grey: Tensor) -> Tensor:
    """Return grey values, uint8, in [-1, 1], float32."""
    return grey.float() / 127.5 - 1.0


def _marked(grey: Tensor, marks: Sequence[Mark]) -> Tensor:
    """Return an image, (64, 64), uint8, with white squares on it."""
    image = draw_marks(Image.fromarray(grey.numpy()).convert("RGB"), marks)
    return torch.from_numpy(np.asarray(image)[..., 0].copy())


class QuestionSource:
    """Draws questions, and the answers that are correct."""

    def __init__(self, spec: DatasetSpec, seed: int, *, varied: bool) -> None:
        """Prepare the questions of a data set.

        Args:
            spec: the declaration, with wordings of its findings.
            seed: determines all questions and squares.
            varied: also change the order of the options, their wording and the sentence; otherwise the task's own
                question is asked.
        """
        self.spec, self.varied = spec, varied
        self.random = random.Random(seed)

    def squares(self, grey: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Draw one to three squares on some of the images.

        Returns:
            The images, (B, 64, 64), uint8; and for each patch 0, or 1 + the cell of the square on it, (B, 64), int64.
        """
        images, cells = grey.clone(), torch.zeros(grey.shape, dtype=torch.int64)
        for row in range(len(grey)):
            if self.random.random() < share:
                marks = place_marks("count", self.random.choice("123"), self.random)
                images[row] = _marked(grey[row], marks)
                boxes = mark_boxes((phantoms.SIZE, phantoms.SIZE), marks)
                for (x, y), (_, (left, top, right, bottom)) in zip(marks, boxes, strict=True):
                    cells[row, top:bottom, left:right] = 1 + 3 * int(3 * y) + int(3 * x)
        return images, cells.view(-1, SIDE, PATCH, SIDE, PATCH).amax((2, 4)).flatten(1)

    def about_images(
        self, grey: Tensor, labels: Tensor, squares: int, *, more: bool = False
    ) -> tuple[Tensor, list[list[tuple[str, str]]]]:
        """Ask about B images: about squares for the last ``squares`` of them, otherwise about the class.

        With ``more`` there are two further questions about each image.

        Returns:
            The images, (B, 64, 64), uint8; and for each the pairs of question and answer.
        """
        images, questions = grey.clone(), []
        for row, label in enumerate(labels.tolist()):
            if row < len(grey) - squares:
                pairs = [self._class(label)]
                others = [self._class(label), self._square("presence", "no")]
            else:
                # Counting is learnt most slowly.
                kind = self.random.choice((*MARK_KINDS, "count", "count"))
                answer = self.random.choice(mark_question(kind, self.spec).labels)
                marks = place_marks(kind, answer, self.random)
                images[row] = _marked(grey[row], marks)
                pairs = [self._square(kind, answer)]
                # Squares do not change the class.
                others = [self._class(label)]
                others.append(self._square("presence", "yes") if kind != "presence" else self._class(label))
            questions.append(pairs + others if more else pairs)
        return images, questions

    def _class(self, label: int) -> tuple[str, str]:
        question, names = self._task()
        return question.text, names[label]

    def _square(self, kind: MarkKind, answer: str) -> tuple[str, str]:
        return mark_question(kind, self.spec, self._paraphrase()).text, answer

    def in_words(self, count: int) -> list[tuple[str, str]]:
        """Return ``count`` pairs of question and answer about findings in words."""
        pairs = []
        for _ in range(count):
            label = self.random.choice(self.spec.labels)
            question, names = self._task()
            spec = self.spec.model_copy(update={"findings": {label: (self._wording(label),)}})
            (item,) = text_anchors(spec, question)
            pairs.append((item.question.text, names[self.spec.labels.index(label)]))
        return pairs

    def _wording(self, label: str) -> str:
        """Return what is seen of a class: a wording of the declaration or another sentence; some lack words."""
        text = self.random.choice(self.spec.findings[label][:SEEN])
        if self.random.random() < 0.6:
            text = " ".join(self.random.choice(part) for part in PHRASES[label])
        words = text.split()
        if self.random.random() < 0.3:
            words = [word for word in words if self.random.random() < 0.85] or words
        return " ".join(words)

    def _paraphrase(self) -> int:
        return self.random.randint(1, PARAPHRASES) if self.varied and self.random.random() < 0.3 else 0

    def _task(self) -> tuple[Question, list[str]]:
        """Return a question about the class, and what is to be answered for each of the labels."""
        names = list(self.spec.labels)
        if not self.varied or self.random.random() < 0.5:
            return ask("closed_set", self.spec.modality, self.spec.classes), names
        if self.random.random() < 0.4:
            names = [self.random.choice((word, *self.spec.classes[word])) for word in names]
        order = self.random.sample(range(len(names)), len(names))
        classes = dict.fromkeys(names, ())
        return ask("closed_set", self.spec.modality, classes, order=order, paraphrase=self._paraphrase()), names


def example_texts(spec: DatasetSpec, before: str) -> list[str]:
    """Return text that holds every word of the questions and answers, for a tokenizer.

    ``before`` is what stands before an answer: a blank or nothing.
    """
    answers = [name for label, synonyms in spec.classes.items() for name in (label, *synonyms)]
    texts = [f"Findings: {wording}.\n" for wordings in spec.findings.values() for wording in wordings]
    texts += [f" {part}" for parts in PHRASES.values() for phrases in parts for part in phrases]
    for paraphrase in range(PARAPHRASES + 1):
        texts.append(ask("closed_set", spec.modality, spec.classes, paraphrase=paraphrase).text)
        questions = [mark_question(kind, spec, paraphrase) for kind in MARK_KINDS]
        texts += [question.text for question in questions]
        answers += [label for question in questions for label in question.labels]
    return texts + [before + answer for answer in answers]


def initialise(model: nn.Module, width: int) -> None:
    """Initialise the matrices again: the usual std of 0.02 is for widths of thousands, and too small here.

    ``width`` is that of the language model.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and not name.endswith("lm_head"):
            factor = 1.0
            if not isinstance(module, nn.Linear):
                factor = 4.0  # 1 suits photographs, which vary several times as much as a phantom
            elif name.rsplit(".", 1)[-1] in ("proj", "o_proj", "out_proj", "down_proj", "fc2"):
                factor = 0.5  # blocks add little to the residual stream at first
            nn.init.normal_(module.weight, std=factor * module.weight[0].numel() ** -0.5)
        if isinstance(module, nn.Embedding):
            # Those of words are tied to the output, so their std also sets the confidence of the first answers.
            # Positions of patches would be lost beside what patches show with the same std.
            nn.init.normal_(module.weight, std=0.4 if "position" in name else width**-0.5)


class Descent:
    """Muon for matrices and AdamW for all else, with warm-up, cosine decay and clipped gradients."""

    def __init__(self, parts: Sequence[tuple[nn.Module, float]], rate: float, steps: int) -> None:
        """Take over the parameters of some modules.

        Args:
            parts: modules with their share of the rate; a parameter of several modules belongs to the first.
            rate: highest rate; the root mean square of a matrix's update is 0.2 times the rate.
            steps: total number of steps.
        """
        shares: dict[nn.Parameter, float] = {}
        looked_up = set()
        for part, share in parts:
            shares = dict.fromkeys(part.parameters(), share) | shares
            looked_up |= {module.weight for module in part.modules() if isinstance(module, nn.Embedding)}
        self.parameters = list(shares)
        self.matrices = [
            (value, torch.zeros_like(value), share)
            for value, share in shares.items()
            if value.dim() == 2 and value not in looked_up
        ]
        known = {value for value, _, _ in self.matrices}
        groups = [
            {"params": [value], "lr": share * rate * _OTHERS} for value, share in shares.items() if value not in known
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
        warm = max(1, steps // 20)

        def factor(step: int) -> float:
            cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
            return min(1.0, (step + 1) / warm) * (0.02 + 0.98 * cosine)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, factor)
        self.rate, self.factor = rate, factor

    def step(self, loss: Tensor) -> None:
        """Update the parameters once."""
        for value in self.parameters:
            value.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.rate * self.factor(self.schedule.last_epoch)
        self.adam.step()
        self.schedule.step()
        with torch.no_grad():
            for value, momentum, share in self.matrices:
                if value.grad is not None:
                    momentum.mul_(0.95).add_(value.grad)
                    value.mul_(1.0 - 0.02 * share * rate)
                    length = 0.2 * math.sqrt(max(value.shape)) * share * rate
                    value.sub_(orthogonal(value.grad + 0.95 * momentum), alpha=length)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with all singular values near one, by five steps of a Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
    return wide.T if tall else wide


def answer_loss(model: Any, inputs: dict[str, Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss on the answers' tokens, and which of B rows have all of them correct, (B,), bool.

    ``targets``, (B, T), are the next tokens at the last T positions of the inputs, -100 where there is none to learn.
    """
    states = model.model(**inputs, use_cache=False).last_hidden_state[:, -targets.shape[1] :]
    rows, columns = (targets != -100).nonzero(as_tuple=True)
    # Logits of the other positions would take a tenth of the time.
    logits, wanted = model.lm_head(states[rows, columns]), targets[rows, columns]
    wrong = torch.zeros(len(targets)).index_add(0, rows, (logits.argmax(-1) != wanted).float())
    return nn.functional.cross_entropy(logits, wanted), wrong == 0


class Log:
    """Report the mean loss and shares of correct answers of every 50 steps."""

    def __init__(self, name: str, steps: int, say: Callable[[str], object]) -> None:
        self.name, self.steps, self.say, self.begin = name, steps, say, time.process_time()
        self.rows: list[tuple[float, ...]] = []

    def __call__(self, loss: Tensor, **correct: Tensor) -> None:
        """Record the loss of one step, and which answers of each kind are correct, bool; there may be none."""
        self.rows.append((loss.item(), *(values.float().mean().item() for values in correct.values())))
        step = len(self.rows)
        if step % 50 == 0 or step == self.steps:
            mean_loss, *means = np.nanmean(self.rows[-50:], axis=0)
            shares = "".join(f", {name} {mean:.3f}" for name, mean in zip(correct, means, strict=True))
            seconds = time.process_time() - self.begin
            self.say(f"{self.name} {step}/{self.steps}: loss {mean_loss:.3f}{shares}, {seconds:.0f} s of CPU time")
