"""Answers, label scores and reference predictions of the documents in a feature store, as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.usable_information import (
    class_log_frequencies,
    information_of_answers,
    information_of_probabilities,
)
from medmllm_plugins.probes.chain import ANSWER, MAJORITY, REFERENCE, SCORES
from medmllm_plugins.probes.curves import Classifier
from medmllm_plugins.probes.diagnosis import OF_INTEREST
from medmllm_plugins.probes.labelled_features import LabelledFeatures
from medmllm_plugins.probes.output_recalibration import UNPARSED, Recalibrations, ValidationFold
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.feature_store import FeatureStore
from medmllm_plugins.results.probe_records import SemanticMapping


class ScoredFolds:
    """Label scores (n, K) of the validation and test folds; all ``None`` unless every document of both has them."""

    def __init__(self, store: FeatureStore, labelled: LabelledFeatures) -> None:
        validation, test = (label_scores(store, labelled, fold) for fold in ("validation", "test"))
        both = validation is not None and test is not None
        self.validation = validation if both else None
        self.test = test if both else None
        self.blank = label_scores(store, labelled, "test", "blank") if both else None
        self.validation_fold = ValidationFold(
            labelled.of("validation"), labelled.groups_of("validation"), None, self.validation
        )
        self.validation_hits: Floats | None = (
            None
            if self.validation is None
            else (self.validation.argmax(1) == labelled.of("validation")).astype(np.float64)
        )


def compared_classifiers(
    store: FeatureStore,
    labelled: LabelledFeatures,
    answers: Ints,
    scores: ScoredFolds,
    recalibrations: Recalibrations,
    reference: Reference | None,
) -> dict[str, Classifier]:
    """Return the answers and everything else that they are compared with, by name.

    The usable information of label scores is that of their affine map, which is fitted on the validation fold.
    """
    truth, group = labelled.of("test"), labelled.groups_of("test")
    log_frequencies = class_log_frequencies(labelled.of("train"), len(labelled.labels))
    most_common = np.full(len(truth), log_frequencies.argmax(), dtype=np.intp)
    classifiers = {
        ANSWER: Classifier(answers, information_of_answers(answers, truth, group, log_frequencies)),
        MAJORITY: Classifier(most_common, np.zeros(len(truth))),
    }
    if reference is not None:
        classes = _reference_classes(store, labelled, reference.predicted)
        classifiers[REFERENCE] = Classifier(classes, information_of_answers(classes, truth, group, log_frequencies))
    if scores.test is not None:
        bits = information_of_probabilities(recalibrations.affine_log_p(scores.test), truth, log_frequencies)
        classifiers[SCORES] = Classifier(scores.test.argmax(1).astype(np.intp), bits)
    return classifiers


def answered_classes(store: FeatureStore, labelled: LabelledFeatures, outcomes: Sequence[Outcome]) -> Ints:
    """Return the class answered to each document of the test fold, or :data:`UNPARSED`."""
    task, by_id = store.header.task, {outcome.id: outcome for outcome in outcomes}
    rows = labelled.rows["test"]
    ids = store.index["id"].astype(str).to_numpy()[rows]
    with_features = set(ids)
    if without := [identifier for identifier in by_id if identifier not in with_features]:
        raise DataError(
            f"{task}: expected features of all {len(by_id)} answered documents, got none of {len(without)}, such as "
            f"{without[0]!r}. lmms-eval's cache returned their answers without running the model: run again without "
            "--use_cache, or with another cache folder."
        )
    if missing := [identifier for identifier in ids if identifier not in by_id]:
        raise DataError(
            f"{task}: expected an answer to every document of the test fold, got none to {len(missing)}, such as "
            f"{missing[0]!r}. Features and outcomes belong to different runs, or the file of outcomes is truncated."
        )
    for identifier, row in zip(ids, rows, strict=True):
        if by_id[identifier].label != labelled.labels[labelled.truth[row]]:
            raise DataError(
                f"{task}: expected the same class of {identifier!r} in features and answers, got "
                f"{labelled.labels[labelled.truth[row]]!r} and {by_id[identifier].label!r}. They belong to different "
                "data sets."
            )
    number_of = {label: number for number, label in enumerate(labelled.labels)}
    predicted = [by_id[identifier].predicted for identifier in ids]
    return np.array([UNPARSED if label is None else number_of[label] for label in predicted], dtype=np.intp)


def _reference_classes(store: FeatureStore, labelled: LabelledFeatures, predicted: Mapping[str, str | None]) -> Ints:
    ids = store.index["id"].astype(str).to_numpy()[labelled.rows["test"]]
    if missing := [identifier for identifier in ids if identifier not in predicted]:
        raise DataError(
            f"Expected the reference run to contain every document of the test fold, got {len(missing)} missing, such "
            f"as {missing[0]!r}. Run `medmllm baseline TASK` on the same data without a limit."
        )
    number_of = {label: number for number, label in enumerate(labelled.labels)}
    return np.array([number_of.get(str(predicted[identifier]), UNPARSED) for identifier in ids], dtype=np.intp)


def label_scores(store: FeatureStore, labelled: LabelledFeatures, fold: Fold, column: str = "scores") -> Floats | None:
    """Return label scores of a fold's documents, (n, K); ``None`` unless all have them."""
    values = [store.index[column].iloc[row] for row in labelled.rows[fold]]
    if any(value is None or np.ndim(value) == 0 for value in values):
        return None
    return np.array([np.asarray(value, dtype=np.float64) for value in values])


def unparsed_if_scored(answers: Ints, truth: Ints, scores: Floats | None) -> float:
    """Return the share of unparsed answers (t,) among those that are wrong while the label scores (t, K) are correct.

    NaN without scores or such documents.
    """
    if scores is None:
        return math.nan
    lost = (scores.argmax(1) == truth) & (answers != truth)
    return float((answers[lost] == UNPARSED).mean()) if lost.any() else math.nan


def score_variation(scores: Floats | None) -> float:
    """Return by how many nats the differences between label scores (t, K) vary over images, for the label with most.

    NaN without scores.
    """
    return math.nan if scores is None else float((scores - scores.mean(1, keepdims=True)).std(0).max())


def renaming_corrects_text(anchors: Anchors | None, labels: Sequence[str], renaming: Sequence[int] | None) -> bool:
    """Return whether renaming the answered classes makes at least half of the answers about each class correct.

    That is of the answers to findings in words (text anchor). ``renaming`` gives the new class of each answered one,
    (K,).
    """
    results = [] if anchors is None else [result for result in anchors.results if result.kind == "text"]
    if not results or renaming is None or list(renaming) == list(range(len(labels))):
        return False
    for number, label in enumerate(labels):
        counts = results[0].answered.get(label, {})
        correct = sum(counts.get(labels[old], 0) for old, new in enumerate(renaming) if new == number)
        if 2 * correct < max(1, sum(counts.values())):
            return False
    return True


def relabelling_is_complete(mapping: SemanticMapping) -> bool:
    """Return whether the relabelled answers certainly fall less than a loss of interest short of the probe.

    A stage that hands over another form may exchange some classes for others by chance, but hardly all of three or more
    consistently. Two classes are exchanged by chance easily, so they never suffice.
    """
    reading = mapping.readings.get("relabelled")
    return len(mapping.agreement) > 2 and reading is not None and reading.short_of_probe.high < OF_INTEREST
