"""Look for shortcuts: the class in the border or corners of the images, and folds that differ.

Each set of features is given to regularised least squares (:mod:`medmllm_plugins.probes.grouped_ridge`), which answers
three questions: can the class be read within the train fold, cross-validated by group; can it be read in the test fold,
fitted on the train fold; and can test documents be distinguished from train documents (the classifier two-sample test).
All p-values of a report are corrected together.

Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.metrics.classification import Ints
from medmllm_plugins.metrics.intervals import Estimate, estimate
from medmllm_plugins.probes.control_labels import permute_labels
from medmllm_plugins.probes.fitting import balanced_accuracy
from medmllm_plugins.probes.group_statistics import (
    BalancedAccuracy,
    draw_groups,
    one_sided_p_value,
    permutation_p_value,
)
from medmllm_plugins.probes.grouped_ridge import (
    auroc,
    cross_validated_weights,
    inner_products,
    predict_classes,
    transfer_weights,
)
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.nuisance import NO_COLUMNS, Nuisances
from medmllm_plugins.prompts.feature_options import MEAN
from medmllm_plugins.results.comparison import holm
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import BORDER, CENTRE, CORNERS, PIXELS
from medmllm_plugins.results.shortcut_records import (
    CLASS_MARGIN,
    DROP_MARGIN,
    LEVEL,
    SHIFT_MARGIN,
    FeatureSetCheck,
    MaskedCheck,
    ShortcutReport,
)

MAX_DOCUMENTS: Final = 1_000
"""Documents of each fold that are used; whole groups are drawn from larger folds."""
PERMUTATIONS: Final = 999
_OUTSIDE: Final = (BORDER, CORNERS)


def shortcut_report(
    store: FeatureStore,
    labelled: LabelledFeatures,
    *,
    masked: Sequence[MaskedCheck] = (),
    nuisances: Nuisances = NO_COLUMNS,
    seed: int = 0,
) -> ShortcutReport:
    """Test the control features and the end of the tower, and judge them together with what is known of the rest.

    Args:
        store: the features.
        labelled: their classes, groups and folds.
        masked: see :mod:`medmllm_plugins.probes.masked_border`.
        nuisances: see :func:`medmllm_plugins.probes.nuisance.probe_nuisances`.
        seed: draws documents and permutations.

    Raises:
        DataError: features are not finite, or cannot be read.
    """
    folds = _Folds.draw(labelled, seed)
    checks = [folds.check(store, layer, pooling, seed) for layer, pooling in _feature_sets(store)]
    report = ShortcutReport(
        chance=1 / len(labelled.labels),
        checks=tuple(checks),
        masked=tuple(masked),
        nuisances=nuisances.columns,
        columns_together=nuisances.together,
        left_out=nuisances.left_out,
    )
    report = _judge(report)
    return replace(report, warnings=tuple(_warnings(report)), notes=tuple(_notes(report)))


def _feature_sets(store: FeatureStore) -> list[tuple[str, str]]:
    """Return the control features of the images, and the end of the tower."""
    controls = [(layer.name, MEAN) for layer in store.header.layers if layer.name in (PIXELS, BORDER, CORNERS, CENTRE)]
    tower = [layer for layer in store.header.layers if layer.part == "vision" and layer.read][-1:]
    return controls + [(layer.name, layer.poolings[0]) for layer in tower]


@dataclass(frozen=True, slots=True, eq=False)
class _Folds:
    """The documents of train and test fold that are used, their classes, and permutations of these by group.

    Attributes:
        train: rows of the store.
        test: likewise.
        truth: (n,) classes of all rows of the store.
        group: (n,) groups of all rows of the store.
        classes: number of classes.
        train_labels: (1 + P, n) the classes of the train documents, then permuted.
        test_labels: (1 + P, t) likewise of the test documents.
        membership: (1 + P, n + t) ones for test documents, zeros for train documents, then permuted within classes.
    """

    train: Ints
    test: Ints
    truth: Ints
    group: Ints
    classes: int
    train_labels: Ints
    test_labels: Ints
    membership: Ints

    @classmethod
    def draw(cls, labelled: LabelledFeatures, seed: int) -> _Folds:
        """Draw documents and permutations."""
        generator = np.random.default_rng((seed, 3))
        train = draw_groups(labelled.group, labelled.rows["train"], MAX_DOCUMENTS, generator)
        test = draw_groups(labelled.group, labelled.rows["test"], MAX_DOCUMENTS, generator)
        both = np.concatenate([train, test])

        def permuted(labels: Ints, rows: Ints) -> Ints:
            permutations = permute_labels(labels, labelled.group[rows], PERMUTATIONS, generator)
            return np.concatenate([labels[None], permutations])

        return cls(
            train,
            test,
            labelled.truth,
            labelled.group,
            len(labelled.labels),
            permuted(labelled.truth[train], train),
            permuted(labelled.truth[test], test),
            _permuted_within_classes(both, len(train), labelled, generator),
        )

    def check(self, store: FeatureStore, layer: str, pooling: str, seed: int) -> FeatureSetCheck:
        """Test one set of features."""
        train, test = (store.features(layer, pooling, rows) for rows in (self.train, self.test))
        count, both = len(self.train), np.concatenate([self.train, self.test])
        features = np.concatenate([train, test])
        products, rows = inner_products(features), np.arange(len(features))
        weights = cross_validated_weights(products[:count, :count], self.group[self.train], seed=seed)
        within = predict_classes(weights, self.train_labels, self.classes)
        weights = transfer_weights(products, rows[:count], rows[count:])
        to_test = predict_classes(weights, self.train_labels[:1], self.classes)
        residual = inner_products(_without_class(features, self.truth[both]))
        shift = auroc(cross_validated_weights(residual, self.group[both], seed=seed), self.membership)
        figures = [
            BalancedAccuracy.of(predicted, self.truth[members], self.group[members], seed + number)
            for number, (predicted, members) in enumerate(((within[0], self.train), (to_test[0], self.test)))
        ]
        drop = figures[0].value - figures[1].value
        difference = figures[0].resampled - figures[1].resampled
        groups = min(figure.groups for figure in figures)
        return FeatureSetCheck(
            layer=layer,
            pooling=pooling,
            within_train=figures[0].estimate(),
            to_test=figures[1].estimate(),
            drop=estimate(drop, difference, groups=groups),
            p_within_train=permutation_p_value(balanced_accuracy(within, self.train_labels)),
            p_to_test=permutation_p_value(balanced_accuracy(to_test, self.test_labels)),
            p_drop=one_sided_p_value(drop, difference, groups),
            shift=float(shift[0]),
            p_shift=permutation_p_value(shift),
        )


def _permuted_within_classes(
    both: Ints, train: int, labelled: LabelledFeatures, generator: np.random.Generator
) -> Ints:
    """Return the membership in the test fold of all documents, and permutations of it, (1 + P, n + t).

    Groups of one class and size exchange their fold: folds are often stratified by class, so that other exchanges could
    never have come about.

    Args:
        both: (n + t,) rows of the store; those of the train fold come first.
        train: number of these, n.
        labelled: classes and groups.
        generator: source of the random orders.
    """
    membership = (np.arange(len(both)) >= train).astype(np.intp)
    names, group = np.unique(labelled.group[both], return_inverse=True)
    counts = np.zeros((len(names), len(labelled.labels)), dtype=np.intp)
    np.add.at(counts, (group, labelled.truth[both]), 1)
    class_of_document = counts.argmax(1)[group]
    permuted = np.tile(membership, (1 + PERMUTATIONS, 1))
    for number in np.unique(class_of_document):
        members = np.flatnonzero(class_of_document == number)
        permuted[1:, members] = permute_labels(membership[members], group[members], PERMUTATIONS, generator)
    return permuted


def _without_class(features: npt.NDArray[np.float32], truth: Ints) -> npt.NDArray[np.float32]:
    """Standardise features within each class, so that folds do not differ by their class frequencies."""
    residual = np.zeros_like(features)
    for number in np.unique(truth):
        rows = features[truth == number]
        deviation = rows.std(0)
        residual[truth == number] = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1)
    return residual


def _judge(report: ShortcutReport) -> ShortcutReport:
    """Apply the margins, and Holm's correction over all tests."""
    tests: dict[tuple[str, str], float] = {}
    for check in report.checks:
        tests |= {(check.layer, "shift"): check.p_shift, (check.layer, "drop"): check.p_drop}
        if check.layer in _OUTSIDE:
            tests |= {(check.layer, "train"): check.p_within_train, (check.layer, "test"): check.p_to_test}
    tests |= {("column", nuisance.column): nuisance.p for nuisance in report.nuisances}
    together = report.columns_together
    if together is not None:
        tests["columns", "together"] = together.p
    significant = {name for name, p in zip(tests, holm(list(tests.values())), strict=True) if p <= LEVEL}

    def readable(check: FeatureSetCheck, fold: str, accuracy: Estimate) -> bool:
        return (check.layer, fold) in significant and report.above_chance(accuracy.value) >= CLASS_MARGIN

    checks = tuple(
        replace(
            check,
            readable=tuple(
                fold
                for fold, accuracy in (("train", check.within_train), ("test", check.to_test))
                if readable(check, fold, accuracy)
            ),
            shifted=(check.layer, "shift") in significant and check.shift >= SHIFT_MARGIN,
            dropped=(check.layer, "drop") in significant and check.drop.value >= DROP_MARGIN * (1 - report.chance),
        )
        for check in report.checks
    )

    def explains(kind: str, name: str, accuracy: Estimate) -> bool:
        return (kind, name) in significant and report.above_chance(accuracy.value) >= CLASS_MARGIN

    nuisances = tuple(
        replace(nuisance, explains_class=explains("column", nuisance.column, nuisance.class_from_column))
        for nuisance in report.nuisances
    )
    if together is not None:
        together = replace(together, explains_class=explains("columns", "together", together.class_from_columns))
    return replace(report, checks=checks, nuisances=nuisances, columns_together=together)


