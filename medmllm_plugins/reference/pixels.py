"""Logistic regression on downsampled pixels: what brightness and coarse shape alone predict."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from medmllm_plugins.reference.classifier import ReferenceClassifier, log_shares
from medmllm_plugins.reference.labelled_images import LabelledImages, LogProbabilities
from medmllm_plugins.utils.progress import Progress

logger = logging.getLogger(__name__)

SIDE = 32
"""Side of the downsampled image, in pixels."""
SLICES = 16
"""Number of evenly spaced slices of a volume, downsampled to :data:`SLICE_SIDE` pixels a side."""
SLICE_SIDE = 16
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse strengths of the L2 penalty (scikit-learn's ``C``, on standardised pixels) to choose from."""
MAX_TRAIN_DOCUMENTS = 20_000
"""Larger train folds are subsampled to this many documents."""

_MIN_PROBABILITY = 1e-12
_STEPS = 1000
_READING = "reading images"


class PixelClassifier(ReferenceClassifier):
    """Standardised pixels, multinomial logistic regression, L2 penalty chosen by log loss on the validation fold.

    Images are downsampled to 32 x 32 in colour, and 16 slices of a volume to 16 x 16 grey values each.
    """

    def __init__(self, seed: int = 0) -> None:
        """Create an untrained classifier; ``seed`` chooses the documents of a train fold that is subsampled."""
        self._seed = seed
        self._scaler = StandardScaler()
        self._models: list[LogisticRegression | None] = []
        self._shares: LogProbabilities = np.zeros((0, 0))
        self._facts: dict[str, Any] = {}

    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fit at each strength and keep the one with the smallest log loss on the validation fold."""
        drawn = self._drawn(train)
        self._shares = log_shares(drawn)
        features = self._scaler.fit_transform(pixels(drawn))
        held_out = self._scaler.transform(pixels(validation))
        targets, right = drawn.targets(), validation.targets()
        chosen, converged = [], True
        title = f"{train.data.spec.title}: logistic regression"
        with Progress(title, targets.shape[1] * len(STRENGTHS), "fits") as progress:
            for question in range(targets.shape[1]):
                best: tuple[float, float, LogisticRegression | None] = (np.inf, np.nan, None)
                several = len(np.unique(targets[:, question])) > 1
                for strength in STRENGTHS if several else ():
                    model = LogisticRegression(C=strength, max_iter=_STEPS)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in the facts
                        model.fit(features, targets[:, question])
                    log_p = _scores(model, held_out, self._shares[question])
                    loss = -float(log_p[np.arange(len(right)), right[:, question]].mean())
                    if loss < best[0]:
                        best = (loss, strength, model)
                    progress.update()
                if not several:
                    progress.update(len(STRENGTHS))
                self._models.append(best[2])
                chosen.append(best[1] if best[2] is not None else None)
                converged &= best[2] is None or int(best[2].n_iter_.max()) < _STEPS
        self._facts = {"features": int(features.shape[1]), "trained_on": len(drawn)}
        self._facts |= {"C": chosen, "converged": bool(converged)}
        if not converged:
            logger.warning("logistic regression stopped before it converged, at %d steps", _STEPS)

    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """Predict; a question whose answer is always the same in the train fold gets the answers' frequencies."""
        features = self._scaler.transform(pixels(examples))
        questions = []
        for model, shares in zip(self._models, self._shares, strict=True):
            questions.append(
                np.repeat(shares[None], len(examples), axis=0) if model is None else _scores(model, features, shares)
            )
        return np.stack(questions, axis=1)

    def facts(self) -> Mapping[str, Any]:
        """Return the number of features, the penalty and whether the fit converged."""
        return self._facts

    def _drawn(self, train: LabelledImages) -> LabelledImages:
        if len(train) <= MAX_TRAIN_DOCUMENTS:
            return train
        logger.warning("the train fold has %d documents and is subsampled to %d", len(train), MAX_TRAIN_DOCUMENTS)
        order = sorted(
            train.documents, key=lambda document: hashlib.sha256(f"{self._seed}\0{document.id}".encode()).digest()
        )
        return dataclasses.replace(train, documents=tuple(order[:MAX_TRAIN_DOCUMENTS]))


def pixels(examples: LabelledImages) -> npt.NDArray[np.float32]:
    """Downsample all images to ``[N, F]`` float32, 0 to 255; F is 3072 for images and 4096 for volumes."""
    if examples.data.spec.dimensions == 2:
        shrunk = examples.each(lambda index: downsample(examples.pictures(index)[0], "RGB", SIDE), title=_READING)
        return np.stack(shrunk)
    view = dataclasses.replace(examples.view, slices=SLICES, montage=False)

    def slices(index: int) -> npt.NDArray[np.float32]:
        shown = [downsample(picture, "L", SLICE_SIDE) for picture in examples.pictures(index, view)]
        # A volume with fewer slices repeats some, because every volume needs the same number of values.
        return np.concatenate([shown[number] for number in np.linspace(0, len(shown) - 1, SLICES).round().astype(int)])

    return np.stack(examples.each(slices, title=_READING))


def downsample(picture: Image.Image, mode: str, side: int) -> npt.NDArray[np.float32]:
    """Downsample an image to a square and flatten it: (side * side * channels,) float32, 0 to 255."""
    shrunk = picture.convert(mode).resize((side, side), Image.Resampling.BOX)
    return np.asarray(shrunk, dtype=np.float32).reshape(-1)


def _scores(model: LogisticRegression, features: npt.NDArray[Any], shares: LogProbabilities) -> LogProbabilities:
    """Return log probabilities of all answers; those that the train fold lacks get almost 0 probability."""
    probabilities = np.full((len(features), len(shares)), _MIN_PROBABILITY)
    probabilities[:, model.classes_] = np.maximum(model.predict_proba(features), _MIN_PROBABILITY)
    return np.asarray(np.log(probabilities / probabilities.sum(axis=1, keepdims=True)))
