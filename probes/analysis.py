"""Analyse a feature store and the answers: layer curves, Feature Health, semantic mapping and diagnosis."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from medmllm_plugins.data.core.documents import Fold
from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import UNKNOWN
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.curves import BootstrapAccuracies, bootstrap_accuracies, curve_points
from medmllm_plugins.probes.diagnosis import ANSWER, MAJORITY, REFERENCE, SCORES, diagnose
from medmllm_plugins.probes.feature_health import health, health_score
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, fit_probes
from medmllm_plugins.probes.labelled_features import (
    LabelledFeatures,
    count_shared_groups,
    read_labelled_features,
    resplit,
)
from medmllm_plugins.probes.mapping import semantic_mapping
from medmllm_plugins.probes.output_recalibration import UNPARSED, ScoredFold, ValidationFold
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.feature_store import FeatureStore, StoredLayer
from medmllm_plugins.results.probe_records import (
    CONTROL,
    MODULES,
    PROVEN,
    TITLES,
    Effect,
    FeatureHealth,
    ProbeAnalysis,
    ProbePoint,
    SemanticMapping,
)

MAPPING_CAVEAT: Final = (
    "The cause is the mapping, or an earlier stage that passes the image on in a form that the next stage has not "
    "learned to read; probes are fitted separately at each stage and cannot distinguish the two."
)
"""Added if the mapping is named and the label scores do not show that the LLM reached the correct label."""


def _headline(analysis: ProbeAnalysis) -> str:
    """Return the result in one or two sentences."""
    diagnosis, best = analysis.diagnosis, analysis.best
    first = (
        f"answers {analysis.answer.percent()}, best probe {best.accuracy.percent()} at {best.layer} ({best.pooling})"
    )
    undecided = f" Undecided: {', '.join(diagnosis.undecided)}." if diagnosis.undecided else ""
    if not diagnosis.supported:
        return f"{first}. No failure mode is supported.{undecided}"
    named = diagnosis.named
    if named is None:
        return (
            f"{first}. Several stages lose accuracy, or an earlier stage may be the cause: "
            f"{_format_losses(diagnosis.supported)}.{undecided}"
        )
    is_proven = analysis.mapping is not None and analysis.mapping.kind in PROVEN
    caveat = f" {MAPPING_CAVEAT}" if named == "mapping" and not is_proven else ""
    others = diagnosis.supported[1:]
    also = f" Also supported: {_format_losses(others)}." if others else ""
    return f"{first}. {TITLES[named].capitalize()} ({named}): {diagnosis.of(named).why}{caveat}{also}"


def _format_losses(effects: Sequence[Effect]) -> str:
    """Return text such as "connector (7.1 points), mapping (53.0 points)"."""
    return ", ".join(f"{effect.mode} ({100 * effect.loss.value:.1f} points)" for effect in effects)


def analyse(
    store: FeatureStore | Path,
    outcomes: Sequence[Outcome],
    options: Options | None = None,
    *,
    reference: Reference | None = None,
    anchors: Anchors | None = None,
    device: torch.device | None = None,
) -> ProbeAnalysis:
    """Fit the probes of a task and diagnose where the model loses the class.

    The device is a CUDA device if there is one, by default.

    Raises:
        DataError: the folds are too small, features are damaged or not finite, or features and answers belong to
            different documents.
    """
    began = time.perf_counter()
    options = options or Options()
    store = FeatureStore(store) if isinstance(store, Path) else store
    labelled = read_labelled_features(store, options.seed)
    answers = _answered_classes(store, labelled, outcomes)
    fitted = fit_probes(store, labelled, options, device)
    fit_seconds = time.perf_counter() - began
    scores = _ScoredFolds(store, labelled)
    accuracies = bootstrap_accuracies(
        fitted, labelled, _hits(store, labelled, answers, scores.test, reference), seed=options.seed
    )
    repeats = _repeated_accuracies(store, labelled, options, device, fitted)
    points = curve_points(fitted, labelled, accuracies, repeats, seed=options.seed)
    truth, scores_validation = labelled.of("validation"), scores.validation_accuracy
    analysis = ProbeAnalysis(
        task=store.header.task,
        model=store.header.model,
        options=options.to_dict(),
        labels=labelled.labels,
        counts={fold: len(rows) for fold, rows in labelled.rows.items()},
        groups=accuracies.groups,
        chance=1 / len(labelled.labels),
        majority=float(accuracies.values[MAJORITY]),
        answer=accuracies.of(ANSWER),
        reference=UNKNOWN if reference is None else accuracies.of(REFERENCE),
        reference_name="" if reference is None else reference.name,
        points=points,
        best=max((point for point in points if point.part != CONTROL and point.read), key=lambda p: p.validation),
        health=_feature_health(fitted, accuracies, store.header.layers),
        mapping=_mapping(store, labelled, fitted, answers, scores, options.seed),
        anchors=anchors,
        diagnosis=diagnose(fitted, accuracies, truth, scores_validation),
        diagnosis_without_reference=diagnose(fitted, accuracies.without(REFERENCE), truth, scores_validation),
        control_types=fitted.types,
        warnings=_warnings(labelled, fitted, points, options),
        seconds={"fit": round(fit_seconds, 3), "all": round(time.perf_counter() - began, 3)},
    )
    return replace(analysis, headline=_headline(analysis))


class _ScoredFolds:
    """Label scores (n, K) of the validation and test folds; all ``None`` unless every document of both has them."""

    def __init__(self, store: FeatureStore, labelled: LabelledFeatures) -> None:
        validation, test = (_label_scores(store, labelled, fold) for fold in ("validation", "test"))
        both = validation is not None and test is not None
        self.validation = validation if both else None
        self.test = test if both else None
        self.blank = _label_scores(store, labelled, "test", "blank") if both else None
        self.validation_accuracy = (
            None if self.validation is None else float((self.validation.argmax(1) == labelled.of("validation")).mean())
        )


def _hits(
    store: FeatureStore,
    labelled: LabelledFeatures,
    answers: Ints,
    scores: Floats | None,
    reference: Reference | None,
) -> dict[str, Floats]:
    """Return whether each document of the test fold is classified correctly, (t,), by name of the classifier."""
    truth = labelled.of("test")
    majority = int(np.bincount(labelled.of("train")).argmax())
    hits = {ANSWER: answers == truth, MAJORITY: truth == majority}
    if reference is not None:
        hits[REFERENCE] = _reference_classes(store, labelled, reference.predicted) == truth
    if scores is not None:
        hits[SCORES] = scores.argmax(1) == truth
    return {name: correct.astype(np.float64) for name, correct in hits.items()}


def _answered_classes(store: FeatureStore, labelled: LabelledFeatures, outcomes: Sequence[Outcome]) -> Ints:
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


def _label_scores(store: FeatureStore, labelled: LabelledFeatures, fold: Fold, column: str = "scores") -> Floats | None:
    """Return label scores of a fold's documents, (n, K); ``None`` unless all have them."""
    values = [store.index[column].iloc[row] for row in labelled.rows[fold]]
    if any(value is None or np.ndim(value) == 0 for value in values):
        return None
    return np.array([np.asarray(value, dtype=np.float64) for value in values])