def _warnings(report: ShortcutReport) -> list[str]:
    """Return what people must know before they trust an accuracy on these data."""
    warnings = []
    centre = report.check(CENTRE)
    for layer, noun in ((BORDER, "border"), (CORNERS, "corners")):
        check = report.check(layer)
        if check is None or not check.readable:
            continue
        beside = "" if centre is None else f"; from the centre: {_percents(centre)}"
        warnings.append(
            f"The class can be read from the {noun} of the images alone: balanced accuracy {_percents(check)} "
            f"(chance {report.chance:.1%}{beside}). Look for marks, text or frames there: a model or probe may use "
            "them in place of the finding."
        )
    if _border_is_readable(report) and (falls := _falls(report)):
        warnings.append(
            f"The border of the images tells the class, and with the border masked accuracy falls: {falls}. "
            "Probes and model lose what the border tells; if a finding reaches into the border, they lose that, too."
        )
    shifted = [check for check in report.checks if check.shifted]
    if shifted:
        clearest = max(shifted, key=lambda check: check.shift)
        warnings.append(
            f"Train and test fold can be distinguished by {_names(shifted)} (area under the ROC curve up to "
            f"{clearest.shift:.2f} at {clearest.layer}; 0.50 is no difference). They may differ in source, device or "
            "processing, or the model was trained on one of them."
        )
    dropped = [check for check in report.checks if check.dropped]
    if dropped:
        largest = max(dropped, key=lambda check: check.drop.value)
        warnings.append(
            f"What tells the class in the train fold does not tell it in the test fold: at {largest.layer}, balanced "
            f"accuracy is {largest.within_train.value:.1%} in train documents left out of the fit and "
            f"{largest.to_test.value:.1%} in the test fold ({_names(dropped)}). Losses on the test fold may come from "
            "this difference and not from the model."
        )
    for nuisance in report.nuisances:
        if nuisance.explains_class:
            warnings.append(
                f"The column {nuisance.column!r} alone predicts the class with a balanced accuracy of "
                f"{nuisance.class_from_column.percent()} (chance {report.chance:.1%})."
                + (
                    f" Among images with the same value, the best probe is {_points(nuisance.within)} better than the "
                    "most common class."
                    if nuisance.strata
                    else ""
                )
            )
    together = report.columns_together
    if together is not None and together.explains_class:
        warnings.append(
            f"Together, the columns {', '.join(map(repr, together.columns))} predict the class with a balanced "
            f"accuracy of {together.class_from_columns.percent()} (chance {report.chance:.1%}), without the image."
        )
    return warnings


