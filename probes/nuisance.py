"""Probe for further columns of the data, such as the scanner, and test how far they explain the class.

Columns of at most 20 values are categories, columns of more numbers are numbers. Each column and all of them together
predict the class by regularised least squares (:mod:`medmllm_plugins.probes.grouped_ridge`); categories are probed for
at every layer, too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.intervals import RESAMPLES, Estimate, bootstrap, effective_groups, estimate
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.curves import site_p_values
from medmllm_plugins.probes.fitting import ProbePredictions, balanced_accuracy, fit_probes
from medmllm_plugins.probes.group_statistics import BalancedAccuracy, draw_groups, permutation_p_value
from medmllm_plugins.probes.grouped_ridge import cross_validated_weights, inner_products, predict_classes
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import CONTROL
from medmllm_plugins.results.shortcut_records import ColumnsTogether, Nuisance, NuisancePoint, Stratum

MIN_GROUPS: Final = 5
"""A value of a column can predict the class if at least this many groups have it."""
MIN_TRAIN_GROUPS: Final = 5
MIN_TEST_GROUPS: Final = 3
"""A value of a column is probed for if at least this many groups of either fold have it."""
MAX_VALUES: Final = 20
MAX_DOCUMENTS: Final = 1_500
PERMUTATIONS: Final = 999


@dataclass(frozen=True, slots=True)
class Nuisances:
    """What columns of the data tell.

    Attributes:
        columns: those that were tested.
        together: all of these; ``None`` for fewer than two.
        left_out: the reason for each that was not tested.
    """

    columns: tuple[Nuisance, ...] = ()
    together: ColumnsTogether | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


NO_COLUMNS: Final = Nuisances()


def probe_nuisances(
    store: FeatureStore,
    labelled: LabelledFeatures,
    fitted: ProbePredictions,
    options: Options,
    device: torch.device | None = None,
) -> Nuisances:
    """Test every column that the documents carry.

    Args:
        store: the features; ``attributes`` of its index are the columns.
        labelled: classes, groups and folds.
        fitted: the probes of the class.
        options: their settings; the columns are probed by the linear protocol, without controls.
        device: see :func:`medmllm_plugins.probes.fitting.fit_probes`.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    texts = [json.loads(text) for text in store.index["attributes"].astype(str)]
    columns = {name: np.array([str(row.get(name, "")) for row in texts]) for row in texts for name in row}
    nuisances = class_from_columns(columns, labelled, options.seed)
    best = max(
        (index for index, site in enumerate(fitted.sites) if site.part != CONTROL and site.read),
        key=lambda index: (fitted.validation[index] == labelled.of("validation")).mean(),
    )

    def probe(nuisance: Nuisance) -> Nuisance:
        values = columns[nuisance.column]
        kept = _usable_values(values, labelled) if nuisance.counts else []
        if not 2 <= len(kept) <= MAX_VALUES:
            return nuisance
        points = _points(store, _labelled_by(values, kept, labelled), options, device)
        strata = _strata(values, nuisance.counts, labelled, fitted.test[best], options.seed)
        return replace(nuisance, chance=1 / len(kept), points=points, **strata)

    return replace(nuisances, columns=tuple(map(probe, nuisances.columns)))


def class_from_columns(columns: Mapping[str, npt.NDArray[np.str_]], labelled: LabelledFeatures, seed: int) -> Nuisances:
    """Predict the class from each column, and from all of them together.

    Args:
        columns: texts (n,) by the column's name; n is the number of rows of the store.
        labelled: classes, groups and folds.
        seed: draws documents and permutations.
    """
    documents = _Documents.draw(labelled, seed)
    tested: list[Nuisance] = []
    encoded, left_out = [], {}
    for name, values in columns.items():
        features = encode_column(values[documents.rows], documents.group)
        if features is None:
            left_out[name] = f"expected at least two values, one of them in {MIN_GROUPS} groups or more"
            continue
        encoded.append(features)
        figure, p = documents.predict_class(features)
        tested.append(Nuisance(**_describe(name, values, labelled), class_from_column=figure, p=p))
    together = None
    if len(encoded) > 1:
        figure, p = documents.predict_class(np.concatenate(encoded, axis=1))
        names = tuple(nuisance.column for nuisance in tested)
        together = ColumnsTogether(columns=names, class_from_columns=figure, p=p)
    return Nuisances(tuple(tested), together, left_out)


def _usable_values(values: npt.NDArray[np.str_], labelled: LabelledFeatures) -> list[str]:
    """Return the values that occur in enough groups, sorted; empty cells have none."""

    def frequent(rows: Ints, least: int) -> set[str]:
        groups = Counter(value for value, _ in set(zip(values[rows], labelled.group[rows], strict=True)))
        return {str(value) for value, count in groups.items() if value and count >= least}

    train, test = labelled.rows["train"], labelled.rows["test"]
    in_validation = set(values[labelled.rows["validation"]])
    return sorted(frequent(train, MIN_TRAIN_GROUPS) & frequent(test, MIN_TEST_GROUPS) & in_validation)