def _repeated_accuracies(
    store: FeatureStore,
    labelled: LabelledFeatures,
    options: Options,
    device: torch.device | None,
    fitted: ProbePredictions,
) -> Floats:
    """Refit on further random divisions into folds, and return the accuracies, (repeats, F)."""
    accuracies = np.empty((options.repeats, len(fitted.sites)))
    without_controls = replace(options, permutations=0, controls=0)
    for repeat in range(options.repeats):
        divided = resplit(labelled, store, options.seed + 1 + repeat)
        refitted = fit_probes(store, divided, without_controls, device)
        accuracies[repeat] = (refitted.test == divided.of("test")).mean(1)
    return accuracies


def _feature_health(
    fitted: ProbePredictions, accuracies: BootstrapAccuracies, layers: Sequence[StoredLayer]
) -> tuple[FeatureHealth, ...]:
    """Return the scores of the modules whose layers were all fitted; a part of the layers has another score."""
    curves = []
    for module, pooling in itertools.product(MODULES, (MEAN, LAST)):
        sites = [
            fitted.index_of(layer.name, pooling)
            for layer in layers
            # The input of the LLM is the output of the connector between words; its first layer is its first block.
            if layer.part == module and pooling in layer.poolings and layer.read and layer.name != "llm.embed"
        ]
        if not sites or min(sites) < 0:
            continue
        resampled = health_score(np.clip(accuracies.resampled["probe"][:, sites], 0, 1))
        parts = health(np.clip(accuracies.values["probe"][sites], 0, 1))
        curves.append(
            FeatureHealth(
                module=module,
                pooling=pooling,
                layers=tuple(fitted.sites[index].layer for index in sites),
                score=accuracies.estimate(parts.score, resampled),
                growth=parts.growth,
                volatility=parts.volatility,
                p_start=parts.p_start,
                p_min=parts.p_min,
                p_end=parts.p_end,
            )
        )
    return tuple(curves)