def _notes(report: ShortcutReport) -> list[str]:
    """Return sentences about drops of accuracy that need not come from a shortcut."""
    falls = _falls(report)
    if not falls or _border_is_readable(report):
        return []
    return [
        f"With the border of the images masked, accuracy falls: {falls}. The class cannot be read from the border "
        "alone, so this is no evidence of a shortcut: the model may not cope with changed images, or need the whole "
        "finding."
    ]


def _border_is_readable(report: ShortcutReport) -> bool:
    border = report.check(BORDER)
    return border is not None and bool(border.readable)


def _falls(report: ShortcutReport) -> str:
    """Return text such as "connector 90.0% to 55.0%, by 35.0 points (95% CI 25.1 to 44.0)"; empty if none falls."""
    return "; ".join(
        f"{check.layer} {check.shown.value:.1%} to {check.masked.value:.1%}, by {_points(check.drop)}"
        for check in report.masked
        if check.falls
    )


def _percents(check: FeatureSetCheck) -> str:
    return f"{check.within_train.value:.1%} within the train fold, {check.to_test.value:.1%} in the test fold"


def _points(difference: Estimate) -> str:
    if math.isnan(difference.low):
        return f"{100 * difference.value:.1f} points"
    return f"{100 * difference.value:.1f} points (95% CI {100 * difference.low:.1f} to {100 * difference.high:.1f})"


def _names(checks: Sequence[FeatureSetCheck]) -> str:
    return ", ".join(check.layer for check in checks)