def _labelled_by(values: npt.NDArray[np.str_], kept: Sequence[str], labelled: LabelledFeatures) -> LabelledFeatures:
    """Return the documents with these values, labelled by them."""
    number_of = {value: number for number, value in enumerate(kept)}
    truth = np.array([number_of.get(str(value), -1) for value in values], dtype=np.intp)
    rows = {fold: members[truth[members] >= 0] for fold, members in labelled.rows.items()}
    return LabelledFeatures(tuple(kept), truth, labelled.group, rows)


def encode_column(values: npt.NDArray[np.str_], group: Ints) -> npt.NDArray[np.float32] | None:
    """Return a column as features: numbers with the mean for empty cells, or an indicator for each category.

    Args:
        values: (n,) texts; ``""`` for an empty cell, which is a category of its own.
        group: (n,) groups; categories of fewer than :data:`MIN_GROUPS` have no indicator.

    Returns:
        (n, d) float32 features that vary; ``None`` without any.
    """
    column = values[:, None]
    if _is_numeric(values):
        numbers = np.where(column == "", "nan", column).astype(np.float64)
        features = SimpleImputer(add_indicator=True).fit_transform(numbers)
    else:
        groups = Counter(value for value, _ in set(zip(values.tolist(), group.tolist(), strict=True)))
        frequent = sorted(value for value, count in groups.items() if count >= MIN_GROUPS)
        if not frequent:
            return None
        encoder = OneHotEncoder(categories=[frequent], handle_unknown="ignore", sparse_output=False)
        features = encoder.fit_transform(column)
    varying: npt.NDArray[np.float32] = features[:, np.ptp(features, axis=0) > 0].astype(np.float32)
    return varying if varying.shape[1] else None


def _is_numeric(values: npt.NDArray[np.str_]) -> bool:
    """Return whether a column holds numbers, too many to be categories."""
    texts = {str(value) for value in values} - {""}
    try:
        return len(texts) > MAX_VALUES and all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Documents:
    """Documents of all folds on which columns predict the class.

    Attributes:
        rows: (n,) rows of the store.
        group: (n,) their groups.
        labels: (1 + P, n) their classes, then permuted by group.
        classes: number of classes.
        seed: divides the groups for the cross-validation, and draws resamples.
    """

    rows: Ints
    group: Ints
    labels: Ints
    classes: int
    seed: int

    @classmethod
    def draw(cls, labelled: LabelledFeatures, seed: int) -> _Documents:
        """Draw documents and permutations."""
        generator = np.random.default_rng((seed, 4))
        rows = draw_groups(labelled.group, np.concatenate(list(labelled.rows.values())), MAX_DOCUMENTS, generator)
        truth, group = labelled.truth[rows], labelled.group[rows]
        labels = np.concatenate([truth[None], permute_labels(truth, group, PERMUTATIONS, generator)])
        return cls(rows, group, labels, len(labelled.labels), seed)

    def predict_class(self, features: npt.NDArray[np.float32]) -> tuple[Estimate, float]:
        """Return the balanced accuracy of the class, cross-validated by group, and its p-value, from (n, d) features.

        The p-value is the share of permutations of the classes that are predicted as well.
        """
        weights = cross_validated_weights(inner_products(features), self.group, seed=self.seed)
        predicted = predict_classes(weights, self.labels, self.classes)
        figure = BalancedAccuracy.of(predicted[0], self.labels[0], self.group, self.seed).estimate()
        return figure, permutation_p_value(balanced_accuracy(predicted, self.labels))


def _describe(column: str, values: npt.NDArray[np.str_], labelled: LabelledFeatures) -> dict[str, Any]:
    """Return what is in a column: documents by value, and the share of the most common value in the test fold."""
    everyone = np.concatenate(list(labelled.rows.values()))
    if _is_numeric(values[everyone]):
        return {"column": column, "counts": {}, "majority": math.nan}
    in_test = Counter(value for value in values[labelled.rows["test"]].tolist() if value)
    return {
        "column": column,
        "counts": {value: count for value, count in sorted(Counter(values[everyone].tolist()).items()) if value},
        "majority": max(in_test.values(), default=0) / in_test.total() if in_test else math.nan,
    }


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


def _strata(
    values: npt.NDArray[np.str_], counts: Mapping[str, int], labelled: LabelledFeatures, predicted: Ints, seed: int
) -> dict[str, Any]:
    """Compare the class probe within each value with the value's most common class in the train fold."""
    train, test, truth = labelled.rows["train"], labelled.rows["test"], labelled.of("test")
    strata, gains, groups = [], [], []
    for value in counts:
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
    within = estimate(float(means["gain"]), resampled["gain"], groups=effective_groups(group))
    return {"strata": tuple(strata), "within": within}
