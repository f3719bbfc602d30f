"""Checks of a probe, on planted features whose labels are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medmllm_plugins.testing.check_outcomes import require, require_close
from medmllm_plugins.testing.check_subjects import ProbeSubject
from medmllm_plugins.testing.probe_trial import (
    CLASSES,
    CONTROL,
    HELD_OUT,
    INFORMATIVE,
    NOISE,
    PERMUTED,
    REAL,
    TESTED,
    fit,
    planted_data,
)

LEARNT: Final = 0.8
"""Smallest accuracy where the classes are far apart."""


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of equal entries."""
    return float((predicted == labels).double().mean())


def check_results_have_their_shapes(subject: ProbeSubject) -> None:
    """Assert that predictions and log probabilities have their shapes, and do not depend on how the test is divided.

    Predictions are (layers, label sets, rows) of int64 classes; probabilities sum to 1.
    """
    planted, fitted = subject.first_fit
    predicted = fitted.predict(planted.test)
    _require_classes(subject, "predict", predicted, (2, 4, TESTED))
    _require_classes(subject, "validation", fitted.validation, (2, HELD_OUT))
    loss = fitted.validation_loss
    require(
        tuple(loss.shape) == (2,) and bool(loss.isfinite().all()),
        f"{subject.name}: expected `validation_loss` as 2 finite numbers, one a layer, got {loss}.",
    )
    parts = torch.cat([fitted.predict(part) for part in torch.split(planted.test, 100, dim=1)], dim=2)
    require(
        torch.equal(parts, predicted),
        f"{subject.name}: expected the same predictions for the test fold in parts and as a whole, got others. A "
        "prediction must not depend on the other rows.",
    )
    if fitted.log_p is None:
        return
    log_p = fitted.log_p(planted.test)
    require(
        tuple(log_p.shape) == (2, TESTED, CLASSES),
        f"{subject.name}: expected `log_p` of shape {(2, TESTED, CLASSES)}, (layers, rows, classes), got "
        f"{tuple(log_p.shape)}.",
    )
    if not bool(log_p.isnan().all()):  # a scikit-learn classifier may have no probabilities
        sums = log_p.double().exp().sum(-1)
        require_close(sums, torch.ones_like(sums), f"{subject.name}: sums of exp(log_p)", "Use log_softmax.")


def _require_classes(subject: ProbeSubject, what: str, values: Tensor, shape: tuple[int, ...]) -> None:
    require(
        isinstance(values, Tensor) and tuple(values.shape) == shape and values.dtype == torch.int64,
        f"{subject.name}: expected `{what}` as int64 of shape {shape}, got "
        f"{getattr(values, 'dtype', type(values).__name__)} of shape {tuple(getattr(values, 'shape', ()))}.",
    )
    low, high = int(values.min()), int(values.max())
    require(low >= 0 and high < CLASSES, f"{subject.name}: expected classes 0 to {CLASSES - 1}, got {low} to {high}.")


def check_separates_what_is_separable(subject: ProbeSubject) -> None:
    """Assert that held-out rows of classes that are six standard deviations apart are classified correctly.

    A probe that misses these would blame the model for its own weakness.
    """
    planted, fitted = subject.first_fit
    share = accuracy(fitted.predict(planted.test)[INFORMATIVE, REAL], planted.labels[REAL])
    require(
        share >= LEARNT,
        f"{subject.name}: expected an accuracy of at least {LEARNT} on separable classes, got {share:.2f}. Chance is "
        f"{1 / CLASSES:.2f}.",
    )
    share = accuracy(fitted.validation[INFORMATIVE], planted.data.validation_labels[REAL])
    require(
        share >= LEARNT,
        f"{subject.name}: expected `validation` to hold the predictions on the validation fold, with an accuracy of at "
        f"least {LEARNT}, got {share:.2f}.",
    )


