"""Probe for further columns of the data, such as the scanner, and test how far they explain the class."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, bootstrap, estimate
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.curves import site_p_values
from medmllm_plugins.probes.fitting import ProbePredictions, balanced_accuracy, fit_probes
from medmllm_plugins.probes.group_statistics import BalancedAccuracy, draw_groups, permutation_p_value
from medmllm_plugins.probes.grouped_ridge import cross_validated_weights, inner_products, predict_classes
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import CONTROL
from medmllm_plugins.results.shortcut_records import Nuisance, NuisancePoint, Stratum

MIN_TRAIN_GROUPS: Final = 5
MIN_TEST_GROUPS: Final = 3
"""A value of a column is used if at least this many groups of either fold have it."""
MAX_VALUES: Final = 20
MAX_DOCUMENTS: Final = 1_500
PERMUTATIONS: Final = 999


def probe_nuisances(
    store: FeatureStore,
    labelled: LabelledFeatures,
    fitted: ProbePredictions,
    options: Options,
    device: torch.device | None = None,
) -> tuple[list[Nuisance], dict[str, str]]:
    """Test every column that the documents carry.

    Args:
        store: the features; ``attributes`` of its index are the columns.
        labelled: classes, groups and folds.
        fitted: the probes of the class.
        options: their settings; the columns are probed by the linear protocol, without controls.
        device: see :func:`medmllm_plugins.probes.fitting.fit_probes`.

    Returns:
        The columns that were tested, and the reason for each that was not.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    rows = [json.loads(text) for text in store.index["attributes"].astype(str)]
    tested, left_out = [], {}
    for column in dict.fromkeys(name for row in rows for name in row):
        values = np.array([str(row.get(column, "")) for row in rows])
        kept = _usable_values(values, labelled)
        if not 2 <= len(kept) <= MAX_VALUES:
            left_out[column] = (
                f"{len(kept)} values in at least {MIN_TRAIN_GROUPS} groups of the train fold and {MIN_TEST_GROUPS} of "
                f"the test fold; expected 2 to {MAX_VALUES}"
            )
            continue
        nuisance = _class_from_column(column, values, kept, labelled, options.seed)
        points = _points(store, _labelled_by(values, kept, labelled), options, device)
        tested.append(replace(nuisance, points=points))
    best = max(
        (index for index, site in enumerate(fitted.sites) if site.part != CONTROL and site.read),
        key=lambda index: (fitted.validation[index] == labelled.of("validation")).mean(),
    )
    return [_with_strata(nuisance, rows, labelled, fitted.test[best], options.seed) for nuisance in tested], left_out


def _usable_values(values: np.ndarray, labelled: LabelledFeatures) -> list[str]:
    """Return the values that occur in enough groups, sorted; empty cells have none."""

    def frequent(rows: Ints, least: int) -> set[str]:
        groups = Counter(value for value, _ in set(zip(values[rows], labelled.group[rows], strict=True)))
        return {str(value) for value, count in groups.items() if value and count >= least}

    train, test = labelled.rows["train"], labelled.rows["test"]
    in_validation = set(values[labelled.rows["validation"]])
    return sorted(frequent(train, MIN_TRAIN_GROUPS) & frequent(test, MIN_TEST_GROUPS) & in_validation)


def _labelled_by(values: np.ndarray, kept: Sequence[str], labelled: LabelledFeatures) -> LabelledFeatures:
    """Return the documents with these values, labelled by them."""
    number_of = {value: number for number, value in enumerate(kept)}
    truth = np.array([number_of.get(str(value), -1) for value in values], dtype=np.intp)
    rows = {fold: members[truth[members] >= 0] for fold, members in labelled.rows.items()}
    return LabelledFeatures(tuple(kept), truth, labelled.group, rows)


def _class_from_column(
    column: str, values: np.ndarray, kept: Sequence[str], labelled: LabelledFeatures, seed: int
) -> Nuisance:
    """Predict the class from the column alone, cross-validated by group over all folds."""
    generator = np.random.default_rng((seed, 4))
    by_value = _labelled_by(values, kept, labelled)
    rows = draw_groups(labelled.group, np.concatenate(list(by_value.rows.values())), MAX_DOCUMENTS, generator)
    indicators = np.eye(len(kept), dtype=np.float32)[by_value.truth[rows]]
    truth, group = labelled.truth[rows], labelled.group[rows]
    weights = cross_validated_weights(inner_products(indicators), group, seed=seed)
    labels = np.concatenate([truth[None], permute_labels(truth, group, PERMUTATIONS, generator)])
    predicted = predict_classes(weights, labels, len(labelled.labels))
    test = by_value.of("test")
    return Nuisance(
        column=column,
        counts={str(value): int(count) for value, count in sorted(Counter(values).items()) if value},
        majority=float(np.bincount(test).max() / len(test)),
        chance=1 / len(kept),
        class_from_column=BalancedAccuracy.of(predicted[0], truth, group, seed).estimate(),
        p=permutation_p_value(balanced_accuracy(predicted, labels)),
    )


def _points(
    store: FeatureStore, labelled: LabelledFeatures, options: Options, device: torch.device | None
) -> tuple[NuisancePoint, ...]:
    """Fit a linear probe for the column at every site."""
    settings = replace(options, protocol="linear", permutations=0, controls=0, repeats=0)
    fitted = fit_probes(store, labelled, settings, device)
    p, p_holm = site_p_values(fitted, labelled, seed=options.seed)
    truth, group = labelled.of("test"), labelled.groups_of("test")
    return tuple(
        NuisancePoint(
            layer=site.layer,
            part=site.part,
            pooling=site.pooling,
            balanced=BalancedAccuracy.of(predicted, truth, group, options.seed).estimate(),
            p=float(p[index]),
            p_holm=float(p_holm[index]),
        )
        for index, (site, predicted) in enumerate(zip(fitted.sites, fitted.test, strict=True))
    )


def _with_strata(
    nuisance: Nuisance, rows: Sequence[dict[str, str]], labelled: LabelledFeatures, predicted: Ints, seed: int
) -> Nuisance:
    """Compare the class probe within each value with the value's most common class in the train fold."""
    values = np.array([str(row.get(nuisance.column, "")) for row in rows])
    train, test, truth = labelled.rows["train"], labelled.rows["test"], labelled.of("test")
    strata, gains, groups = [], [], []
    for value in nuisance.counts:
        members = values[test] == value
        in_train = labelled.truth[train][values[train] == value]
        if not members.any() or not len(in_train):
            continue
        common = int(np.bincount(in_train).argmax())
        hits, constant = predicted[members] == truth[members], truth[members] == common
        strata.append(
            Stratum(value=value, n=int(members.sum()), probe=float(hits.mean()), majority=float(constant.mean()))
        )
        gains.append(hits.astype(np.float64) - constant)
        groups.append(labelled.groups_of("test")[members])
    gain, group = np.concatenate(gains), np.unique(np.concatenate(groups), return_inverse=True)[1]
    means, resampled = bootstrap(
        lambda weights: {"gain": gain @ weights / weights.sum(0)}, group, resamples=RESAMPLES, seed=seed
    )
    within = estimate(float(means["gain"]), resampled["gain"], groups=int(group.max()) + 1)
    return replace(nuisance, strata=tuple(strata), within=within)
