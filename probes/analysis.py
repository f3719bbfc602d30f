"""Analyse a feature store and the answers: layer curves, Feature Health, semantic mapping and diagnosis."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medmllm_plugins.metrics.classification import Floats, Ints
from medmllm_plugins.metrics.intervals import UNKNOWN
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.probes.analysis_text import headline
from medmllm_plugins.probes.answer_evidence import (
    ScoredFolds,
    answered_classes,
    compared_classifiers,
    relabelling_is_complete,
    renaming_corrects_text,
    score_variation,
    unparsed_if_scored,
)
from medmllm_plugins.probes.chain import (
    ANSWER,
    LEVEL,
    MAJORITY,
    REFERENCE,
    build_chain,
)
from medmllm_plugins.probes.chain_fits import fit_chain, site_name, tied_with_best
from medmllm_plugins.probes.conclusion import Circumstances
from medmllm_plugins.probes.curves import (
    BootstrapFigures,
    bootstrap_figures,
    curve_points,
    site_p_values,
)
from medmllm_plugins.probes.diagnosis import diagnose
from medmllm_plugins.probes.feature_health import health, health_estimate
from medmllm_plugins.probes.fitting import LAST_LAYER, ProbePredictions, fit_probes
from medmllm_plugins.probes.labelled_features import (
    LabelledFeatures,
    count_shared_groups,
    read_labelled_features,
    resplit,
)
from medmllm_plugins.probes.mapping import semantic_mapping
from medmllm_plugins.probes.masked_border import masked_probes
from medmllm_plugins.probes.nuisance import probe_nuisances
from medmllm_plugins.probes.output_recalibration import Recalibrations, ScoredFold
from medmllm_plugins.probes.probe_methods import Probe
from medmllm_plugins.probes.probe_options import Options
from medmllm_plugins.probes.reference_run import Reference
from medmllm_plugins.probes.shortcuts import shortcut_report
from medmllm_plugins.prompts.feature_options import LAST, MEAN
from medmllm_plugins.results.anchor_records import Anchors
from medmllm_plugins.results.feature_store import FeatureSource, FeatureStore, StoredLayer
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import (
    CONTROL,
    MODULES,
    FeatureHealth,
    ProbeAnalysis,
    ProbePoint,
    SemanticMapping,
)
from medmllm_plugins.results.shortcut_records import MaskedCheck


def analyse(
    store: FeatureStore | Path,
    outcomes: Sequence[Outcome],
    options: Options | None = None,
    *,
    reference: Reference | None = None,
    anchors: Anchors | None = None,
    masked: MaskedCheck | None = None,
    patching: TwinPatching | None = None,
    device: torch.device | None = None,
) -> ProbeAnalysis:
    """Fit the probes of a task and diagnose where the model loses the class.

    ``masked`` compares the answers about images with and without border, see
    :func:`~medmllm_plugins.probes.masked_border.masked_answers`; ``patching`` is the result of twin patching. The
    device is a CUDA device if there is one, by default.

    Raises:
        DataError: the folds are too small, features are damaged or not finite, or features and answers belong to
            different documents.
    """
    began = time.perf_counter()
    options = options or Options()
    store = FeatureStore(store) if isinstance(store, Path) else store
    labelled = read_labelled_features(store, options.seed)
    answers = answered_classes(store, labelled, outcomes)
    fitted = fit_probes(store, labelled, options, device)
    scores = ScoredFolds(store, labelled)
    site_p = site_p_values(fitted, labelled, seed=options.seed)
    fits = fit_chain(store, labelled, options, fitted, site_p, scores.validation_hits, device)
    fit_seconds = time.perf_counter() - began
    recalibrations = Recalibrations(scores.validation_fold, len(labelled.labels), options.seed)
    mapping = _mapping(store, labelled, fitted, answers, scores, recalibrations, options.seed)
    classifiers = compared_classifiers(store, labelled, answers, scores, recalibrations, reference)
    figures = bootstrap_figures(labelled, classifiers, fitted=fitted, seed=options.seed)
    repeats = repeated_accuracies(store, labelled, options, device, fitted)
    points = curve_points(fitted, labelled, figures, site_p, repeats)
    chain = build_chain(labelled, fits, classifiers, seed=options.seed)
    nuisances = probe_nuisances(store, labelled, fitted, options, device)
    ends = [fits.sites[index] for index in fits.chosen.ends]
    masked_checks = [*masked_probes(store, labelled, options, ends, device), *([] if masked is None else [masked])]
    shortcuts = shortcut_report(store, labelled, masked=masked_checks, nuisances=nuisances, seed=options.seed)
    circumstances = Circumstances(
        mapping_kind=mapping.kind,
        anchors=anchors,
        relabelling_complete=relabelling_is_complete(mapping),
        relabelled_text=renaming_corrects_text(anchors, labelled.labels, mapping.relabelling),
        unparsed_if_scored=unparsed_if_scored(answers, labelled.of("test"), scores.test),
        score_variation=score_variation(scores.test),
        answers_know_something=chain.answer_p <= LEVEL,
        folds_differ=shortcuts.folds_differ,
        patching=patching,
    )
    best, tied = best_point(points, fitted, labelled)
    analysis = ProbeAnalysis(
        task=store.header.task,
        model=store.header.model,
        options=options.to_dict(),
        labels=labelled.labels,
        counts={fold: len(rows) for fold, rows in labelled.rows.items()},
        groups=figures.groups,
        chance=1 / len(labelled.labels),
        majority=float(figures.values[MAJORITY]),
        answer=figures.share(figures.figure(ANSWER)),
        reference=UNKNOWN if reference is None else figures.share(figures.figure(REFERENCE)),
        reference_name="" if reference is None else reference.name,
        points=points,
        best=best,
        tied=tied,
        health=_feature_health(fitted, labelled, figures, store.header.layers),
        mapping=mapping,
        anchors=anchors,
        patching=patching,
        diagnosis=diagnose(chain, circumstances),
        diagnosis_without_reference=diagnose(replace(chain, reference=None), circumstances),
        control_types=fitted.types,
        shortcuts=shortcuts,
        warnings=(*fit_warnings(labelled, fitted, points, options), *shortcuts.warnings),
        seconds={"fit": round(fit_seconds, 3), "all": round(time.perf_counter() - began, 3)},
    )
    return replace(analysis, headline=headline(analysis))


def best_point(
    points: Sequence[ProbePoint], fitted: ProbePredictions, labelled: LabelledFeatures
) -> tuple[ProbePoint, tuple[str, ...]]:
    """Return the best point on the validation fold, the last of those within one standard error, and all of these."""
    own = [index for index, point in enumerate(points) if point.part != CONTROL and point.read]
    hits = (fitted.validation[own] == labelled.of("validation")).astype(np.float64)
    tied = [own[row] for row in tied_with_best(hits, labelled.groups_of("validation"))]
    return points[tied[-1]], tuple(site_name(fitted.sites[index]) for index in tied)


def repeated_accuracies(
    store: FeatureSource,
    labelled: LabelledFeatures,
    options: Options,
    device: torch.device | None,
    fitted: ProbePredictions,
    probe: Probe | None = None,
) -> Floats:
    """Refit on further random divisions into folds, and return the accuracies, (repeats, F)."""
    accuracies = np.empty((options.repeats, len(fitted.sites)))
    without_controls = replace(options, permutations=0, controls=0)
    for repeat in range(options.repeats):
        divided = resplit(labelled, store, options.seed + 1 + repeat)
        refitted = fit_probes(store, divided, without_controls, device, probe)
        accuracies[repeat] = (refitted.test == divided.of("test")).mean(1)
    return accuracies


def _feature_health(
    fitted: ProbePredictions, labelled: LabelledFeatures, figures: BootstrapFigures, layers: Sequence[StoredLayer]
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
        correct = (fitted.test[sites] == labelled.of("test")).astype(np.float64)
        parts = health(correct.mean(1))
        curves.append(
            FeatureHealth(
                module=module,
                pooling=pooling,
                layers=tuple(fitted.sites[index].layer for index in sites),
                score=health_estimate(
                    correct, np.clip(figures.resampled["probe"][:, sites], 0, 1), labelled.groups_of("test")
                ),
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
    scores: ScoredFolds,
    recalibrations: Recalibrations,
    seed: int,
) -> SemanticMapping:
    lens = store.lens(labelled.rows["test"])
    return semantic_mapping(
        scores.validation_fold,
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
        fitted=recalibrations,
        lens_layers=store.header.lens,
        seed=seed,
    )


def fit_warnings(
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
    if shared := count_shared_groups(labelled):
        warnings.append(
            f"{shared} of {len(labelled.rows['test'])} test documents share a group (patient, lesion, source) with "
            "another fold, as in the published split. Probes may recognise the group, so accuracies may be too high."
        )
    unconverged = [point for point in points if point.gradient_norm is not None and not point.gradient_norm < 1e-2]
    if unconverged:
        fits = "1 probe" if len(unconverged) == 1 else f"{len(unconverged)} probes"
        warnings.append(f"{fits} did not converge, for example at {unconverged[0].layer}.")
    if fitted.warnings:
        message, count = max(fitted.warnings.items(), key=lambda item: item[1])
        total = sum(fitted.warnings.values())
        warnings.append(f"{total} fits raised warnings. The most common ({count} fits): {message}")
    return tuple(warnings)