def check_stays_at_chance_on_permuted_labels(subject: ProbeSubject) -> None:
    """Assert that labels without a relation to the features are predicted at chance on rows that were not trained on.

    This holds for the test fold and for the validation fold, which a probe is given with its labels. A probe that
    memorises these has a null distribution that hides real effects.
    """
    planted, fitted = subject.first_fit
    chance = 1 / CLASSES
    predicted = fitted.predict(planted.test)
    limit = chance + _margin(TESTED)
    for layer in (INFORMATIVE, NOISE):
        for index in range(PERMUTED.start, PERMUTED.stop):
            share = accuracy(predicted[layer, index], planted.labels[index])
            require(
                share <= limit,
                f"{subject.name}: expected an accuracy of at most {limit:.2f} on the test fold of permuted labels, got "
                f"{share:.2f}.",
            )
    data = planted.data
    permuted = replace(
        data,
        train_labels=data.train_labels[[2, 1, 3]],
        validation_labels=data.validation_labels[[2, 1, 3]],
    )
    fitted = fit(subject.name, subject.function, permuted)
    limit = chance + 1.5 * _margin(HELD_OUT)  # a strength may be chosen on this fold
    for layer in (INFORMATIVE, NOISE):
        share = max(
            accuracy(fitted.validation[layer], permuted.validation_labels[REAL]),
            accuracy(fitted.predict(data.validation)[layer, REAL], permuted.validation_labels[REAL]),
        )
        require(
            share <= limit,
            f"{subject.name}: expected an accuracy of at most {limit:.2f} on the validation fold of permuted labels, "
            f"got {share:.2f}. Use the validation labels to choose settings, not to train.",
        )


def _margin(rows: int) -> float:
    """Return four standard deviations of the accuracy by chance."""
    chance = 1 / CLASSES
    return float(4 * np.sqrt(chance * (1 - chance) / rows))


def check_every_label_set_is_fitted(subject: ProbeSubject) -> None:
    """Assert that the control task, whose labels differ from the real ones, is learned too.

    Selectivity is the accuracy on the real labels minus that on control tasks, so each label set needs its own fit.
    """
    planted, fitted = subject.first_fit
    predicted = fitted.predict(planted.test)[INFORMATIVE, CONTROL]
    share = accuracy(predicted, planted.labels[CONTROL])
    require(
        share >= LEARNT,
        f"{subject.name}: expected an accuracy of at least {LEARNT} on a control task that is separable, got "
        f"{share:.2f}. Fit each row of `train_labels`, and return the predictions in their order.",
    )


def check_second_fit_gives_the_same(subject: ProbeSubject) -> None:
    """Assert that a second fit on the same data with the same seed predicts the same.

    `medmllm diagnose` must find the same sites when it is run again; draw random numbers from ``ProbeData.seed``.
    """
    planted, fitted = subject.first_fit
    first = fitted.predict(planted.test)
    torch.manual_seed(12345)
    np.random.seed(12345)
    second = fit(subject.name, subject.function, planted.data).predict(planted.test)
    share = accuracy(first, second)
    require(
        share == 1,
        f"{subject.name}: expected equal predictions of two fits, got {1 - share:.1%} that differ. Draw random numbers "
        "from a generator that is seeded with `data.seed`.",
    )


def check_features_are_left_as_they_were(subject: ProbeSubject) -> None:
    """Assert that fitting and predicting change neither features nor labels.

    All label sets, and other probes, read the same tensors.
    """
    planted, untouched = planted_data(), planted_data()
    fitted = fit(subject.name, subject.function, planted.data)
    fitted.predict(planted.test)
    if fitted.log_p is not None:
        fitted.log_p(planted.test)
    for name in ("train", "validation", "train_labels", "validation_labels"):
        same = torch.equal(getattr(planted.data, name), getattr(untouched.data, name))
        require(same, f"{subject.name}: expected `{name}` to stay as it was, got other values. Copy before changing.")
    require(torch.equal(planted.test, untouched.test), f"{subject.name}: expected the features to predict to stay.")
