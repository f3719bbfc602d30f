"""Output recalibrations: fixed changes of answers or label scores, fitted on the validation fold.

Classes are renamed, a preference for certain classes is removed, or scores go through an affine map. What a
recalibration recovers was present in the outputs.

Sources: Kuhn, "The Hungarian method for the assignment problem", 1955 (the best renaming); Zhao et al., "Calibrate
Before Use", ICML 2021 (scores less those of a content-free input).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment, minimize
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.results.comparison import sign_flip

ALPHA = 0.05
"""A relabelling is used only if its gain on held-out parts of the validation fold has a p-value below this."""
RIDGE = 1e-3
"""Weight of half the squared offsets beside the summed log-loss: it bounds the offset of a class that never occurs."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse L2 strengths tried for the affine map, strongest first, in scikit-learn's ``C``."""
FOLDS = 5
"""Number of parts that the validation fold is divided into for cross-validation."""
UNPARSED = -1
"""The class of an answer that was not parsed, in ``answers``; it is wrong under every recalibration."""
_MIN_PROBABILITY = 1e-6
"""Smaller probabilities count as this, so that no single document decides on a strength."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationFold:
    """The validation fold, on which recalibrations are fitted.

    Attributes:
        truth: (n,) index of the true class, from 0; at least two classes occur.
        group: (n,) integer, equal within a group (a patient, a lesion, a source figure).
        answers: (n,) index of the answered class, :data:`UNPARSED` where none; ``None`` if nothing was generated here,
            and then the label that scores highest is used as the answer.
        scores: (n, K) float64, log p(label | prompt, image) summed over the label's tokens; ``None`` if there are none.
    """

    truth: Ints
    group: Ints
    answers: Ints | None = None
    scores: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFold:
    """The test fold, on which everything is evaluated.

    Attributes:
        truth: (n,) index of the true class, from 0.
        group: (n,) integer, equal within a group; groups are resampled as a whole.
        answers: (n,) index of the answered class, :data:`UNPARSED` where none.
        probe: (n,) class predicted by the probe on the last token's features at the end of the LLM.
        scores: (n, K) float64, log p(label | prompt, image) summed over the label's tokens; ``None`` if there are none.
        blank: (n, K) float64, the same for a blank image; ``None`` if there are none.
        lens: (L, n, K) float64, logits of the labels at each of L layers (logit lens); ``None`` if there are none.
    """

    truth: Ints
    group: Ints
    answers: Ints
    probe: Ints
    scores: Floats | None = None
    blank: Floats | None = None
    lens: Floats | None = None


def best_relabelling(answers: Ints, truth: Ints, classes: int) -> Ints:
    """Return the one-to-one relabelling of answers with the highest accuracy.

    Both arrays are (n,) classes from 0 to K - 1, :data:`UNPARSED` where nothing was answered.

    Returns:
        (K,) the class that each answered class is renamed to. Of equally good ones, one that changes fewest.
    """
    parsed = answers != UNPARSED
    pairs = np.bincount(answers[parsed] * classes + truth[parsed], minlength=classes**2).reshape(classes, classes)
    # Counts are whole numbers, so K unrenamed classes, worth 1 each, never outweigh a document, worth K + 1.
    _, renamed = linear_sum_assignment(pairs * (classes + 1) + np.eye(classes, dtype=np.intp), maximize=True)
    relabelling: Ints = renamed.astype(np.intp)
    return relabelling


def trusted_relabelling(answers: Ints, truth: Ints, group: Ints, classes: int, seed: int = 0) -> Ints:
    """Return :func:`best_relabelling` if it is significantly better than none, else the identity.

    The best of K! relabellings looks better than none on the documents it was chosen on, even for guesses. So it is
    cross-validated over groups, and the held-out gains are tested with
    :func:`~medmllm_plugins.results.comparison.sign_flip` by group: five groups or fewer never suffice.

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
    """Rename answers (n,) by (K,) new classes; unparsed answers stay unparsed."""
    renamed: Ints = np.where(answers == UNPARSED, UNPARSED, renaming[answers])
    return renamed


def fit_offsets(scores: Floats, truth: Ints) -> Floats:
    """Fit the offset of each class that makes the true labels most likely under ``softmax(scores + offsets)``.

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

    offsets: Floats = minimize(loss, np.zeros(classes), jac=True, method="BFGS", options={"gtol": 1e-7}).x
    centred: Floats = offsets - offsets.mean()  # the ridge already centres them, except for rounding
    return centred


def fit_affine(scores: Floats, truth: Ints, group: Ints, seed: int = 0) -> Pipeline:
    """Fit an affine map of the scores by multinomial logistic regression with an L2 penalty.

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
    # Systems this small gain nothing from threads, and on a busy machine threads that wait make them ten times slower.
    with threadpool_limits(1):
        for held in _held_out_parts(truth, group, seed):
            if len(np.unique(truth[~held])) < 2:
                continue  # nothing can be fitted without this part
            for row, strength in enumerate(STRENGTHS):
                model = _regression(strength).fit(features[~held], truth[~held])
                true = model.predict_proba(features[held])[truth[held][:, None] == model.classes_]
                # A class that only occurs in the held-out part adds the same for every strength and is left out.
                losses[row] -= np.log(np.maximum(true, _MIN_PROBABILITY)).sum()
        return _regression(STRENGTHS[int(losses.argmin())]).fit(features, truth)


