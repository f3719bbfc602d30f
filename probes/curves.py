"""Compute layer curves with controls, confidence intervals and p-values from the predictions of the probes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import (
    RESAMPLES,
    SHARE,
    Estimate,
    bootstrap,
    effective_groups,
    estimate,
    size_inflation,
)
from medmllm_plugins.metrics.usable_information import class_log_frequencies, information_of_probabilities
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.fitting import ProbePredictions, balanced_accuracy
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.results.comparison import holm
from medmllm_plugins.results.probe_records import CONTROL, ProbePoint

PERMUTATIONS: Final = 9_999
"""Permutations of the test labels for a p-value; enough for Holm's correction over a hundred layers."""
_CELLS: Final = 20_000_000
_BY_SITE: Final = ("probe", "control", "balanced", "bits")


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """The classes that something other than a probe predicts for the test fold.

    Attributes:
        predicted: (t,) classes; negative where there is none, which is wrong.
        bits: (t,) usable information of each document, see :mod:`medmllm_plugins.metrics.usable_information`.
    """

    predicted: Ints
    bits: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A figure on the test fold, and on each of B bootstrap resamples of its groups, (B,).

    ``inflation`` is how much the variance of a share is to be enlarged where groups are of unequal size, see
    :func:`~medmllm_plugins.metrics.intervals.size_inflation`.
    """

    value: float
    resampled: Floats
    inflation: float = 1.0

    def __sub__(self, other: Figure) -> Figure:
        """Return the paired difference."""
        return Figure(self.value - other.value, self.resampled - other.resampled)

    def shifted(self, deviations: Floats, value: float) -> Figure:
        """Return the figure with another value, and deviations (R,) of further fits added to its resamples in turn."""
        added = np.resize(deviations, len(self.resampled))
        return Figure(value, self.resampled + added + (value - self.value), self.inflation)


@dataclass(frozen=True, slots=True, eq=False)
class BootstrapFigures:
    """Figures on the test fold and on one set of bootstrap resamples of its groups.

    Attributes:
        groups: number of groups.
        effective_groups: number of groups of equal size that vary as much.
        values: by name: ``"probe"`` (accuracy), ``"control"``, ``"balanced"`` and ``"bits"`` of the F sites, (F,), and
            for each classifier ``NAME``, ``NAME:balanced`` and ``NAME:bits``, ().
        resampled: the same on each resample: (B, F) or (B,).
        inflation: of accuracies and balanced accuracies, by the same names.
    """

    groups: int
    effective_groups: float
    values: Mapping[str, Floats]
    resampled: Mapping[str, Floats]
    inflation: Mapping[str, Floats]

    def figure(self, name: str, site: int | None = None) -> Figure:
        """Return one figure, of a classifier or of a site."""
        value, resampled = self.values[name], self.resampled[name]
        inflation = self.inflation.get(name, np.ones_like(value))
        if site is None:
            return Figure(float(value), resampled, float(inflation))
        return Figure(float(value[site]), resampled[:, site], float(inflation[site]))

    def difference(self, figure: Figure) -> Estimate:
        """Return a difference or score with its interval."""
        return estimate(figure.value, figure.resampled, groups=self.effective_groups)

    def share(self, figure: Figure) -> Estimate:
        """Return an accuracy with its interval, which differs from that of differences; see ``metrics/intervals``."""
        return share_estimate(figure, self.effective_groups)


def bootstrap_figures(
    labelled: LabelledFeatures,
    classifiers: Mapping[str, Classifier],
    *,
    fitted: ProbePredictions | None = None,
    rows: Mapping[str, Floats] | None = None,
    seed: int = 0,
) -> BootstrapFigures:
    """Resample the test fold's groups once for all figures, so that differences between them are paired.

    The same seed gives the same resamples. ``rows`` are further values of the documents, (t,) each, whose means are
    taken under their names.
    """
    truth, group = labelled.of("test"), labelled.groups_of("test")
    rows = rows or {}
    sites = 0 if fitted is None else len(fitted.sites)
    predicted = [entry.predicted[None] for entry in classifiers.values()]
    values_by_document = [entry.bits[None] for entry in classifiers.values()] + [row[None] for row in rows.values()]
    if fitted is not None:
        log_frequencies = class_log_frequencies(labelled.of("train"), len(labelled.labels))
        predicted.insert(0, fitted.test)
        bits = information_of_probabilities(fitted.test_log_p, truth, log_frequencies)
        values_by_document = [fitted.control.astype(np.float64), bits, *values_by_document]
    correct = (np.concatenate(predicted) == truth).astype(np.float32)
    stacked = np.concatenate([correct, *values_by_document]).astype(np.float32)
    present = np.unique(truth)
    classes = np.array([truth == number for number in present], dtype=np.float32)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        drawn = weights.astype(np.float32)
        means = (stacked @ drawn / drawn.sum(0)).T.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            # A resample without a class has no recall of it; the mean is then over the classes it has.
            recalls = np.array([correct @ (drawn * members[:, None]) / (members @ drawn) for members in classes])
        balanced = np.nanmean(recalls, axis=0).T.astype(np.float64)
        accuracy, others = means[:, : len(correct)], iter(means[:, len(correct) :].T)
        by_name: dict[str, Floats] = {}
        if sites:
            by_name = {"probe": accuracy[:, :sites], "balanced": balanced[:, :sites]}
            by_name |= {name: np.stack([next(others) for _ in range(sites)], axis=1) for name in ("control", "bits")}
        for column, name in enumerate(classifiers, start=sites):
            by_name |= {name: accuracy[:, column], f"{name}:balanced": balanced[:, column]}
        names = [*(f"{name}:bits" for name in classifiers), *rows]
        return by_name | {name: next(others) for name in names}

    values, resampled = bootstrap(
        evaluate, group, resamples=RESAMPLES, seed=seed, cells=len(stacked) * (1 + len(present))
    )
    by_row = size_inflation(correct, group)
    inflation = dict(zip(classifiers, by_row[sites:], strict=True)) | ({"probe": by_row[:sites]} if sites else {})
    inflation |= {f"{name}:balanced": inflation[name] for name in classifiers}
    if sites:
        inflation["balanced"] = inflation["probe"]
    return BootstrapFigures(int(group.max()) + 1, effective_groups(group), values, resampled, inflation)


def share_estimate(figure: Figure, groups: float) -> Estimate:
    """Return an accuracy or another share with its interval."""
    return estimate(figure.value, figure.resampled, groups=groups, bounds=SHARE, inflation=figure.inflation)


def curve_points(
    fitted: ProbePredictions,
    labelled: LabelledFeatures,
    figures: BootstrapFigures,
    p_values: tuple[Floats, Floats],
    repeats: Floats,
) -> tuple[ProbePoint, ...]:
    """Return a point of the layer curves for each site.

    ``p_values`` are those of :func:`site_p_values`; ``repeats`` are accuracies (R, F) on further divisions into folds,
    where R may be 0.
    """
    chance = 1 / len(labelled.labels)
    p, p_holm = p_values
    validation = (fitted.validation == labelled.of("validation")).mean(1)
    points = []
    for index, site in enumerate(fitted.sites):
        probe, control, balanced, bits = (figures.figure(name, index) for name in _BY_SITE)
        permuted = fitted.label_permutation[index]
        points.append(
            ProbePoint(
                layer=site.layer,
                part=site.part,
                pooling=site.pooling,
                width=site.width,
                read=site.read,
                accuracy=figures.share(probe),
                balanced=figures.share(balanced),
                bits=figures.difference(bits),
                corrected=figures.difference(
                    Figure((balanced.value - chance) / (1 - chance), (balanced.resampled - chance) / (1 - chance))
                ),
                control=figures.share(control),
                selectivity=figures.difference(probe - control),
                label_permutation=float(permuted.mean()) if len(permuted) else math.nan,
                label_permutation_high=float(np.quantile(permuted, 0.95)) if len(permuted) else math.nan,
                p=float(p[index]),
                p_holm=float(p_holm[index]),
                validation=float(validation[index]),
                C=_none_if_nan(fitted.strength[index]),
                gradient_norm=_none_if_nan(fitted.gradient_norm[index]),
                repeats=tuple(map(float, repeats[:, index])),
            )
        )
    return tuple(points)


def site_p_values(fitted: ProbePredictions, labelled: LabelledFeatures, *, seed: int = 0) -> tuple[Floats, Floats]:
    """Return the p-value of each site, (F,), and the same after Holm's correction; NaN there for control features."""
    p = permutation_p_values(fitted.test, labelled, seed=seed)
    own = [index for index, site in enumerate(fitted.sites) if site.part != CONTROL]
    p_holm = np.full(len(p), np.nan)
    p_holm[own] = holm([float(p[index]) for index in own])
    return p, p_holm


