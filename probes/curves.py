"""Curves over the layers with their controls, bands and p-values, from what the probes predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from medmllm_plugins.metrics.classification import Floats, Ints, Weights
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, estimate
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.fitting import ProbePredictions, balanced_accuracy
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.results.comparison import holm
from medmllm_plugins.results.probe_records import ProbePoint

PERMUTATIONS: Final = 9_999
"""Shuffles of the test fold's labels behind a p-value; enough for Holm's correction over a hundred layers."""
_CELLS: Final = 20_000_000


@dataclass(frozen=True, slots=True, eq=False)
class BootstrapAccuracies:
    """Accuracies of everything on the test fold and on one set of resamples of its groups.

    Attributes:
        groups: number of groups.
        values: accuracy by name; ``"probe"``, ``"control"`` (F,), and whatever else was given, ().
        resampled: the same on each resample: (B, F) or (B,).
    """

    groups: int
    values: Mapping[str, Floats]
    resampled: Mapping[str, Floats]

    def without(self, name: str) -> BootstrapAccuracies:
        """The same but for one name."""
        values, resampled = dict(self.values), dict(self.resampled)
        values.pop(name, None)
        resampled.pop(name, None)
        return BootstrapAccuracies(self.groups, values, resampled)

    def estimate(self, value: Floats | float, resampled: Floats) -> Estimate:
        """A figure with its interval."""
        return estimate(float(value), resampled, groups=self.groups)


def bootstrap_accuracies(
    fitted: ProbePredictions, samples: LabelledFeatures, beside: Mapping[str, Floats], *, seed: int = 0
) -> BootstrapAccuracies:
    """Resample the test fold's groups once for all figures, so that differences between them are paired.

    Args:
        fitted: the probes.
        samples: who they were fitted on.
        beside: (t,) what else is averaged over documents, such as whether the answer was right.
        seed: of the resamples.
    """
    truth, group = samples.of("test"), samples.groups_of("test")
    right = (fitted.test == truth).astype(np.float32)
    others = np.array([beside[name] for name in beside], dtype=np.float32).reshape(len(beside), len(truth))
    rows = np.concatenate([right, fitted.control, others])
    present = np.unique(truth)
    classes = np.array([truth == number for number in present], dtype=np.float32)
    count = len(fitted.sites)

    def evaluate(weights: Weights) -> dict[str, Floats]:
        drawn = weights.astype(np.float32)
        means = (rows @ drawn / drawn.sum(0)).T
        with np.errstate(invalid="ignore", divide="ignore"):
            # A resample without a class has no recall of it; the mean is then over the classes it has.
            recalls = np.array([right @ (drawn * one[:, None]) / (one @ drawn) for one in classes])
        found = {"probe": means[:, :count], "control": means[:, count : 2 * count]}
        found |= {name: means[:, 2 * count + place] for place, name in enumerate(beside)}
        found["balanced"] = np.nanmean(recalls, axis=0).T
        return {name: value.astype(np.float64) for name, value in found.items()}

    values, resampled = bootstrap(evaluate, group, resamples=RESAMPLES, seed=seed, cells=len(rows) * (1 + len(present)))
    return BootstrapAccuracies(int(group.max()) + 1, values, resampled)


def curve_points(
    fitted: ProbePredictions, samples: LabelledFeatures, draws: BootstrapAccuracies, repeats: Floats, *, seed: int = 0
) -> tuple[ProbePoint, ...]:
    """The curves.

    Args:
        fitted: the probes.
        samples: who they were fitted on.
        draws: see :func:`bootstrap_accuracies`.
        repeats: (R, F) accuracies on further divisions into folds; R may be 0.
        seed: of the shuffles behind the p-values.
    """
    classes = len(samples.labels)
    p = permutation_p_values(fitted.test, samples, seed=seed)
    own = [place for place, key in enumerate(fitted.sites) if key.part != "control"]
    corrected = np.full(len(p), np.nan)
    corrected[own] = holm([float(p[place]) for place in own])
    validation = (fitted.validation == samples.of("validation")).mean(1)
    chance = 1 / classes
    found = []
    for place, key in enumerate(fitted.sites):
        accuracy, control = draws.resampled["probe"][:, place], draws.resampled["control"][:, place]
        balanced = draws.resampled["balanced"][:, place]
        value = {name: float(draws.values[name][place]) for name in ("probe", "control", "balanced")}
        strength, norm, null = (
            float(fitted.strength[place]),
            float(fitted.gradient_norm[place]),
            fitted.label_permutation[place],
        )
        found.append(
            ProbePoint(
                layer=key.layer,
                part=key.part,
                pooling=key.pooling,
                width=key.width,
                read=key.read,
                accuracy=draws.estimate(value["probe"], accuracy),
                balanced=draws.estimate(value["balanced"], balanced),
                corrected=draws.estimate(
                    (value["balanced"] - chance) / (1 - chance), (balanced - chance) / (1 - chance)
                ),
                control=draws.estimate(value["control"], control),
                selectivity=draws.estimate(value["probe"] - value["control"], accuracy - control),
                label_permutation=float(null.mean()) if len(null) else math.nan,
                label_permutation_high=float(np.quantile(null, 0.95)) if len(null) else math.nan,
                p=float(p[place]),
                p_holm=float(corrected[place]),
                validation=float(validation[place]),
                C=None if np.isnan(strength) else strength,
                gradient_norm=None if np.isnan(norm) else norm,
                repeats=tuple(map(float, repeats[:, place])),
            )
        )
    return tuple(found)


def permutation_p_values(
    test: Ints, samples: LabelledFeatures, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> Floats:
    """How often a probe would look as good if the test fold's labels meant nothing.

    Labels are shuffled by group and the fitted probes are held against them. Given its predictions, a probe whose
    features say nothing of the class is as good on any of these as on the real labels, so this needs no refit, and the
    p-value, ``(1 + b) / (1 + B)``, can be as small as many layers need.

    Args:
        test: (F, t) predictions.
        samples: who they are of.
        seed: of the shuffles.
        permutations: their number, B.

    Returns:
        (F,).
    """
    truth, group, classes = samples.of("test"), samples.groups_of("test"), len(samples.labels)
    generator = np.random.default_rng((seed, 1))
    counts = np.bincount(truth, minlength=classes)
    share = np.divide(1.0, counts * (counts > 0).sum(), out=np.zeros(classes), where=counts > 0)
    said = np.eye(classes, dtype=np.float32)[test].reshape(len(test), -1)
    observed = balanced_accuracy(test, truth)
    as_good = np.zeros(len(test))
    at_once = max(1, _CELLS // (len(truth) * classes))
    for start in range(0, permutations, at_once):
        drawn = permute_labels(truth, group, min(at_once, permutations - start), generator)
        weights = np.eye(classes, dtype=np.float32)[drawn] * share.astype(np.float32)
        # A rounding error must not make an equal figure a smaller one.
        as_good += (said @ weights.reshape(len(drawn), -1).T >= observed[:, None] - 1e-6).sum(1)
    found: Floats = (1 + as_good) / (1 + permutations)
    return found