def affine_features(scores: Floats) -> Floats:
    """Transform scores (n, K) to their deviations from the document's mean score, and that mean: (n, K + 1).

    The scores of one document vary together far more than they differ. If they were standardised directly, the
    differences between classes would be so small that the penalty removes them. The change of basis is linear, so the
    map stays affine in the scores.
    """
    mean = scores.mean(1, keepdims=True)
    return np.concatenate([scores - mean, mean], axis=1)


class Recalibrations:
    """All recalibrations that a validation fold allows, fitted on it alone.

    Attributes:
        most_common: the fold's most common class.
        relabelling: (K,) for each answered class the class that it is renamed to.
        relabelled_on: what that was fitted on: answers, or the labels that score highest where there are no answers.
        permutation: (K,) the same for the label that scores highest.
        offsets: (K,) nats of each class, with mean 0.

    Recalibrations that the fold does not allow are ``None``.
    """

    def __init__(self, fold: ValidationFold, classes: int, seed: int = 0) -> None:
        self.most_common = int(np.bincount(fold.truth, minlength=classes).argmax())
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

    def apply(self, test: ScoredFold) -> dict[str, Ints]:
        """Return the recalibrated answers, (n,) each, by name of every recalibration that both folds allow."""
        answers: dict[str, Ints] = {}
        if test.scores is not None:
            answers["scores"] = highest_scoring(test.scores)
        if self.relabelling is not None:
            answers["relabelled"] = relabel(test.answers, self.relabelling)
        if test.scores is not None and test.blank is not None:
            answers["blank"] = highest_scoring(test.scores - test.blank)
        if test.scores is not None and self.permutation is not None:
            answers["permuted"] = relabel(highest_scoring(test.scores), self.permutation)
        if test.scores is not None and self.offsets is not None:
            answers["offsets"] = highest_scoring(test.scores + self.offsets)
        if test.scores is not None and self._affine is not None:
            answers["affine"] = self._affine.predict(affine_features(test.scores)).astype(np.intp)
        return answers

    def affine_log_p(self, scores: Floats) -> Floats:
        """Return log probabilities of the classes, (n, K), by the affine map of label scores (n, K); NaN without one.

        A class that the validation fold lacks has the smallest probability that counts.
        """
        log_p = np.full(scores.shape, np.nan if self._affine is None else math.log(_MIN_PROBABILITY))
        if self._affine is not None:
            probability = self._affine.predict_proba(affine_features(scores))
            log_p[:, self._affine.classes_] = np.log(np.maximum(probability, _MIN_PROBABILITY))
        return log_p


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _held_out_parts(truth: Ints, group: Ints, seed: int) -> list[Any]:
    """Return masks, (n,) bool each, of held-out parts made of whole groups, stratified by class."""
    groups, first, member = np.unique(group, return_index=True, return_inverse=True)
    if len(groups) < 2:
        return []
    order = np.lexsort((np.random.default_rng(seed).random(len(groups)), truth[first]))
    parts = min(FOLDS, len(groups))
    part = np.empty(len(groups), dtype=np.intp)
    part[order] = np.arange(len(groups)) % parts
    return [part[member] == k for k in range(parts)]


def highest_scoring(scores: Floats) -> Ints:
    """Return the class with the highest of each document's scores (n, K), the first of equal ones, as (n,)."""
    best: Ints = scores.argmax(1).astype(np.intp)
    return best


def affine_map(model: Pipeline, classes: int) -> tuple[Floats, Floats]:
    """Return the matrix (K, K) and the bias (K,) of a fitted :func:`fit_affine`, for label scores themselves.

    A class that the validation fold lacks is never the answer.
    """
    scaler, regression = model[0], model[-1]
    weights = np.zeros((classes, classes + 1))
    bias = np.full(classes, math.log(_MIN_PROBABILITY))
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row, for the second of two classes
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-0.5, 0.5]) * intercepts
    weights[regression.classes_] = coefficients / scaler.scale_
    bias[regression.classes_] = intercepts - (coefficients / scaler.scale_) @ scaler.mean_
    centre = np.eye(classes) - 1 / classes
    matrix: Floats = weights[:, :classes] @ centre + weights[:, classes:] / classes
    return matrix, bias