def _none_if_nan(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def permutation_p_values(
    test: Ints, labelled: LabelledFeatures, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> Floats:
    """Test whether the predictions are better than for test labels without meaning.

    The test labels are permuted by group and compared with the predictions of the fitted probes. A probe whose features
    do not contain the class is as accurate on permuted labels as on the real ones, so no refits are needed, and the
    p-value, ``(1 + b) / (1 + B)``, can be as small as many layers require.

    ``test`` are predictions (F, t), negative where there is none, and the p-values (F,).
    """
    truth, group, classes = labelled.of("test"), labelled.groups_of("test"), len(labelled.labels)
    generator = np.random.default_rng((seed, 1))
    counts = np.bincount(truth, minlength=classes)
    share = np.divide(1.0, counts * (counts > 0).sum(), out=np.zeros(classes), where=counts > 0)
    predicted = (test[..., None] == np.arange(classes)).astype(np.float32).reshape(len(test), -1)
    observed = balanced_accuracy(test, truth)
    as_good = np.zeros(len(test))
    at_once = max(1, _CELLS // (len(truth) * classes))
    for start in range(0, permutations, at_once):
        permuted = permute_labels(truth, group, min(at_once, permutations - start), generator)
        weights = np.eye(classes, dtype=np.float32)[permuted] * share.astype(np.float32)
        # A rounding error must not make an equal figure smaller.
        as_good += (predicted @ weights.reshape(len(permuted), -1).T >= observed[:, None] - 1e-6).sum(1)
    p: Floats = (1 + as_good) / (1 + permutations)
    return p