def _mapping(
    store: FeatureStore,
    labelled: LabelledFeatures,
    fitted: ProbePredictions,
    answers: Ints,
    scores: _ScoredFolds,
    seed: int,
) -> SemanticMapping:
    lens = store.lens(labelled.rows["test"])
    return semantic_mapping(
        ValidationFold(labelled.of("validation"), labelled.groups_of("validation"), None, scores.validation),
        ScoredFold(
            truth=labelled.of("test"),
            group=labelled.groups_of("test"),
            answers=answers,
            probe=fitted.test[fitted.index_of(LAST_LAYER, LAST)],
            scores=scores.test,
            blank=scores.blank,
            lens=None if lens is None else lens.transpose(1, 0, 2).astype(np.float64),
        ),
        len(labelled.labels),
        lens_layers=store.header.lens,
        seed=seed,
    )


def _warnings(
    labelled: LabelledFeatures, fitted: ProbePredictions, points: Sequence[ProbePoint], options: Options
) -> tuple[str, ...]:
    """Return sentences about what limits the results."""
    warnings = []
    if options.controls and fitted.types < 2:
        warnings.append(
            "There is no control task, because fewer than two types of images occur in every fold: the folds are too "
            "small or the images too similar."
        )
    elif options.controls and fitted.types < len(labelled.labels):
        warnings.append(
            f"Only {fitted.types} types of images occur in every fold, for {len(labelled.labels)} classes, so the "
            "control task is easier than the real one."
        )
    narrow = sorted({point.width for point in points if point.part != CONTROL and point.width < options.width})
    if narrow:
        warnings.append(
            f"Layers with fewer than {options.width} features (down to {narrow[0]}) are not projected, so not all "
            "layers have the same width."
        )
    if shared := count_shared_groups(labelled):
        warnings.append(
            f"{shared} of {len(labelled.rows['test'])} test documents share a group (patient, lesion, source) with "
            "another fold, as in the published split. Probes may recognise the group, so accuracies may be too high."
        )
    unconverged = [point for point in points if point.gradient_norm is not None and not point.gradient_norm < 1e-2]
    if unconverged:
        warnings.append(f"{len(unconverged)} probes did not converge, for example at {unconverged[0].layer}.")
    if fitted.warnings:
        message, count = max(fitted.warnings.items(), key=lambda item: item[1])
        total = sum(fitted.warnings.values())
        warnings.append(f"{total} fits raised warnings. The most common ({count} fits): {message}")
    return tuple(warnings)
