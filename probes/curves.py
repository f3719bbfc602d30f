"""Compute layer curves with controls, confidence intervals and p-values from the predictions of the probes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, SHARE, Estimate, bootstrap, estimate
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.fitting import ProbePredictions, balanced_accuracy
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.results.comparison import holm
from medmllm_plugins.results.probe_records import ProbePoint

PERMUTATIONS: Final = 9_999
"""Permutations of the test labels for a p-value; enough for Holm's correction over a hundred layers."""
_CELLS: Final = 20_000_000
_BY_SITE: Final = ("probe", "control", "balanced")


@dataclass(frozen=True, slots=True, eq=False)
class BootstrapAccuracies:
    """Accuracies on the test fold and on one set of bootstrap resamples of its groups.

    Attributes:
        groups: number of groups.
        values: accuracies by name: ``"probe"``, ``"control"`` and ``"balanced"`` (F,), and () for each further name.
        resampled: the same on each resample: (B, F) or (B,).
    """

    groups: int
    values: Mapping[str, Floats]
    resampled: Mapping[str, Floats]

    def without(self, name: str) -> BootstrapAccuracies:
        """Return a copy without one name."""
        values, resampled = dict(self.values), dict(self.resampled)
        values.pop(name, None)
        resampled.pop(name, None)
        return BootstrapAccuracies(self.groups, values, resampled)

    def estimate(self, value: Floats | float, resampled: Floats) -> Estimate:
        """Return a difference or score with its percentile interval."""
        return estimate(float(value), resampled, groups=self.groups)

    def accuracy(self, value: Floats | float, resampled: Floats) -> Estimate:
        """Return an accuracy with its interval, which differs from that of differences; see ``metrics/intervals``."""
        return estimate(float(value), resampled, groups=self.groups, bounds=SHARE)

    def of(self, name: str) -> Estimate:
        """Return a named accuracy with its interval."""
        return self.accuracy(self.values[name], self.resampled[name])


def bootstrap_accuracies(
    fitted: ProbePredictions, labelled: LabelledFeatures, hits: Mapping[str, Floats], *, seed: int = 0
) -> BootstrapAccuracies:
    """Resample the test fold's groups once for all figures, so that differences between them are paired.

    ``hits`` are further values (t,) to average over documents, such as whether the answer is correct.
    """
    truth, group = labelled.of("test"), labelled.groups_of("test")
    correct = (fitted.test == truth).astype(np.float32)
    others = np.array([hits[name] for name in hits], dtype=np.float32).reshape(len(hits), len(truth))
    rows = np.concatenate([correct, fitted.control, others])
    present = np.unique(truth)
    classes = np.array([truth == number for number in present], dtype=np.float32)
    count = len(fitted.sites)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        drawn = weights.astype(np.float32)
        means = (rows @ drawn / drawn.sum(0)).T
        with np.errstate(invalid="ignore", divide="ignore"):
            # A resample without a class has no recall of it; the mean is then over the classes it has.
            recalls = np.array([correct @ (drawn * members[:, None]) / (members @ drawn) for members in classes])
        by_name = {"probe": means[:, :count], "control": means[:, count : 2 * count]}
        by_name |= {name: means[:, 2 * count + number] for number, name in enumerate(hits)}
        by_name["balanced"] = np.nanmean(recalls, axis=0).T
        return {name: value.astype(np.float64) for name, value in by_name.items()}

    values, resampled = bootstrap(evaluate, group, resamples=RESAMPLES, seed=seed, cells=len(rows) * (1 + len(present)))
    return BootstrapAccuracies(int(group.max()) + 1, values, resampled)


def curve_points(
    fitted: ProbePredictions,
    labelled: LabelledFeatures,
    accuracies: BootstrapAccuracies,
    repeats: Floats,
    *,
    seed: int = 0,
) -> tuple[ProbePoint, ...]:
    """Return a point of the layer curves for each site.

    ``repeats`` are accuracies (R, F) on further divisions into folds; R may be 0.
    """
    chance = 1 / len(labelled.labels)
    p = permutation_p_values(fitted.test, labelled, seed=seed)
    own = [index for index, site in enumerate(fitted.sites) if site.part != "control"]
    p_holm = np.full(len(p), np.nan)
    p_holm[own] = holm([float(p[index]) for index in own])
    validation = (fitted.validation == labelled.of("validation")).mean(1)
    points = []
    for index, site in enumerate(fitted.sites):
        probe, control, balanced = (float(accuracies.values[name][index]) for name in _BY_SITE)
        probes, controls, balanced_resampled = (accuracies.resampled[name][:, index] for name in _BY_SITE)
        permuted = fitted.label_permutation[index]
        points.append(
            ProbePoint(
                layer=site.layer,
                part=site.part,
                pooling=site.pooling,
                width=site.width,
                read=site.read,
                accuracy=accuracies.accuracy(probe, probes),
                balanced=accuracies.accuracy(balanced, balanced_resampled),
                corrected=accuracies.estimate(
                    (balanced - chance) / (1 - chance), (balanced_resampled - chance) / (1 - chance)
                ),
                control=accuracies.accuracy(control, controls),
                selectivity=accuracies.estimate(probe - control, probes - controls),
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


def _none_if_nan(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def permutation_p_values(
    test: Ints, labelled: LabelledFeatures, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> Floats:
    """Test whether the predictions are better than for test labels without meaning.

    The test labels are permuted by group and compared with the predictions of the fitted probes. A probe whose features
    do not contain the class is as accurate on permuted labels as on the real ones, so no refits are needed, and the
    p-value, ``(1 + b) / (1 + B)``, can be as small as many layers require.

    ``test`` are predictions (F, t), and the p-values (F,).
    """
    truth, group, classes = labelled.of("test"), labelled.groups_of("test"), len(labelled.labels)
    generator = np.random.default_rng((seed, 1))
    counts = np.bincount(truth, minlength=classes)
    share = np.divide(1.0, counts * (counts > 0).sum(), out=np.zeros(classes), where=counts > 0)
    predicted = np.eye(classes, dtype=np.float32)[test].reshape(len(test), -1)
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
