"""Fixed re-readings of a model's words: fitted on the validation fold, tried on the test fold.

Classes are renamed, words' preferences are taken off, or scores go through an affine map. What a re-reading recovers
was in the words and was misread.

Sources: Kuhn, "The Hungarian method for the assignment problem", 1955 (the best renaming); Zhao et al., "Calibrate
Before Use", ICML 2021 (scores less those of a content-free input).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.results.comparison import sign_flip

ALPHA = 0.05
"""A renaming is used only if its gain on held-out parts of the validation fold has a p-value below this."""
RIDGE = 1e-3
"""Weight of half the squared offsets beside the summed log-loss: it bounds the offset of a class that never occurs."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse L2 strengths tried for the affine map, strongest first, in scikit-learn's ``C``."""
FOLDS = 5
"""Parts of the validation fold for what is decided on held-out parts of it."""
UNPARSED = -1
"""Stands in ``answers`` for an answer that was not parsed; it is wrong under every reading."""
_FLOOR = 1e-6
"""Smaller probabilities count as this, so that no document alone decides on a strength."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationFold:
    """What re-readings are fitted on.

    Attributes:
        truth: (n,) index of the true class, from 0; at least two classes occur.
        group: (n,) integer, equal within a group (a patient, a lesion, a source figure).
        answers: (n,) index of the answered class, :data:`UNPARSED` where none; ``None`` if nothing was generated here,
            and then the label that scores highest stands in for the answer.
        scores: (n, K) float64, log p(label | prompt, image) summed over the label's tokens; ``None`` if there are none.
    """

    truth: Ints
    group: Ints
    answers: Ints | None = None
    scores: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFold:
    """What everything is judged on: the test fold.

    Attributes:
        truth: (n,) index of the true class, from 0.
        group: (n,) integer, equal within a group; groups are resampled as a whole.
        answers: (n,) index of the answered class, :data:`UNPARSED` where none.
        probe: (n,) class predicted by the probe on the last token's features at the end of the LLM.
        scores: (n, K) float64, log p(label | prompt, image) summed over the label's tokens; ``None`` if there are none.
        blank: (n, K) float64, the same for an image that holds nothing; ``None`` if there are none.
        lens: (L, n, K) float64, logits of the labels' verbalizers read off each of L layers; ``None`` if there are
            none.
    """

    truth: Ints
    group: Ints
    answers: Ints
    probe: Ints
    scores: Floats | None = None
    blank: Floats | None = None
    lens: Floats | None = None


def best_relabelling(answers: Ints, truth: Ints, classes: int) -> Ints:
    """The one-to-one renaming of answers that makes most of them right.

    Args:
        answers: (n,) answered class, :data:`UNPARSED` where none.
        truth: (n,) true class.
        classes: K.

    Returns:
        (K,) the class that each answered class is renamed to. Of equally good ones, one that leaves most as they are.
    """
    parsed = answers != UNPARSED
    pairs = np.bincount(answers[parsed] * classes + truth[parsed], minlength=classes**2).reshape(classes, classes)
    # Counts are whole numbers, so K unrenamed classes, worth 1 each, never outweigh a document, worth K + 1.
    _, renamed = linear_sum_assignment(pairs * (classes + 1) + np.eye(classes, dtype=np.intp), maximize=True)
    found: Ints = renamed.astype(np.intp)
    return found


def trusted_relabelling(answers: Ints, truth: Ints, group: Ints, classes: int, seed: int = 0) -> Ints:
    """:func:`best_relabelling` where it is better by more than chance would have it, else no renaming.

    The best of K! renamings looks better than none on the documents it was chosen on, even for answers that are
    guesses. So it is chosen on four fifths of the groups and tried on the last fifth, in turn, and the held-out gains
    are put to :func:`~medmllm_plugins.results.comparison.sign_flip` by group: five groups or fewer never suffice.

    Args:
        answers: (n,) answered class, :data:`UNPARSED` where none.
        truth: (n,) true class.
        group: (n,) integer, equal within a group.
        classes: K.
        seed: of parts and flips.

    Returns:
        (K,) the class that each answered class is renamed to.
    """
    gain = np.zeros(len(truth))
    for held in _held_out_parts(truth, group, seed):
        renaming = best_relabelling(answers[~held], truth[~held], classes)
        before, after = answers[held], relabel(answers[held], renaming)
        gain[held] = (after == truth[held]).astype(np.float64) - (before == truth[held])
    _, member = np.unique(group, return_inverse=True)
    p = sign_flip(np.bincount(member, gain).astype(np.float64), seed)
    if gain.sum() > 0 and p < ALPHA:
        return best_relabelling(answers, truth, classes)
    return np.arange(classes, dtype=np.intp)


def relabel(answers: Ints, renaming: Ints) -> Ints:
    """Answers (n,) under a renaming (K,); those not parsed stay so."""
    found: Ints = np.where(answers == UNPARSED, UNPARSED, renaming[answers])
    return found


def fit_offsets(scores: Floats, truth: Ints) -> Floats:
    """The offset of each class that makes the true labels most likely under ``softmax(scores + offsets)``.

    The summed log-loss plus :data:`RIDGE` / 2 times the squared offsets is strictly convex, so the minimum is unique.

    Args:
        scores: (n, K) nats.
        truth: (n,) true class.

    Returns:
        (K,) nats, with mean 0.
    """
    n, classes = scores.shape
    true = np.eye(classes)[truth]

    def loss(offsets: Floats) -> tuple[float, Floats]:
        shifted = scores + offsets
        shifted -= shifted.max(1, keepdims=True)
        total = np.log(np.exp(shifted).sum(1, keepdims=True))
        gradient = (np.exp(shifted - total) - true).sum(0) + RIDGE * offsets
        value = float((total - (shifted * true).sum(1, keepdims=True)).sum() + RIDGE / 2 * offsets @ offsets)
        return value / n, gradient / n

    found = minimize(loss, np.zeros(classes), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    centred: Floats = found - found.mean()  # the ridge has it at 0 already, but for rounding
    return centred


def fit_affine(scores: Floats, truth: Ints, group: Ints, seed: int = 0) -> Pipeline:
    """An affine map of the scores, by multinomial logistic regression with an L2 penalty.

    The strength is that of :data:`STRENGTHS` with the lowest log-loss on held-out groups, the strongest of equal ones.

    Args:
        scores: (n, K) nats.
        truth: (n,) true class; at least two occur.
        group: (n,) integer, equal within a group.
        seed: of the parts.

    Returns:
        A fitted scikit-learn pipeline; give its ``predict`` what :func:`affine_features` makes of scores.
    """
    features = affine_features(scores)
    losses = np.zeros(len(STRENGTHS))
    # Systems this small gain nothing from threads, and on a busy machine lose tenfold by waiting for one another.
    with threadpool_limits(1):
        for held in _held_out_parts(truth, group, seed):
            if len(np.unique(truth[~held])) < 2:
                continue  # nothing can be fitted without this part
            for row, strength in enumerate(STRENGTHS):
                model = _regression(strength).fit(features[~held], truth[~held])
                true = model.predict_proba(features[held])[truth[held][:, None] == model.classes_]
                # A class that only occurs in the held-out part adds the same under every strength: it is left out.
                losses[row] -= np.log(np.maximum(true, _FLOOR)).sum()
        return _regression(STRENGTHS[int(losses.argmin())]).fit(features, truth)


def affine_features(scores: Floats) -> Floats:
    """Each score's distance from the mean of its document's scores, and that mean: (n, K) to (n, K + 1).

    Scores of one document rise and fall together, far more than they differ. Standardised as they are, what tells
    classes apart would be so small that the penalty wipes it out. A linear change of basis, so the map stays affine in
    the scores.
    """
    mean = scores.mean(1, keepdims=True)
    return np.concatenate([scores - mean, mean], axis=1)


class Recalibrations:
    """All that a validation fold allows; they see nothing else.

    Attributes:
        commonest: the fold's commonest class.
        relabelling: (K,) for each answered class the class that it is renamed to.
        relabelled_on: what that was fitted on: answers, or the labels that score highest where there are no answers.
        permutation: (K,) the same for the label that scores highest.
        offsets: (K,) nats of each class, with mean 0.

    What the fold does not allow is ``None``.
    """

    def __init__(self, fold: ValidationFold, classes: int, seed: int = 0) -> None:
        self.commonest = int(np.bincount(fold.truth, minlength=classes).argmax())
        self.relabelling: Ints | None = None
        self.relabelled_on: Literal["answers", "scores"] | None = None
        self.permutation: Ints | None = None
        self.offsets: Floats | None = None
        self._affine: Pipeline | None = None
        if fold.scores is not None:
            self.permutation = trusted_relabelling(highest_scoring(fold.scores), fold.truth, fold.group, classes, seed)
            self.offsets = fit_offsets(fold.scores, fold.truth)
            self._affine = fit_affine(fold.scores, fold.truth, fold.group, seed)
            self.relabelling, self.relabelled_on = self.permutation, "scores"
        if fold.answers is not None:
            self.relabelling = trusted_relabelling(fold.answers, fold.truth, fold.group, classes, seed)
            self.relabelled_on = "answers"

    def readings(self, test: ScoredFold) -> dict[str, Ints]:
        """By name the answers, (n,), of every reading that both folds allow."""
        found: dict[str, Ints] = {}
        if test.scores is not None:
            found["scores"] = highest_scoring(test.scores)
        if self.relabelling is not None:
            found["relabelled"] = relabel(test.answers, self.relabelling)
        if test.scores is not None and test.blank is not None:
            found["blank"] = highest_scoring(test.scores - test.blank)
        if test.scores is not None and self.permutation is not None:
            found["permuted"] = relabel(highest_scoring(test.scores), self.permutation)
        if test.scores is not None and self.offsets is not None:
            found["offsets"] = highest_scoring(test.scores + self.offsets)
        if test.scores is not None and self._affine is not None:
            found["affine"] = self._affine.predict(affine_features(test.scores)).astype(np.intp)
        return found


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _held_out_parts(truth: Ints, group: Ints, seed: int) -> list[Any]:
    """Masks, (n,) bool each, of the held-out parts: whole groups, dealt out class by class so that classes spread."""
    groups, first, member = np.unique(group, return_index=True, return_inverse=True)
    if len(groups) < 2:
        return []
    order = np.lexsort((np.random.default_rng(seed).random(len(groups)), truth[first]))
    parts = min(FOLDS, len(groups))
    part = np.empty(len(groups), dtype=np.intp)
    part[order] = np.arange(len(groups)) % parts
    return [part[member] == k for k in range(parts)]


def highest_scoring(scores: Floats) -> Ints:
    """(n,) class of the highest of each document's scores (n, K); of equal ones the first."""
    found: Ints = scores.argmax(1).astype(np.intp)
    return found
